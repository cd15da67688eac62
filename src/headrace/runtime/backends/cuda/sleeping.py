"""The weights of a model that sleeps: on the host, in one piece of pinned memory.

They leave the device's memory and come back by one copy, at the rate of the link. The tensors stay
the same to whoever holds them, but lie elsewhere when they are back: captured graphs are void. The
piece on the host is made at the first sleep and kept, so that a later one copies nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .pinned import Pinned

ALIGNMENT = 256  # bytes; what the device's own allocator gives


class Asleep:
    """Tensors of a device, and the host's copy of them."""

    def __init__(self, tensors: Sequence[torch.Tensor], device: torch.device) -> None:
        """Copy them; they stay where they are. Raises MemoryError where the host has no room."""
        self.tensors = tensors
        self.device = device
        self.shapes = [one.shape for one in tensors]
        self.places, end = [], 0
        for one in tensors:
            self.places.append((end, end + one.nbytes))
            end += -(-one.nbytes // ALIGNMENT) * ALIGNMENT
        self.host = Pinned(end, device)
        for one, view in zip(tensors, self.views(self.host.bytes), strict=True):
            view.copy_(one, non_blocking=True)
        self.wait()

    def views(self, piece: torch.Tensor) -> list[torch.Tensor]:
        """The tensors as they lie in a piece of memory."""
        return [
            piece[begin:end].view(one.dtype).view(shape)
            for one, shape, (begin, end) in zip(self.tensors, self.shapes, self.places, strict=True)
        ]

    def leave(self) -> None:
        """Free the tensors' memory on the device."""
        for one in self.tensors:
            one.data = torch.empty(0, dtype=one.dtype, device=self.device)

    def come_back(self) -> None:
        """Take memory on the device, in one piece, and fill it. Raises torch.OutOfMemoryError."""
        piece = torch.empty(len(self.host.bytes), dtype=torch.uint8, device=self.device)
        piece.copy_(self.host.bytes, non_blocking=True)
        for one, view in zip(self.tensors, self.views(piece), strict=True):
            one.data = view

    def wait(self) -> None:
        """Wait until all copies are over."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def close(self) -> None:
        """Release the host's copy."""
        self.host.release()
