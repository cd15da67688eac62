"""Rank 0: a backend over its own part, which has the other ranks run every step with it.

It is the engine that schedules, samples and answers; another rank (`follower`) gets the arrays of
each batch over a socket pair, and does as it is told. A rank ends when its channel closes, so none
outlives the engine; the engine's process ends when a rank does, for its part of the model is gone
and a step may wait for it for ever: whoever supervises the process starts all of them again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..backends.base import (
    Backend,
    Batch,
    Float32,
    GroupLost,
    KVLayout,
    Pending,
    Place,
    Sampled,
    SamplingRows,
)
from ..backends.choice import load_by_name
from ..models.program import Program
from ..models.sharding import Shard, shard
from ..options import Quantization
from ..weights.lowrank import LowRank
from ..weights.tensor import Tensor
from .wire import Closed, adapter_message, packed, receive, step_message, watch

STOP_GRACE = 5.0  # seconds
LOST = 1  # the status of a process whose rank was lost

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """What all ranks load. `served` is the longest sequence, as `models.checkpoint` takes it."""

    path: Path
    backend: str
    size: int
    kv: KVLayout
    served: int
    threads: int
    quantization: Quantization | None


@dataclass(frozen=True, slots=True)
class Follower:
    """Another rank's process, and our end of its channel."""

    rank: int
    process: subprocess.Popen[bytes]
    channel: socket.socket

    def tell(self, message: bytes) -> None:
        """Send a message. Raises GroupLost."""
        try:
            self.channel.sendall(message)
        except OSError as error:
            raise GroupLost(f"rank {self.rank} ended") from error

    def hear(self, kind: str) -> None:
        """Wait for its answer. Raises ValueError or MemoryError as it did, GroupLost."""
        try:
            message = receive(self.channel)
        except Closed as error:
            raise GroupLost(f"rank {self.rank} ended") from error
        if message.kind == "failed":
            said = f"rank {self.rank}: {message.content['message']}"
            raise MemoryError(said) if message.content["memory"] else ValueError(said)
        if message.kind != kind:
            raise GroupLost(f"rank {self.rank} said {message.kind}, expected {kind}")

    def end(self) -> None:
        """See it end, on the end of its channel; kill it where it does not."""
        self.channel.close()
        try:
            self.process.wait(STOP_GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Others:
    """All ranks but 0."""

    def __init__(self, job: Job, meeting: int) -> None:
        """Start their processes. Raises OSError."""
        self.followers: list[Follower] = []
        self.closing = False
        try:
            for rank in range(1, job.size):
                self.followers.append(start(job, rank, meeting))
        except BaseException:
            self.end()
            raise
        watch({one.rank: one.channel for one in self.followers}, self.lost)

    def lost(self, rank: int) -> None:
        """A rank's process ended: end this one, whatever it waits for."""
        if not self.closing:
            log.error("rank %d of %d ended, and with it all", rank, len(self.followers) + 1)
            os._exit(LOST)

    def tell(self, message: bytes) -> None:
        """Send to all. Raises GroupLost."""
        for follower in self.followers:
            follower.tell(message)

    def hear(self, kind: str) -> None:
        """Wait for the answers of all. Raises as `Follower.hear`."""
        for follower in self.followers:
            follower.hear(kind)

    def dismiss(self) -> None:
        """Ask them to end; from now on it is no loss."""
        self.closing = True
        with contextlib.suppress(GroupLost):
            self.tell(packed("stop"))

    def end(self) -> None:
        """See all of them end."""
        self.closing = True
        for follower in self.followers:
            follower.end()


@dataclass(slots=True)
class Step:
    """A step of all ranks."""

    pending: Pending
    chosen: bool

    def choose(self, rows: SamplingRows) -> None:
        """Sample, here. Raises ValueError, MemoryError."""
        self.pending.choose(rows)
        self.chosen = True

    def wait(self) -> Sampled:
        """What was chosen. Raises as the backend does, and GroupLost."""
        try:
            return self.pending.wait()
        except RuntimeError as error:
            raise GroupLost("the step failed beside other ranks") from error


class Leader:
    """The ranks of one model as one backend. `ending` releases what it holds."""

    def __init__(self, backend: Backend, own: Shard, others: Others, ending: ExitStack) -> None:
        self.backend = backend
        self.own = own
        self.others = others
        self.ending = ending
        self.kv, self.queues = backend.kv, backend.queues
        self.size = len(others.followers) + 1

    def launch(self, batch: Batch, after: Pending | None = None) -> Step:
        """Tell all ranks of the step and begin it. Raises GroupLost, ValueError."""
        before = after.pending if isinstance(after, Step) else after
        if batch.carried is not None:
            if not isinstance(after, Step) or not after.chosen:
                raise ValueError("carried tokens need a step before that chooses them")
            if not self.queues:
                batch.fill(after.wait())
                batch = replace(batch, carried=None)
        self.others.tell(step_message(batch))
        try:
            return Step(self.backend.launch(batch, before), batch.sampling is not None)
        except Exception as error:
            raise GroupLost("a step failed on rank 0") from error

    def run(self, batch: Batch) -> Sampled:
        """Run the program and sample."""
        return self.launch(batch).wait()

    def logits(self, batch: Batch) -> Float32:
        """Float32 [samples, vocabulary]. Raises GroupLost."""
        self.others.tell(step_message(batch))
        try:
            return self.backend.logits(batch)
        except Exception as error:
            raise GroupLost("a step failed on rank 0") from error

    def kernels(self) -> Mapping[str, str]:
        """Those of rank 0; the others have the same."""
        return self.backend.kernels()

    def load_adapter(self, number: int, deltas: Mapping[str, LowRank]) -> None:
        """Each rank takes its part. Raises ValueError, MemoryError: then no rank has it."""
        self.backend.load_adapter(number, self.own.changes(deltas))
        self.others.tell(adapter_message(number, deltas))
        failed: Exception | None = None
        having = []
        for follower in self.others.followers:
            try:
                follower.hear("adapted")
                having.append(follower)
            except (ValueError, MemoryError) as error:
                failed = error
        if failed is not None:
            self.backend.drop_adapter(number)
            for follower in having:
                follower.tell(packed("drop_adapter", number=number))
            raise failed

    def drop_adapter(self, number: int) -> None:
        """Release an adapter on all ranks."""
        self.others.tell(packed("drop_adapter", number=number))
        self.backend.drop_adapter(number)

    def close(self) -> None:
        """End the other ranks, release weights and KV."""
        self.ending.close()


def lead(job: Job, program: Program, weights: Mapping[str, Tensor]) -> Leader:
    """Start the other ranks, load every part, and wait until all are there.

    Raises UnsupportedProgram (it cannot be cut), ValueError, MemoryError, OSError, GroupLost.
    """
    own = shard(program, weights, 0, job.size)
    with ExitStack() as ending:
        # a file of no folder: nothing is left of it, however the processes end
        meeting = os.memfd_create("headrace-ranks")
        ending.callback(os.close, meeting)
        others = Others(job, meeting)
        ending.callback(others.end)
        others.hear("cut")
        place = Place(0, job.size, path_of(meeting))
        backend = load_by_name(job.backend, own.program, own.weights, job.kv, job.threads, place)
        ending.callback(backend.close)
        ending.callback(others.dismiss)
        others.hear("ready")
        return Leader(backend, own, others, ending.pop_all())


def path_of(descriptor: int) -> Path:
    """Where a process that has an open file finds it."""
    return Path(f"/proc/self/fd/{descriptor}")


def start(job: Job, rank: int, meeting: int) -> Follower:
    """Start a rank's process and tell it what to load. Raises OSError."""
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "headrace.runtime.ranks.follower", str(theirs.fileno())],
                pass_fds=(theirs.fileno(), meeting),
                stdin=subprocess.DEVNULL,
            )
        except BaseException:
            ours.close()
            raise
    where = {"path": str(job.path), "meeting": str(path_of(meeting)), "rank": rank}
    ours.sendall(packed("load", **{**asdict(job), **where}))
    return Follower(rank, process, ours)
