"""The native module: see csrc/module.cpp. All errors of input raise ValueError or TypeError."""

import numpy as np
from numpy.typing import NDArray

from ...models.program import Program
from ..base import Batch, Float32, Int32, KVLayout, SamplingRows

SOURCES: str  # a digest of csrc/, as it was built

def levels() -> list[str]:
    """The instruction levels that this processor runs, the best first."""

def measure_crossover(level: str) -> int:
    """Rows (1 to 16) from which on the level's tiles are quicker than its vectors; 17: never.

    Takes a millisecond or two.
    """

def round_blocks(
    level: str, source: str, data: NDArray[np.uint8], format: str, out: NDArray[np.uint8], /
) -> bool:
    """Round rows of floats (F32, F16, BF16) to Q8_0 or Q4_1, as `weights/blocks.py` does.

    `level` "": the best. False, and `out` is worth nothing, where a value is no number or out of
    the reach of a binary16 scale. Releases the GIL.
    """

def merges(pieces: list[str], order: list[int]) -> list[tuple[str, str]]:
    """As `text.tokenizer.merges`, in a fifth of the time."""

class Flight:
    """A step that was launched."""

class Model:
    """A model's native program. Buffers and weights are named by the index that adding returned."""

    def __init__(
        self,
        program: Program,
        kv: KVLayout,
        level: str,
        precise: bool,
        threads: int,
        tile_crossover: int,
    ) -> None: ...
    def buffer(self, width: int) -> int: ...
    def weight(self, format: str, rows: int, columns: int, data: NDArray[np.uint8]) -> int:
        """`data` is uint8 [rows, bytes a row]; it is kept, not copied."""
    def embed(self, out: int, table: int, scale: float, /) -> None: ...
    def norm(
        self,
        out: int,
        residual: int,
        weight: int,
        epsilon: float,
        add: int | None,
        add_scale: float,
        accumulate: bool,
    ) -> None: ...
    def add_embedding(self, out: int, table: int, types: bool, offset: int, /) -> None: ...
    def layer_norm(
        self,
        out: int,
        residual: int,
        weight: int,
        bias: int | None,
        epsilon: float,
        add: int | None,
        add_scale: float,
    ) -> None: ...
    def linear(self, out: int, source: int, weights: list[int], biases: list[int], /) -> None: ...
    def norm_heads(
        self, qkv: int, heads: int, query: int, key: int, epsilon: float, whole: bool, /
    ) -> None: ...
    def rotate_and_write(
        self,
        qkv: int,
        layer: int,
        heads: int,
        frequencies: list[float],
        interleaved: bool,
        scale: float,
        /,
    ) -> None: ...
    def attention(
        self,
        out: int,
        qkv: int,
        layer: int,
        heads: int,
        scale: float,
        window: int,
        cap: float,
        sinks: int | None,
        causal: bool,
    ) -> None: ...
    def gate_multiply(self, out: int, source: int, activation: str, /) -> None: ...
    def activate(self, out: int, source: int, activation: str, /) -> None: ...
    def pool(self, out: int, source: int, pooling: str, /) -> None: ...
    def result(self, source: int, /) -> None: ...
    def project_to_logits(self, source: int, weight: int, scale: float, cap: float, /) -> None: ...
    def load_adapter(
        self,
        number: int,
        changes: list[tuple[int, NDArray[np.float32], NDArray[np.float32], float]],
    ) -> None:
        """Changes of weights: index, down [columns, lanes], up [rank, width], scale.

        `lanes` and `width` are the rank and the weight's rows, up to a multiple of 16; what is
        past the rank in `down` is 0. The arrays are kept, not copied.
        """
    def drop_adapter(self, number: int) -> None: ...
    def launch(self, batch: Batch) -> Flight:
        """Begin a step, once the one that runs is over, if any does. Releases the GIL."""
    def choose(self, flight: Flight, sampling: SamplingRows) -> None:
        """What a batch without sampling waits for."""
    def wait(self, flight: Flight) -> tuple[Int32, Float32, Int32, Float32, float]:
        """Tokens and log-probabilities, [samples] each, the same of the ranked ones,
        [samples · ranked], and the seconds that the step took. Releases the GIL."""
    def logits(self, batch: Batch) -> Float32:
        """Logits, float32 [samples, vocabulary]. Releases the GIL."""
    def kernels(self) -> dict[str, str]: ...
    def close(self) -> None: ...
