"""Bytes of a mapped file to the device: by way of two pinned buffers, one of which is filled by
several threads while the other is copied from."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

import numpy as np
import torch
from numpy.typing import NDArray

PIECE = 32 * 2**20  # bytes of a buffer
THREADS = 4  # that read the file's pages and copy them


class Staging:
    """The buffers, from the first copy until `close`; a later copy makes them anew."""

    def __init__(self, device: torch.device, piece: int = PIECE) -> None:
        self.device = device
        self.piece = piece
        self.pool: ThreadPoolExecutor | None = None
        self.buffers: Iterator[tuple[torch.Tensor, torch.cuda.Event]] = iter(())

    def open(self) -> ThreadPoolExecutor:
        """Make the buffers, where there are none."""
        if self.pool is None:
            self.pool = ThreadPoolExecutor(THREADS)
            if self.device.type == "cuda":
                pairs = [
                    (
                        torch.empty(self.piece, dtype=torch.uint8, pin_memory=True),
                        torch.cuda.Event(),  # type: ignore[no-untyped-call]
                    )
                    for _ in range(2)
                ]
                self.buffers = cycle(pairs)
        return self.pool

    def copy(self, source: NDArray[np.uint8], out: torch.Tensor) -> None:
        """The bytes of `source` to `out`, uint8 of as many on the device; both contiguous."""
        pool, flat = self.open(), source.reshape(-1)
        for begin in range(0, flat.size, self.piece):
            piece, there = flat[begin : begin + self.piece], out[begin : begin + self.piece]
            if self.device.type != "cuda":
                spread(pool, piece, there.numpy())
                continue
            buffer, copied = next(self.buffers)
            copied.synchronize()  # what was in it has reached the device
            spread(pool, piece, buffer.numpy()[: piece.size])
            there.copy_(buffer[: piece.size], non_blocking=True)
            copied.record()

    def close(self) -> None:
        """Let go of the buffers and the threads; what was copied is there."""
        if self.pool is not None:
            self.pool.shutdown()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        self.pool, self.buffers = None, iter(())


def spread(pool: ThreadPoolExecutor, source: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Copy with all threads."""
    share = -(-source.size // THREADS)
    parts = [slice(begin, begin + share) for begin in range(0, source.size, max(1, share))]
    list(pool.map(lambda part: np.copyto(out[part], source[part]), parts))
