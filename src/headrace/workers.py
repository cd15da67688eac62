"""Several processes on one port, and the one that watches over them.

The watcher binds a socket for each worker, between which the kernel spreads the connections, and
keeps them: those that come while a worker is being replaced wait for the next. A worker is told
to stop over its line and ignores signals, which a terminal or a service manager sends to the
whole group; where the line closes, the watcher is gone, and the worker stops too.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import selectors
import signal
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

READY, STOP = b"r", b"s"
DELAYS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)  # seconds before a new start, by failed ones in a row
PATIENCE = 30.0  # seconds after which a worker that was told to stop is killed

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Post:
    """What one worker works with: its number from 0, the socket it listens on, and its line."""

    number: int
    listener: socket.socket
    line: socket.socket

    def say_ready(self) -> None:
        """Tell the watcher that calls can come."""
        with contextlib.suppress(OSError):  # it is gone, which the line says too
            self.line.send(READY)


@dataclass(slots=True)
class _Worker:
    pid: int
    line: socket.socket
    ready: bool = False


class Workers:
    """One process for each of `listeners`, running `work`, which gives its exit status.

    `ready` is called once, when all of them take calls. The first worker is waited for before the
    others begin: what it finds wrong is said once, and what it sets up is there for them.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        work: Callable[[Post], int],
        ready: Callable[[], None],
    ) -> None:
        self._listeners = listeners
        self._work = work
        self._ready = ready
        self._workers: dict[int, _Worker] = {}  # by number
        self._due: dict[int, float] = {}  # when those that are not there are started
        self._failures = [0] * len(listeners)
        self._complete = False  # all of them were ready once
        self._stopping = 0  # how often we were told to
        self._until = float("inf")
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        """Watch until SIGINT or SIGTERM, and until the last worker has ended. The exit status: that
        of a worker which failed before all were ready, else 0."""
        gc.collect()
        gc.freeze()  # so that the workers share what is here by now
        status = 0
        wakes, waking = socket.socketpair()
        waking.setblocking(False)
        self._selector.register(wakes, selectors.EVENT_READ)
        before = signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
        handlers = [signal.signal(number, lambda *_: None) for number in signals]
        try:
            self._due[0] = time.monotonic()
            while self._workers or self._due:
                self._start_due()
                for key, _ in self._selector.select(self._wait()):
                    if key.fileobj is wakes:
                        for number in wakes.recv(64):
                            if number != signal.SIGCHLD:
                                self._stop()
                    else:
                        self._hear(key.data)
                status = self._reap() or status
                self._kill_late()
        finally:
            signal.set_wakeup_fd(before)
            for number, handler in zip(signals, handlers, strict=True):
                signal.signal(number, handler)
            self._selector.close()
            wakes.close()
            waking.close()
        return status

    def _wait(self) -> float | None:
        moments = [*self._due.values()]
        if self._stopping:
            moments.append(self._until)
        return max(min(moments) - time.monotonic(), 0.0) if moments else None

    def _start_due(self) -> None:
        now = time.monotonic()
        for number in [number for number, at in self._due.items() if at <= now]:
            del self._due[number]
            self._start(number)

    def _start(self, number: int) -> None:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            self._become(Post(number, self._listeners[number], theirs), ours)
        theirs.close()
        self._workers[number] = _Worker(pid, ours)
        self._selector.register(ours, selectors.EVENT_READ, number)

    def _become(self, post: Post, ours: socket.socket) -> None:
        """Be a worker, and end."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._selector.close()
            for other in (*self._listeners, *(one.line for one in self._workers.values()), ours):
                if other is not post.listener:
                    other.close()
            status = self._work(post)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)  # what the watcher has set up to be done at its end is not ours

    def _hear(self, number: int) -> None:
        worker = self._workers[number]
        try:
            said = worker.line.recv(16)
        except OSError:
            said = b""
        if not said:
            self._selector.unregister(worker.line)
        elif not worker.ready:
            worker.ready = True
            self._failures[number] = 0
            if number == 0 and not self._complete:
                now = time.monotonic()
                self._due.update(dict.fromkeys(range(1, len(self._listeners)), now))
            if not self._complete and self._all_ready():
                self._complete = True
                self._ready()

    def _all_ready(self) -> bool:
        ready = [worker for worker in self._workers.values() if worker.ready]
        return len(ready) == len(self._listeners)

    def _reap(self) -> int:
        """Bury those that have ended; the status of one that never came up, with which all ends."""
        status = 0
        for number, worker in list(self._workers.items()):
            pid, ended = os.waitpid(worker.pid, os.WNOHANG)
            if pid == 0:
                continue
            with contextlib.suppress(KeyError):
                self._selector.unregister(worker.line)
            worker.line.close()
            del self._workers[number]
            if self._stopping:
                continue
            code = os.waitstatus_to_exitcode(ended)
            if not self._complete:
                status = code if code > 0 else 1
                self._stop()
                continue
            how = f"by signal {-code}" if code < 0 else f"with status {code}"
            log.error("Worker %d (pid %d) ended %s; starting it again.", number, pid, how)
            delay = DELAYS[min(self._failures[number], len(DELAYS) - 1)]
            self._failures[number] += 1
            self._due[number] = time.monotonic() + delay
        return status

    def _stop(self) -> None:
        """Take no more calls, and tell the workers; told again, they stop at once."""
        self._stopping += 1
        self._due.clear()
        self._until = min(self._until, time.monotonic() + PATIENCE)
        for listener in self._listeners:
            listener.close()
        for worker in self._workers.values():
            with contextlib.suppress(OSError):
                worker.line.send(STOP)

    def _kill_late(self) -> None:
        if self._stopping and time.monotonic() >= self._until:
            self._until = float("inf")
            for worker in self._workers.values():
                os.kill(worker.pid, signal.SIGKILL)
