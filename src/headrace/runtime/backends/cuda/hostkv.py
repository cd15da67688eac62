"""KV blocks in pinned host memory, copied beside the steps.

A block's keys and values of all layers, and their scales, are one row of bytes on the host. Blocks
that go out are gathered into a buffer of the device by the stream of the steps, before the next one
may write over them, and leave on a stream beside it, neighbouring rows by one copy; blocks that
come in take the same way back, all of it beside the steps. Nothing here waits on the host, and
nothing is allocated once it is built.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby

import torch

from ..base import Move
from .model import Model
from .pinned import Pinned
from .running import memory_errors

CHUNK = 8  # blocks that are gathered for one copy


@dataclass(frozen=True, slots=True)
class Copied:
    """Moves that were begun; `ended` None: on a CPU, which is done with them."""

    ended: torch.cuda.Event | None

    def done(self) -> bool:
        """Whether they are over."""
        return self.ended is None or bool(self.ended.query())  # type: ignore[no-untyped-call]

    def join(self) -> None:
        """Let later steps wait for their end."""
        if self.ended is not None:
            torch.cuda.current_stream().wait_event(self.ended)


class HostKV:
    """The rows of one model's blocks, and the way to them."""

    def __init__(self, model: Model) -> None:
        """Raises MemoryError; ValueError where the bytes do not hold a block."""
        self.model = model
        self.row = model.cache.bytes // model.kv.blocks
        self.blocks = model.kv.host_bytes // self.row
        if not self.blocks:
            raise ValueError(
                f"kv_offload: {model.kv.host_bytes} bytes hold no KV block; one has {self.row}"
            )
        self.memory = Pinned(self.blocks * self.row, model.device)
        self.rows = self.memory.bytes.view(self.blocks, self.row)
        self.beside: torch.cuda.Stream | None = None
        if model.device.type == "cuda":
            self.beside = torch.cuda.Stream(model.device)  # type: ignore[no-untyped-call]
        self.leaving = [Stage(model, self.row) for _ in range(2)]
        self.coming = Stage(model, self.row)

    def copy(self, moves: Sequence[Move]) -> Copied:
        """Begin moves, in order. Raises MemoryError; then those that were begun are over."""
        try:
            with memory_errors():
                for out, some in groupby(moves, key=lambda move: move.out):
                    same = list(some)
                    for begin in range(0, len(same), CHUNK):
                        (self.send if out else self.bring)(same[begin : begin + CHUNK])
        except BaseException:
            self.wait()
            raise
        return Copied(self.mark())

    def send(self, moves: Sequence[Move]) -> None:
        """Gather blocks, then copy them to the host."""
        stage = self.leaving.pop(0)  # of two, so that one is gathered while the other leaves
        self.leaving.append(stage)
        stage.free.join()
        for parts, move in zip(stage.parts, moves, strict=False):
            for part, cache in zip(parts, blocks_of(self.model), strict=True):
                part.copy_(cache[:, move.block])
        with self.after_steps():
            for at, slot, count in runs(moves):
                rows = stage.rows[at : at + count]
                self.rows[slot : slot + count].copy_(rows, non_blocking=True)
        stage.free = Copied(self.mark())

    def bring(self, moves: Sequence[Move]) -> None:
        """Copy rows to the device, then scatter them to their blocks."""
        stage = self.coming
        with self.after_steps():
            for at, slot, count in runs(moves):
                rows = self.rows[slot : slot + count]
                stage.rows[at : at + count].copy_(rows, non_blocking=True)
            for parts, move in zip(stage.parts, moves, strict=False):
                for part, cache in zip(parts, blocks_of(self.model), strict=True):
                    cache[:, move.block].copy_(part)

    def after_steps(self) -> AbstractContextManager[object]:
        """The stream beside, once it has come to where the steps are now."""
        if self.beside is None:
            return nullcontext()
        self.beside.wait_stream(torch.cuda.current_stream())
        return torch.cuda.stream(self.beside)

    def mark(self) -> torch.cuda.Event | None:
        """This place of the stream beside."""
        return None if self.beside is None else self.beside.record_event()

    def wait(self) -> None:
        """Wait until all moves are over."""
        if self.beside is not None:
            self.beside.synchronize()

    def close(self) -> None:
        """Release the rows."""
        self.wait()
        self.rows = self.rows[:0]
        self.memory.release()


class Stage:
    """Rows of `CHUNK` blocks on the device, and their parts as the cache has them; `free` once
    what was put there has left."""

    def __init__(self, model: Model, row: int) -> None:
        self.rows = torch.empty((CHUNK, row), dtype=torch.uint8, device=model.device)
        self.parts = [list(parts_of(one, model)) for one in self.rows]
        self.free = Copied(None)


def blocks_of(model: Model) -> list[torch.Tensor]:
    """The cache's tensors as [layers, blocks, values of a block]."""
    layers, blocks = model.program.layers, model.kv.blocks
    return [one.view(layers, blocks, -1) for one in model.cache.tensors if one is not None]


def parts_of(row: torch.Tensor, model: Model) -> Iterator[torch.Tensor]:
    """A row's bytes as what `blocks_of` has of one block, [layers, values] each."""
    begin = 0
    for one in blocks_of(model):
        layers, _, values = one.shape
        end = begin + layers * values * one.element_size()
        yield row[begin:end].view(one.dtype).view(layers, values)
        begin = end


def runs(moves: Sequence[Move]) -> Iterator[tuple[int, int, int]]:
    """Moves whose slots follow one another: where among the moves, the first slot, how many."""
    begin = 0
    for at in range(1, len(moves) + 1):
        if at == len(moves) or moves[at].slot != moves[at - 1].slot + 1:
            yield begin, moves[begin].slot, at - begin
            begin = at
