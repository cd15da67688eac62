"""A rank other than 0: `python -m headrace.runtime.ranks.follower FD`.

FD is one end of a socket pair that carries `ranks.wire`. It loads its part of the model and runs
every step it is told of; it samples nothing and answers nobody. It ends when the channel closes, or
when a step fails: the others cannot go on without it, and start anew.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from pathlib import Path

from ..backends.base import Backend, Filling, KVLayout, Pending, Place
from ..backends.choice import load_by_name
from ..models.assembly import decoder_program
from ..models.checkpoint import load_description
from ..models.sharding import Shard, shard
from .wire import Closed, Message, packed, read_batch, read_deltas, receive, watch

HEARD = 5.0  # seconds that rank 0 has to hear why a rank failed, before that one ends

log = logging.getLogger(__name__)


def main() -> None:
    """Load, say so, and run steps until the channel closes."""
    logging.basicConfig(format="rank %(levelname)s %(name)s: %(message)s")
    # as in `runtime.worker`: whoever started us handles them
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = socket.socket(fileno=int(sys.argv[1]))
    watch({0: channel}, lambda _: os._exit(0))
    try:
        try:
            message = receive(channel)
            place = Place(
                message.content["rank"], message.content["size"], Path(message.content["meeting"])
            )
            own = cut(message, place)
            channel.sendall(packed("cut"))
            backend = load(message, place, own)
        except (ValueError, OSError, MemoryError) as error:
            log.error("%s", error)
            channel.sendall(failure(error))
            # rank 0 may wait for this one, among all ranks, and not for its answer
            channel.settimeout(HEARD)
            receive(channel)
            return
        channel.sendall(packed("ready"))
        serve(backend, own, channel)
    except (Closed, TimeoutError):
        return
    backend.close()


def cut(message: Message, place: Place) -> Shard:
    """This rank's part of the model. Raises WeightsError, UnsupportedProgram, OSError."""
    asked = message.content
    described = load_description(
        Path(asked["path"]), asked["served"], asked["quantization"], asked["threads"]
    )
    program = decoder_program(described.architecture)
    return shard(program, described.weights, place.rank, place.size)


def load(message: Message, place: Place, own: Shard) -> Backend:
    """The backend over the part, once all ranks are there. Raises ValueError, MemoryError."""
    asked = message.content
    filling = asked["kv"]["filling"]
    kv = KVLayout(**{**asked["kv"], "filling": filling and Filling(**filling)})
    return load_by_name(asked["backend"], own.program, own.weights, kv, asked["threads"], place)


def serve(backend: Backend, own: Shard, channel: socket.socket) -> None:
    """Do as rank 0 says, until it says stop. Raises Closed, and whatever a step raises."""
    before: Pending | None = None
    while (message := receive(channel)).kind != "stop":
        match message.kind:
            case "step":
                batch = read_batch(message)
                before = backend.launch(batch, before if batch.carried is not None else None)
            case "load_adapter":
                channel.sendall(adapt(backend, own, message))
            case "drop_adapter":
                backend.drop_adapter(message.content["number"])


def adapt(backend: Backend, own: Shard, message: Message) -> bytes:
    """Take an adapter in: the answer."""
    try:
        changes = own.changes(read_deltas(message))
        backend.load_adapter(message.content["number"], changes)
    except (ValueError, MemoryError) as error:
        return failure(error)
    return packed("adapted")


def failure(error: Exception) -> bytes:
    """The message that says what was wrong."""
    text = str(error) or type(error).__name__
    return packed("failed", message=text, memory=isinstance(error, MemoryError))


if __name__ == "__main__":
    main()
