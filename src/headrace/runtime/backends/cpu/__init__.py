"""The CPU backend: a program is compiled to native op records at load; a step is one native call.

Two environment variables are read at load. HEADRACE_CPU_LEVEL (portable, avx2, avx512, amx) forces
an instruction level; the best that the processor runs is taken otherwise. HEADRACE_CPU_PRECISE=1
computes with float32 activations and a float32 KV cache. Without it, activations that meet
quantised weights are rounded to 12 bits a block of 32, and KV is kept as float16: half the memory
traffic of float32 with three more bits of mantissa than bfloat16; values past 65,504 saturate. On
avx512 and amx a key or value of one head is a float32 scale and integers of 16 bits instead, and
attention is integer products, summed exactly; int8 KV is 8 of these bits. The portable level is
always precise. The amx level is avx512 with tiles where a step has many rows; from how many on is
measured at the first start on a processor and kept (`crossover`), and results are equal to the bit.
Besides, the amx level computes the rows of tokens that were given (`Batch.given`: prompts) in
bfloat16: weights, floats too, and activations, queries, keys and values rounded, summed in float32.
Rows of other tokens meet bfloat16 weights as sums of two bfloat16 a value, 16 bits of mantissa,
also by tiles. What a token is decides, never the rows beside it: a prompt is computed alike in one
step, in chunks, and after a preemption.

What rounding costs, over 512 tokens of `benchmarks/perplexity.txt`, SmolLM2-135M Q4_1 against its
float32 self: 12 bits 4.6e-5 nats on average (KL divergence), 8.9e-4 at most, perplexity 19.591
against 19.619, the most likely token another at 3 of 512 positions; bfloat16 3.0e-4 nats, 8.9e-3 at
most, perplexity 19.669, 6 of 512. Chosen tokens keep 12 bits, which one tile product can hold.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...models.program import BASIC, Program, UnsupportedProgram, demands
from ...processors import usable_processors
from ...weights.lowrank import LowRank
from ...weights.tensor import Tensor
from ..base import Batch, Float32, KVLayout, Pending, Sampled, SamplingRows
from ..measured import folder
from . import _native
from ._native import Flight, Model, levels
from .compiler import compile_program
from .crossover import tile_crossover
from .sources import outdated

LANES = 16
SUPPORTS = BASIC | {
    "Activate",
    "AddEmbedding",
    "AddEmbedding.offset",
    "Attention.cap",
    "Attention.causal",
    "Attention.sinks",
    "Attention.window",
    "Embed.scale",
    "GateMultiply.activation",
    "Logits.cap",
    "Logits.scale",
    "Norm.accumulate",
    "Norm.add_scale",
    "Norm.bias",
    "Norm.kind",
    "NormHeads",
    "NormHeads.whole",
    "Pool",
    "Result",
    "Rope.scale",
}


log = logging.getLogger(__name__)
if outdated(getattr(_native, "SOURCES", "")):
    log.warning("the native kernels are older than csrc/, and may compute nonsense: run make")


@dataclass(frozen=True, slots=True)
class Options:
    """How the native part runs: `level` "" takes the best, `precise` rounds no activation."""

    level: str = ""
    precise: bool = False


@dataclass(slots=True)
class Step:
    """A step of the thread team."""

    model: Model
    flight: Flight
    sampled: Sampled | None = None

    def choose(self, rows: SamplingRows) -> None:
        """Say how tokens are chosen. Raises ValueError, MemoryError: the step is lost."""
        self.model.choose(self.flight, rows)

    def wait(self) -> Sampled:
        """Join the team until the step is over. Raises ValueError where it is lost."""
        if self.sampled is None:
            tokens, logprobs, ranked, ranked_logprobs, seconds = self.model.wait(self.flight)
            if len(ranked):
                places = len(tokens), -1
                ranked, ranked_logprobs = ranked.reshape(places), ranked_logprobs.reshape(places)
                self.sampled = Sampled(tokens, logprobs, ranked, ranked_logprobs, seconds)
            else:
                self.sampled = Sampled(tokens, logprobs, seconds=seconds)
        return self.sampled


class CPUBackend:
    """One loaded model on the CPU. A second thread that calls waits for the first."""

    queues = False

    def __init__(self, model: Model, weights: Mapping[str, int], kv: KVLayout) -> None:
        self.model = model
        self.weights = weights  # indices by name
        self.kv = kv

    def launch(self, batch: Batch, after: Pending | None = None) -> Step:
        """Let the thread team begin, once the step before is over. Raises ValueError, MemoryError.

        The caller is a member of the team: it is missing until it waits.
        """
        if after is not None:
            batch.fill(after.wait())
        return Step(self.model, self.model.launch(batch))

    def run(self, batch: Batch) -> Sampled:
        """Run the program and sample. Raises ValueError (batch), MemoryError."""
        return self.launch(batch).wait()

    def logits(self, batch: Batch) -> Float32:
        """Run the program; float32 [samples, vocabulary]. Raises ValueError, MemoryError."""
        return self.model.logits(batch)

    def kernels(self) -> Mapping[str, str]:
        """What runs each kind of op, as "linear Q4_1" -> "avx512-vnni, 12-bit activations"."""
        found = dict(self.model.kernels())
        for op in ("linear", "logits"):
            if f"{op} F16" in found:
                found[f"{op} E4M3"] = f"{found[f'{op} F16']}, widened to F16"
        return found

    def load_adapter(self, number: int, deltas: Mapping[str, LowRank]) -> None:
        """Take an adapter in, between two steps. Raises ValueError, MemoryError."""
        changes = []
        for name, delta in deltas.items():
            if name not in self.weights:
                raise ValueError(f"the program has no weight '{name}'")
            factors = padded(delta.down.T), padded(delta.up.T)
            changes.append((self.weights[name], *factors, delta.scale))
        self.model.load_adapter(number, changes)

    def drop_adapter(self, number: int) -> None:
        """Release an adapter. Raises ValueError where there is none of this number."""
        self.model.drop_adapter(number)

    def close(self) -> None:
        """Release weights and KV; later calls raise ValueError."""
        self.model.close()


def padded(values: Float32) -> Float32:
    """A copy, with columns of zeros up to a multiple of a vector's lanes."""
    rows, columns = values.shape
    found = np.zeros((rows, -(-columns // LANES) * LANES), np.float32)
    found[:, :columns] = values
    return found


def options_from(environ: Mapping[str, str]) -> Options:
    """The options that the environment asks for."""
    return Options(
        level=environ.get("HEADRACE_CPU_LEVEL", ""),
        precise=environ.get("HEADRACE_CPU_PRECISE", "") not in ("", "0"),
    )


def load(
    program: Program,
    weights: Mapping[str, Tensor],
    kv: KVLayout,
    threads: int,
    options: Options | None = None,
) -> CPUBackend:
    """Compile `program` over `weights`; `threads` 0 takes all processors allowed.

    Raises UnsupportedProgram, ValueError (shapes, formats, KV, level, threads), MemoryError.
    """
    if lacking := demands(program) - SUPPORTS:
        raise UnsupportedProgram(f"backend cpu does not know {', '.join(sorted(lacking))}")
    if kv.dtype == "fp8":
        raise ValueError("backend cpu keeps KV as f16 or int8, not fp8")
    asked = options_from(os.environ) if options is None else options
    count = threads or usable_processors()
    crossover = tile_crossover(asked.level or levels()[0], folder())
    model = Model(program, kv, asked.level, asked.precise, count, crossover)
    added = compile_program(model, program, weights)
    release_files(weights)
    return CPUBackend(model, added, kv)


def release_files(weights: Mapping[str, Tensor]) -> None:
    """Take mapped files out of this process's memory: packed weights are not read again.

    What is still read where it lies (an embedding's rows) comes back from the system's page cache.
    """
    files: dict[int, mmap.mmap] = {}
    for tensor in weights.values():
        owner: object = tensor.data
        while isinstance(owner, np.ndarray | memoryview):
            owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
        if isinstance(owner, mmap.mmap) and not tensor.data.flags.writeable:
            files[id(owner)] = owner
    for file in files.values():
        file.madvise(mmap.MADV_DONTNEED)
