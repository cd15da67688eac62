"""Host memory that a GPU copies from and to at the full rate of its link: page-locked."""

from __future__ import annotations

from typing import Any

import torch

runtime: Any = torch.cuda.cudart  # loads the driver: called where there is a GPU


class Pinned:
    """`bytes` of the host, uint8 [size], locked where the device is a GPU.

    They are registered and not taken from torch's allocator of pinned memory, which rounds up to
    powers of two and keeps what it once had.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        """Raises MemoryError."""
        try:
            self.bytes = torch.empty(size, dtype=torch.uint8)
        except RuntimeError as error:  # torch has no other word for it on the host
            raise MemoryError(f"the host has no {size / 2**30:.2f} GiB: {error}") from error
        self.locked = device.type == "cuda"
        if self.locked:
            code = int(runtime().cudaHostRegister(self.bytes.data_ptr(), size, 0))
            if code:
                raise MemoryError(f"{size / 2**30:.2f} GiB of the host cannot be locked: {code}")

    def release(self) -> None:
        """Give the memory back; nothing reads or writes it any more."""
        if self.locked:
            runtime().cudaHostUnregister(self.bytes.data_ptr())
        self.bytes, self.locked = torch.empty(0, dtype=torch.uint8), False
