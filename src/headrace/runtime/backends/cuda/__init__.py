"""The CUDA backend: a program is compiled to launches of Triton kernels; a step is one replay.

Activations and KV are bfloat16, residuals and logits float32. With TRITON_INTERPRET=1 the same
kernels run on a CPU, interpreted and slow, in float32: to be tested against the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import triton

from ...models.program import EVERYTHING, Attention, Logits, Norm, Pool, Program
from ...weights.lowrank import LowRank
from ...weights.tensor import Tensor
from ..base import Batch, Float32, KVLayout, Move, Pending, Place, Sampled
from ..devices import interpreted
from ..measured import folder, measured_on
from .adapters import Adapters
from .attention import PROGRAMS, query_block
from .cache import NO_CACHE, new_cache
from .choices import Choices, EventTimer, driver
from .compiler import compile_op, fused
from .float8 import Coded, coded_linears
from .graphs import Graphs, bucket
from .group import Ranks
from .hostkv import Copied, HostKV
from .inputs import Arena, Step, View, upload_step
from .model import Model, power
from .room import Meter, blocks_that_fit, device_meter
from .running import Clock, Running, memory_errors
from .sleeping import Asleep
from .staging import Staging
from .tiles import MOST_PARTIALS
from .told import told

SUPPORTS = EVERYTHING
FEWEST_ROWS = 64  # that buffers hold


@dataclass(frozen=True, slots=True)
class Device:
    """Where a model runs and what its activations are."""

    device: torch.device
    dtype: torch.dtype
    processors: int
    multiplies_fp8: bool = False
    name: str = ""  # with those of the driver and the libraries
    invariant: bool = False  # see `model.Model`
    group: Ranks | None = None  # see `model.Model`


def found_device(rank: int = 0) -> Device:
    """The GPU of a rank; the CPU for the interpreter."""
    if interpreted():
        return Device(torch.device("cpu"), torch.float32, 2)
    torch.cuda.set_device(rank)
    properties = torch.cuda.get_device_properties(rank)
    return Device(
        torch.device("cuda", rank),
        torch.bfloat16,
        properties.multi_processor_count,
        (properties.major, properties.minor) >= (8, 9),
        f"{properties.name} {driver()} torch {torch.__version__} triton {triton.__version__}",
    )


def device_choices(on: Device) -> Choices:
    """What was measured on a device, and a timer for what was not; nothing in the interpreter."""
    if on.device.type != "cuda":
        return Choices(None, None)
    return Choices(measured_on(on.name, folder()), EventTimer(on.device))


class CUDABackend:
    """One loaded model on one GPU."""

    queues = True

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Tensor],
        kv: KVLayout,
        on: Device,
        choices: Choices | None = None,
    ) -> None:
        self.kv = kv
        self.model = Model(
            program,
            weights,
            kv,
            on.device,
            on.dtype,
            on.processors,
            Adapters(program, weights),
            new_cache(program, kv, on.dtype, on.device),
            device_choices(on) if choices is None else choices,
            Staging(on.device),
            on.group,
            on.multiplies_fp8 and not on.invariant,
            on.invariant,
        )
        self.host = HostKV(self.model) if kv.host_bytes else None
        self.asleep: Asleep | None = None  # from the first sleep on
        self.residuals = {op.residual for op in program.ops if isinstance(op, Norm)}
        self.kinds = {type(op) for op in program.ops}
        self.attentions = [op for op in program.ops if isinstance(op, Attention)]
        self.arena = Arena(on.device)
        self.generation = self.arena.generation
        self.graphs = Graphs([compile_op(op, self.model) for op in fused(program)], on.device)
        self.model.choices.close()
        self.model.staging.close()
        self.samples = 0
        self.make_room(FEWEST_ROWS)
        self.make_sample_room(FEWEST_ROWS)

    def resize(self, blocks: int) -> None:
        """A new KV cache, empty, of so many blocks."""
        self.graphs.forget()
        self.kv = self.model.kv = replace(self.kv, blocks=blocks)
        self.model.cache = NO_CACHE
        self.model.cache = new_cache(
            self.model.program, self.kv, self.model.dtype, self.model.device
        )

    def make_room(self, rows: int) -> None:
        """Buffers for steps of `rows` rows."""
        model = self.model
        self.graphs.forget()  # first: of what is moved, part may stay where memory runs out
        for name, width in model.program.buffers.items():
            dtype = torch.float32 if name in self.residuals else model.dtype
            model.buffers[name] = torch.zeros((rows, width), dtype=dtype, device=model.device)
        if model.multiplies_fp8:
            for op in coded_linears(model.program, model.weights):
                width = model.program.buffers[op.source]
                model.coded[op.source] = Coded(
                    torch.zeros((rows, width), dtype=torch.uint8, device=model.device),
                    torch.zeros(rows, dtype=torch.float32, device=model.device),
                )
        self.capacity = rows

    def make_sample_room(self, samples: int) -> None:
        """A buffer for what the program gives of so many rows: far fewer than a prompt has."""
        model = self.model
        if Logits in self.kinds and samples > len(model.logits):
            self.graphs.forget()
            shape = samples, model.program.vocabulary
            model.logits = torch.zeros(shape, dtype=torch.float32, device=model.device)
            self.samples = samples

    def make_partial_room(self, step: Step) -> None:
        """Buffers for the partial results of the step's attention."""
        model = self.model
        needed = most = 0
        for op in self.attentions:
            partials = step.planned[View(op.window, op.causal)].partials
            needed = max(needed, partials * op.heads * power(op.head_size))
            most = max(most, MOST_PARTIALS * op.heads * power(op.head_size))
        if needed > model.partial_sums.numel():
            self.graphs.forget()
            size = min(2 * needed, most)
            sums = torch.zeros(size, dtype=torch.float32, device=model.device)
            stats = torch.zeros(size // 8, dtype=torch.float32, device=model.device)
            model.partial_sums, model.partial_stats = sums, stats

    def forward(self, batch: Batch, before: torch.Tensor | None = None) -> torch.Tensor:
        """Run the program; what it gives of the sampled rows, on the device.

        `before`: the tokens of the step before, where the batch has carried ones.
        """
        model, rows = self.model, len(batch.tokens)
        adapted = model.adapters.rows(batch)
        decodes = rows == len(batch.context_lengths) == len(batch.sampled_rows)
        padded = bucket(rows) if decodes else None
        model.prefills = not decodes or model.invariant  # tiles of one size
        if (padded or rows) > self.capacity:
            self.make_room(bucket(padded or rows))
        self.make_sample_room(bucket(max(1, len(batch.sampled_rows))))
        tile_rows = {
            View(op.window, op.causal): query_block(op.heads // op.kv_heads, model.prefills)
            // (op.heads // op.kv_heads)
            for op in self.attentions
        }
        programs = max(1, model.processors * PROGRAMS // model.program.kv_heads)
        step = upload_step(
            self.arena, batch, tile_rows, self.kv.block_size, programs, padded, adapted
        )
        if self.arena.generation != self.generation:
            self.generation = self.arena.generation
            self.graphs.forget()
        if before is not None and step.carried is not None:
            taken = before[step.carried.clamp(min=0)].to(torch.int32)
            step.tokens.copy_(torch.where(step.carried < 0, step.tokens, taken))
        self.make_partial_room(step)
        self.graphs.run(step, repeats=decodes and not adapted)
        return model.logits[: self.given(batch)]

    def given(self, batch: Batch) -> int:
        """Rows of what the program gives of a batch."""
        if Logits in self.kinds:
            return len(batch.sampled_rows)
        return len(batch.context_lengths) if Pool in self.kinds else len(batch.tokens)

    def launch(self, batch: Batch, after: Pending | None = None) -> Running:
        """Put a step on the stream; the host goes on. Raises MemoryError, ValueError."""
        before = None if batch.carried is None else self.chosen_by(after)
        clock = Clock(self.model.device)
        with memory_errors():
            running = Running(self.forward(batch, before), clock)
        if batch.sampling is not None:
            running.choose(batch.sampling)
        return running

    def chosen_by(self, step: Pending | None) -> torch.Tensor:
        """The tokens of a step, on the device; those of ranks are rank 0's. Raises ValueError."""
        group = self.model.group
        if not isinstance(step, Running) or (step.chosen is None and not (group and group.rank)):
            raise ValueError("carried tokens need a step before that chooses them")
        if step.chosen is None:
            found = torch.empty(len(step.logits), dtype=torch.int64, device=self.model.device)
        else:
            found = step.chosen.tokens
        return found if group is None else group.share(found)

    def run(self, batch: Batch) -> Sampled:
        """Run the program and sample. Raises MemoryError."""
        return self.launch(batch).wait()

    def logits(self, batch: Batch) -> Float32:
        """Run the program; float32 [samples, vocabulary]. Raises MemoryError."""
        with memory_errors():
            found: Float32 = np.array(self.forward(batch).float().cpu())
        return found

    def kernels(self) -> Mapping[str, str]:
        """The form of each kind of weight, and what multiplies by it, by the number of rows."""
        where = "triton" if self.model.device.type == "cuda" else "triton, interpreted"
        model = self.model
        kinds = {f"linear {one.origin}": one.kind for one in model.uploaded.values()}
        by = told(
            model.program,
            model.weights,
            model.choices.kept,
            multiplies_fp8=model.multiplies_fp8,
            invariant=model.invariant,
        )
        found = {
            name: f"{where} {kind}" + (f", {by[name]}" if name in by else "")
            for name, kind in kinds.items()
        }
        form = model.cache.form
        kept = str(model.dtype).removeprefix("torch.") if form == "float" else f"{form} KV"
        return {**found, "attention": f"{where} {kept}"}

    def load_adapter(self, number: int, deltas: Mapping[str, LowRank]) -> None:
        """Take an adapter in, between two steps. Raises ValueError, MemoryError."""
        model = self.model
        with memory_errors():
            model.adapters.load(number, deltas, model.dtype, model.device)

    def drop_adapter(self, number: int) -> None:
        """Release an adapter. Raises ValueError where there is none of this number."""
        self.model.adapters.drop(number)

    @property
    def host_blocks(self) -> int:
        """KV blocks that are kept in host memory as well."""
        return 0 if self.host is None else self.host.blocks

    def copy_blocks(self, moves: Sequence[Move]) -> Copied:
        """Begin copies of KV blocks to host memory and back. Raises MemoryError, ValueError."""
        if self.host is None:
            raise ValueError("there are no KV blocks in host memory")
        return self.host.copy(moves)

    def sleep(self) -> None:
        """Give the device's memory back, but for what is small; the weights go to the host. No
        step runs; the KV cache is lost. Raises MemoryError: then nothing has changed."""
        model = self.model
        if self.host is not None:
            self.host.wait()
        if self.asleep is None:
            held = [one for part in model.uploaded.values() for one in part.pointers]
            tensors = list({id(one): one for one in held if one is not None}.values())
            self.asleep = Asleep(tensors, model.device)
        self.graphs.forget()
        self.asleep.leave()
        model.adapters.move(torch.device("cpu"))
        model.cache = NO_CACHE
        model.buffers.clear()
        model.coded.clear()
        model.logits = model.partial_sums = model.partial_stats = torch.zeros(0)
        if model.device.type == "cuda":
            torch.cuda.empty_cache()

    def wake(self) -> None:
        """Take the memory again, as much as before. Raises MemoryError: then it sleeps on."""
        if self.asleep is None or self.model.cache is not NO_CACHE:
            return
        try:
            with memory_errors():
                self.asleep.come_back()
                self.model.adapters.move(self.model.device)
                self.resize(self.kv.blocks)
                self.make_room(self.capacity)
                self.make_sample_room(self.samples)
                self.asleep.wait()
        except MemoryError:
            self.sleep()
            raise

    def close(self) -> None:
        """Release weights and KV."""
        if self.asleep is not None:
            self.asleep.close()
            self.asleep = None
        if self.host is not None:
            self.host.close()
            self.host = None
        self.graphs.forget()
        self.graphs.launches = ()
        self.model.uploaded.clear()
        self.model.buffers.clear()
        self.model.cache = NO_CACHE
        if self.model.group is not None:
            self.model.group.leave()


def load(
    program: Program,
    weights: Mapping[str, Tensor],
    kv: KVLayout,
    threads: int,
    place: Place | None = None,
    meter: Meter | None = None,
) -> CUDABackend:
    """Compile `program` over `weights` for the first GPU, or a rank's. `threads` says nothing here.

    A `meter` tells of the memory that a KV cache may fill. Raises MemoryError, and RuntimeError
    where the ranks do not meet.
    """
    on = found_device(0 if place is None else place.rank)
    if place is not None:
        on = replace(on, group=Ranks(place, on.device))
    if meter is None and on.device.type == "cuda":
        meter = device_meter(on.device)
    with memory_errors():
        if kv.filling is None or meter is None:
            return CUDABackend(program, weights, kv, on)
        backend = CUDABackend(program, weights, replace(kv, blocks=kv.filling.sequences), on)
        blocks = blocks_that_fit(backend.model, backend.run, kv.filling, meter)
        backend.resize(blocks if on.group is None else on.group.least(blocks))
        return backend
