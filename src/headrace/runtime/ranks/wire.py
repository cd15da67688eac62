"""What rank 0 and another rank say to each other: a small JSON head, then arrays as they are.

To a rank:    load (the model, and its place: the first message) · step (the arrays of a batch) ·
              load_adapter, drop_adapter · stop
From a rank:  cut (its part is read, and can be cut) · ready · adapted · failed (and why)

A message is two sizes of four bytes, of the head and of the arrays.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends.base import Batch
from ..weights.lowrank import LowRank

SENT = tuple(field.name for field in fields(Batch) if field.name != "sampling")
SIZES = struct.Struct("<IQ")
Array = NDArray[Any]


class Closed(ConnectionError):
    """The other side is gone."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message: its kind, what JSON says, and arrays by name."""

    kind: str
    content: Mapping[str, Any]
    arrays: Mapping[str, Array]


def packed(kind: str, arrays: Mapping[str, Array] | None = None, **content: Any) -> bytes:
    """A message as it goes over the channel."""
    arrays = arrays or {}
    shapes = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    head = json.dumps([kind, content, shapes], separators=(",", ":")).encode()
    bodies = [array.tobytes() for array in arrays.values()]
    return b"".join([SIZES.pack(len(head), sum(map(len, bodies))), head, *bodies])


def receive(channel: socket.socket) -> Message:
    """The next message; its arrays may be written to. Raises Closed."""
    sizes = SIZES.unpack(exactly(channel, SIZES.size))
    kind, content, shapes = json.loads(exactly(channel, sizes[0]))
    body, begin, arrays = exactly(channel, sizes[1]), 0, {}
    for name, dtype, shape in shapes:
        count = int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(body, dtype, count, begin).reshape(shape)
        arrays[name], begin = array, begin + array.nbytes
    return Message(kind, content, arrays)


def exactly(channel: socket.socket, size: int) -> bytearray:
    """So many bytes. Raises Closed."""
    found = bytearray(size)
    view = memoryview(found)
    while view:
        try:
            count = channel.recv_into(view)
        except ConnectionError as error:
            raise Closed(str(error)) from error
        if count == 0:
            raise Closed("the channel was closed")
        view = view[count:]
    return found


def step_message(batch: Batch) -> bytes:
    """The arrays of a batch: all but how its tokens are chosen, which is rank 0's business."""
    there = ((name, getattr(batch, name)) for name in SENT)
    return packed("step", {name: array for name, array in there if array is not None})


def read_batch(message: Message) -> Batch:
    """The batch of a `step`."""
    return Batch(**message.arrays, sampling=None)


def adapter_message(number: int, deltas: Mapping[str, LowRank]) -> bytes:
    """An adapter's changes, whole: each rank cuts its part."""
    arrays = {}
    for name, delta in deltas.items():
        arrays[f"{name} down"], arrays[f"{name} up"] = delta.down, delta.up
    scales = {name: delta.scale for name, delta in deltas.items()}
    return packed("load_adapter", arrays, number=number, scales=scales)


def read_deltas(message: Message) -> dict[str, LowRank]:
    """The changes of a `load_adapter`."""
    return {
        name: LowRank(message.arrays[f"{name} down"], message.arrays[f"{name} up"], scale)
        for name, scale in message.content["scales"].items()
    }


def watch(channels: Mapping[int, socket.socket], lost: Callable[[int], None]) -> None:
    """Call `lost` with the rank whose channel is closed by its other side, from a thread.

    Whoever waits for a rank inside a step hears of its end by this alone.
    """
    poll = select.poll()
    ranks = {channel.fileno(): rank for rank, channel in channels.items()}
    for number in ranks:
        poll.register(number, 0)  # a closed channel is told without being asked for

    def wait() -> None:
        for number, _ in poll.poll():
            lost(ranks[number])

    threading.Thread(target=wait, daemon=True, name="ranks").start()
