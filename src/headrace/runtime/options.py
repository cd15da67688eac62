"""How an engine runs, as plain records: who starts engines in other processes needs no more of
the runtime than this, and none of its libraries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

KV_TOKENS = 32_768
AUTO = "auto"  # the backend: the fastest that this installation has

Quantization = Literal["int8", "int4", "fp8"]
KVChoice = Literal["auto", "f16", "int8", "fp8"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the scheduler. `batch_tokens` is at least `sequences`: no decode ever waits.

    `step` is how many seconds a step may take while sequences decode: the chunk of a prompt that
    is computed beside them is cut to it. It bounds their ITL. `by_ratio` off prefills in order of
    arrival, so that the worth of the other order can be measured.
    """

    batch_tokens: int = 512
    sequences: int = 64
    waiting: int = 1024
    step: float = 0.1
    by_ratio: bool = True

    def __post_init__(self) -> None:
        if self.batch_tokens < self.sequences:
            raise ValueError(
                f"batch_tokens ({self.batch_tokens}) must be at least sequences ({self.sequences})"
            )


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine runs. `threads` 0: as many as this process may use.

    `kv_tokens` None: as many as a GPU has room for beside the weights and the largest step, there
    being no more than `memory` bytes for all of them; elsewhere `KV_TOKENS`.
    """

    backend: str = AUTO
    threads: int = 0
    kv_tokens: int | None = None
    memory: int | None = None  # None: what is free
    block_size: int = 32
    kv_offload: int = 0  # bytes of host memory for KV blocks that a GPU has to give away
    share_prefixes: bool = True
    speculation: bool = True
    overlap: bool = True  # host and backend work at the same time; off: to see what it is worth
    limits: Limits = DEFAULT_LIMITS
    quantization: Quantization | None = None  # of float weights, when they are loaded
    kv_dtype: KVChoice = "auto"  # of the KV cache; auto: f16
    draft: Path | None = None  # a smaller model of the same vocabulary, for speculation
    tensor_parallel: int = 1  # GPUs that share the model

    @property
    def planned_tokens(self) -> int:
        """Tokens of the KV cache, as far as they are known before a device is seen."""
        return KV_TOKENS if self.kv_tokens is None else self.kv_tokens


DEFAULT_OPTIONS = EngineOptions()
