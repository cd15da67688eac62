"""A device whose memory runs out when a test says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

NONE: Mapping[str, Any] = {}


class Refusing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is in force, `refuses(number, result)` says which torch operations find no memory:
    the number of the operation, and what it would have given."""

    def __init__(self, refuses: Callable[[int, Any], bool]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.refuses = refuses
        self.number = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        found = func(*args, **(kwargs or NONE))
        self.number += 1
        if self.refuses(self.number, found):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return found
