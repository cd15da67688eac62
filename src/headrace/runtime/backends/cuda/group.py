"""The ranks of one model, over torch.distributed: NCCL between GPUs, gloo between processes.

Every call is put on the stream like a kernel, so it can be part of a captured graph.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist

from ..base import Float32, Place


class Ranks:
    """One rank's end of the group; `base.Group` of tensors on the device."""

    def __init__(self, place: Place, device: torch.device) -> None:
        """Wait until all ranks are there. Raises RuntimeError."""
        self.rank, self.size, self.device = place.rank, place.size, device
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, loopback())  # all ranks are on this machine
        on_gpu = device.type == "cuda"
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=dist.FileStore(str(place.meeting), place.size),  # type: ignore[attr-defined]
            rank=place.rank,
            world_size=place.size,
            device_id=device if on_gpu else None,
        )

    def sum(self, rows: torch.Tensor) -> None:
        """Add up all ranks' rows, in place."""
        dist.all_reduce(rows)

    def gather(self, part: torch.Tensor, widths: Sequence[int], out: torch.Tensor) -> None:
        """All ranks' parts [rows, widths[rank]] side by side in rank 0's `out`."""
        if not len(part):
            return
        sent = part
        if part.shape[1] < max(widths):  # parts that travel are of one size
            sent = part.new_zeros((len(part), max(widths)))
            sent[:, : part.shape[1]] = part
        if self.rank:
            dist.gather(sent, dst=0)
            return
        parts = [torch.empty_like(sent) for _ in widths]
        dist.gather(sent, parts, dst=0)
        begin = 0
        for one, width in zip(parts, widths, strict=True):
            out[:, begin : begin + width] = one[:, :width]
            begin += width

    def share(self, values: torch.Tensor) -> torch.Tensor:
        """Rank 0's values, on every rank: in place on the others."""
        dist.broadcast(values, src=0)
        return values

    def least(self, number: int) -> int:
        """The least of all ranks' numbers."""
        found = torch.tensor(number, dtype=torch.int64, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return int(found)

    def leave(self) -> None:
        """Release what the group holds."""
        dist.destroy_process_group()


class OnHost:
    """The same, of numpy's arrays."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.rank, self.size = ranks.rank, ranks.size

    def sum(self, rows: Float32) -> None:
        """As `Ranks.sum`."""
        self.ranks.sum(torch.from_numpy(rows))

    def gather(self, part: Float32, widths: Sequence[int]) -> Float32:
        """All ranks' parts side by side on rank 0; on others their own."""
        found = part if self.rank else np.empty((len(part), sum(widths)), np.float32)
        self.ranks.gather(torch.from_numpy(part), widths, torch.from_numpy(found))
        return found

    def leave(self) -> None:
        """As `Ranks.leave`."""
        self.ranks.leave()


def join_on_host(place: Place) -> OnHost:
    """The group for a backend that computes with numpy. Raises RuntimeError."""
    return OnHost(Ranks(place, torch.device("cpu")))


def loopback() -> str:
    """The interface that reaches nothing but this machine."""
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


def devices() -> int:
    """GPUs that this process may use."""
    return torch.cuda.device_count()
