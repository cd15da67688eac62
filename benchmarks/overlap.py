"""What it is worth that the host works while a step runs: decode steps with and without.

    python benchmarks/overlap.py [--rows 1 16 64] [--output overlap]

One engine decodes as many sequences, and its news go to a reader in another process, as when it
serves. In every round each way is measured once. `x` is the time of a step to that of a loop in
which host and backend take turns. `idle`: from the end of a step on the backend until the next one
has begun. Medians over the rounds, in milliseconds.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

from setting import keep, setting

from headrace.registry.pull import pull
from headrace.runtime.backends.base import Batch, Pending, Sampled, SamplingRows
from headrace.runtime.channel import outputs_frame
from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.request import Request, SamplingParameters

READER = """import socket
channel = socket.socket(fileno={})
while channel.recv(1 << 16):
    pass
"""
STEPS = 48
WAYS = {"in turn": False, "overlapped": True}
PROMPT = "Tell me about river number"


@dataclass
class Watch:
    """Notes for how long the backend of an engine has nothing to do before each step."""

    launch: Callable[[Batch, Pending | None], Pending]
    idle: list[float] = field(default_factory=list)
    ended: float = 0.0

    def __call__(self, batch: Batch, after: Pending | None = None) -> Pending:
        """Launch a step."""
        pending = self.launch(batch, after.inner if isinstance(after, Watched) else None)
        self.idle.append(time.perf_counter() - self.ended)
        return Watched(pending, self)


@dataclass
class Watched:
    """A step whose end is noted."""

    inner: Pending
    watch: Watch
    sampled: Sampled | None = None

    def choose(self, rows: SamplingRows) -> None:
        """As the backend does it."""
        self.inner.choose(rows)

    def wait(self) -> Sampled:
        """As the backend does it."""
        if self.sampled is None:
            self.sampled = self.inner.wait()
            self.watch.ended = time.perf_counter()
        return self.sampled


def decode(engine: Engine, rows: int, watch: Watch, reader: socket.socket) -> tuple[float, float]:
    """Median milliseconds of a step with all rows, and of the backend's wait for it."""
    sampling = SamplingParameters(temperature=0, max_tokens=STEPS, ignore_eos=True)
    for row in range(rows):
        engine.submit(Request(f"{row}", f"{PROMPT} {row}", sampling))
    ends: list[float] = []
    while not engine.idle:
        if len(engine.sequences) < rows or not all(
            one.generated for one in engine.sequences.values()
        ):
            ends.clear()
            watch.idle.clear()
        reader.sendall(outputs_frame(engine.step(), engine.counters()))
        ends.append(time.perf_counter())
        if len(engine.sequences) == rows:
            whole = list(ends), list(watch.idle)
    spent = [later - sooner for sooner, later in pairwise(whole[0])]
    return median(spent) * 1e3, median(whole[1]) * 1e3


def measure(engine: Engine, rows: int, rounds: int, reader: socket.socket) -> dict[str, Any]:
    """One row of figures, printed as it is made."""
    watch = Watch(engine.backend.launch)
    engine.backend.launch = watch  # type: ignore[method-assign]
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, overlap in WAYS.items():
            engine.loop.overlap = overlap
            found[way].append(decode(engine, rows, watch, reader))
    engine.backend.launch = watch.launch  # type: ignore[method-assign,assignment]
    steps = {way: median(step for step, _ in times) for way, times in found.items()}
    idle = {way: median(wait for _, wait in times) for way, times in found.items()}
    x = median(b / a for (a, _), (b, _) in zip(*found.values(), strict=True))
    print(
        f"{rows:3} rows: step {steps['in turn']:6.2f} ms in turn, {steps['overlapped']:6.2f} "
        f"overlapped (x {x:.3f}); idle {idle['in turn']:.2f} and {idle['overlapped']:.2f} ms, "
        f"{idle['overlapped'] / steps['overlapped']:.1%} of a step",
        flush=True,
    )
    return {"rows": rows, "x": x, "step_ms": steps, "idle_ms": idle}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="a reference")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", help="name of a file in benchmarks/results")
    arguments = parser.parse_args()
    about = setting()
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", READER.format(theirs.fileno())]
    options = EngineOptions(kv_tokens=32_768, speculation=False)
    with (
        subprocess.Popen(command, pass_fds=[theirs.fileno()]),
        theirs,
        ours,
        Engine.load(pull(arguments.model), options) as engine,
    ):
        rows = [measure(engine, count, arguments.rounds, ours) for count in arguments.rows]
        ours.shutdown(socket.SHUT_RDWR)
    if arguments.output:
        keep(arguments.output, {"setting": about, "model": arguments.model, "figures": rows})


if __name__ == "__main__":
    main()
