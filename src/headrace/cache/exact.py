"""Whole answers under exact keys: bounded by bytes, oldest use out first, every step O(1)."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from headrace.protocol.encoding import Encoded
from headrace.protocol.generation import (
    ChoiceFinished,
    Event,
    Finished,
    PromptScored,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
)

_ENTRY_BYTES = 512  # key, entry, tuple and the map's own share
_pack = msgspec.msgpack.Encoder().encode
_EVENT_BYTES = 64  # one event without its text
_LOGPROB_BYTES = 192  # one log-probability with its text and bytes


@dataclass(frozen=True, slots=True)
class _Entry:
    events: tuple[Event, ...]
    size: int
    expires: float


def storable(events: tuple[Event, ...], *, tool_calls: bool = False) -> bool:
    """Whether an answer may be given again: it ended by itself or at its length, as text.

    A cut or filtered answer is not an answer, and a tool call asks for an effect: it counts only
    for a caller who wants `tool_calls` repeated.
    """
    last = events[-1] if events else None
    if not isinstance(last, Finished):
        return False
    reasons = {last.reason, *(e.reason for e in events if isinstance(e, ChoiceFinished))}
    called = any(isinstance(event, ToolCallDelta) for event in events)
    good = {"stop", "length", "tool_calls"} if tool_calls else {"stop", "length"}
    return reasons <= good and (tool_calls or not called)


def size_of(events: tuple[Event, ...]) -> int:
    """Estimated bytes that `events` hold in memory."""
    return _ENTRY_BYTES + sum(_EVENT_BYTES + _held(event) for event in events)


def _held(event: Event) -> int:
    if isinstance(event, ToolCallDelta):
        return sys.getsizeof(event.arguments)
    if isinstance(event, Encoded):
        return len(_pack(event))
    size = sys.getsizeof(event.text) if isinstance(event, TextDelta | ReasoningDelta) else 0
    if isinstance(event, TextDelta | PromptScored):
        size += _LOGPROB_BYTES * sum(1 + len(one.ranked) for one in event.logprobs)
    return size


class ExactCache:
    """Answers by key, each as the tuple of events it came as. For one event loop.

    `ttl` in seconds, `max_bytes` of estimated memory, `clock` in monotonic seconds.
    """

    def __init__(self, ttl: float, max_bytes: int, clock: Callable[[], float]) -> None:
        self._ttl = ttl
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Estimated bytes held now; never over `max_bytes`."""
        return self._bytes

    def get(self, key: bytes) -> tuple[Event, ...] | None:
        """The answer under `key`, or None if there is none or it is too old."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if self._clock() >= entry.expires:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry.events

    def put(self, key: bytes, events: tuple[Event, ...], *, tool_calls: bool = False) -> bool:
        """Keep `events` under `key`; says whether they were kept.

        They are not where they are not `storable`, or larger than the whole cache.
        """
        if not storable(events, tool_calls=tool_calls):
            return False
        size = size_of(events)
        if size > self._max_bytes:
            return False
        self._drop(key)
        self._entries[key] = _Entry(events, size, self._clock() + self._ttl)
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
        return True

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size
