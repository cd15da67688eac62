"""What a step reads: every array of a batch in one buffer on the device, filled by one copy.

The arrays keep their places from step to step, so a captured graph finds those of the next step
where it found the last one's. A batch that needs more room than there is moves everything to a
larger buffer; `Arena.generation` then changes, and graphs captured before are void.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ..base import Batch, Int32
from .prefixes import shared_runs
from .tiles import Tiles, plan_tiles

PLANNED = ("tiles", "merges", "members", "bases")  # the arrays of `Tiles`
SMALLEST = 1024


@dataclass(frozen=True, slots=True)
class View:
    """Whose KV a row sees: the attributes of attention that shape its tiles."""

    window: int
    causal: bool


@dataclass(frozen=True, slots=True)
class Planned:
    """One view's tiles on the device, and how many partial results they leave."""

    tiles: torch.Tensor
    merges: torch.Tensor
    members: torch.Tensor
    bases: torch.Tensor
    counts: torch.Tensor  # tiles, width of the block tables, merges, 0
    partials: int


@dataclass(frozen=True, slots=True)
class Step:
    """The device's arrays of one step, int32; `rows` and `samples` include padding."""

    rows: int
    samples: int
    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    types: torch.Tensor
    row_starts: torch.Tensor
    sampled_rows: torch.Tensor
    tables: torch.Tensor
    planned: Mapping[View, Planned]
    adapted: Mapping[int, torch.Tensor]  # the rows of each adapter
    carried: torch.Tensor | None = None  # as in `Batch`


class Arena:
    """The buffer on the device and its twin on the host."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.copied: torch.cuda.Event | None = None  # the device has read the twin
        self.generation = 0
        self.move({})

    def move(self, rooms: dict[str, int]) -> None:
        """Take buffers of these rooms; where there is no memory, the old ones stay."""
        size = sum(rooms.values())
        host = torch.zeros(size, dtype=torch.int32, pin_memory=self.device.type == "cuda")
        self.on_device = torch.zeros(size, dtype=torch.int32, device=self.device)
        self.host, self.rooms = host, rooms
        self.generation += 1

    def fill(self, arrays: Mapping[str, Int32]) -> dict[str, torch.Tensor]:
        """Copy the arrays to their places; what is past an array's end in its place is stale.

        An empty array is given one value of its place, for a tensor without any has no address,
        and a captured graph keeps the address for steps where the array is not empty.
        """
        lacking = {
            name: max(SMALLEST, 1 << (array.size - 1).bit_length())
            for name, array in arrays.items()
            if array.size > self.rooms.get(name, -1)
        }
        if lacking:
            self.move(self.rooms | lacking)
        elif self.copied is not None:
            self.copied.synchronize()  # a step may wait for the one before it, and its copy with it
        host, found, begin, used = self.host.numpy(), {}, 0, 0
        for name, room in self.rooms.items():
            if name in arrays:
                array = arrays[name]
                host[begin : begin + array.size] = array.ravel()
                found[name] = self.on_device[begin : begin + max(array.size, 1)]
                used = begin + array.size
            begin += room
        self.on_device[:used].copy_(self.host[:used], non_blocking=True)
        if self.device.type == "cuda":
            self.copied = torch.cuda.current_stream().record_event()
        return found


def upload_step(
    arena: Arena,
    batch: Batch,
    views: Mapping[View, int],
    block_size: int,
    programs: int,
    padded: int | None,
    adapted: Mapping[int, torch.Tensor],
) -> Step:
    """Plan a batch and put it on the device.

    `views` gives the query rows of a tile for each view, to be shared among `programs` programs a
    KV head. Up to `padded` rows are added, of no
    sequence and with no slot, and as many samples of row 0.
    """
    rows, samples = len(batch.tokens), len(batch.sampled_rows)
    more = 0 if padded is None else padded - rows
    more_samples = 0 if padded is None else padded - samples
    zeros = np.zeros(len(batch.tokens), np.int32)
    arrays = {
        "tokens": pad(batch.tokens, more, 0),
        "positions": pad(batch.positions, more, 0),
        "slots": pad(batch.slots, more, -1),
        "types": pad(zeros if batch.types is None else batch.types, more, 0),
        "row_starts": batch.row_starts,
        "sampled_rows": pad(batch.sampled_rows, more_samples, 0),
    }
    if batch.carried is not None:
        arrays["carried"] = pad(batch.carried, more, -1)
    plans: dict[View, Tiles] = {}
    runs = shared_runs(batch, block_size)
    for view, tile_rows in views.items():
        alike = runs if view.causal else ()
        plan = plan_tiles(batch, tile_rows, view.window, view.causal, programs, alike)
        plans[view] = plan
        counts = [len(plan.tiles), batch.block_tables.shape[1], len(plan.merges), 0]
        arrays[f"counts {view}"] = np.array(counts, np.int32)
        for name in PLANNED:
            arrays[f"{name} {view}"] = getattr(plan, name)
    arrays["tables"] = batch.block_tables
    there = arena.fill(arrays)
    return Step(
        rows=rows + more,
        samples=samples + more_samples,
        planned={
            view: Planned(
                **{name: there[f"{name} {view}"] for name in (*PLANNED, "counts")},
                partials=plan.partials,
            )
            for view, plan in plans.items()
        },
        adapted=adapted,
        **{name: array for name, array in there.items() if " " not in name},
    )


def pad(array: Int32, more: int, value: int) -> Int32:
    """The array with `more` values after it."""
    return np.pad(array, (0, more), constant_values=value) if more > 0 else array
