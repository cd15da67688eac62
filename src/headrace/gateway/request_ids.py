"""Request ids: the caller's own where it can serve, else one of ours."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeGuard

HEADER = "x-request-id"
REMEMBERED = 4096  # callers' ids that are not taken twice

_USABLE = re.compile(r"[\x21-\x7e]{1,64}")


class RequestIds:
    """Gives each call its id, which is also the id of its record and so must be new.

    A caller's id is kept where it is short and printable and was not among the last `REMEMBERED`.
    """

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._taken: OrderedDict[str, None] = OrderedDict()

    def take(self, theirs: str | None) -> str:
        """The id of a call whose caller sent `theirs`."""
        if not usable(theirs) or theirs in self._taken:
            return new(self._new_id)
        self._taken[theirs] = None
        if len(self._taken) > REMEMBERED:
            self._taken.popitem(last=False)
        return theirs


def new(new_id: Callable[[], str]) -> str:
    """An id of ours."""
    return f"req_{new_id()}"


def usable(theirs: str | None) -> TypeGuard[str]:
    """Whether a caller's id is short and printable."""
    return theirs is not None and _USABLE.fullmatch(theirs) is not None
