"""What drafts are worth: the same engine with and without them, text by text, batch by batch.

    python benchmarks/speculation.py [--model smollm2-135m] [--rounds 5] [--output speculation]

Two engines answer the same requests one after the other, in an order that changes: each plans its
next step while one runs, so that steps in turn would run beside each other. The drafts change sides
after every round: two copies of a model differ by some percent, as their pages fall. The ratio of
output tokens per second is the median over pairs of rounds, of a pair the geometric mean.
The texts of both are compared, token by token: drafts never change them.

- `repetitive`: greedy answers of a small model that soon says the same again.
- `fresh`: sampled at temperature 1, so that hardly anything comes twice.
- `known`: greedy answers to prompts of one template, like what other requests got before.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from statistics import geometric_mean, median
from typing import Any

from setting import keep, setting

from headrace.registry.pull import pull
from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.request import Request, SamplingParameters
from headrace.runtime.speculation.speculator import Speculator

BATCHES = (1, 8, 32)
TOPICS = ("water wheels", "lighthouses", "violins", "bees", "bridges", "salt", "maps", "clocks")
SAMPLED = SamplingParameters(max_tokens=64, temperature=1.0, ignore_eos=True)
GREEDY = replace(SAMPLED, temperature=0.0)


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of text: `request(batch row, round)`."""

    name: str
    request: Callable[[int, int], Request]


def asked(name: str, row: int, prompt: str, sampling: SamplingParameters) -> Request:
    """A request with its own name."""
    return Request(f"{name} {row}", prompt, sampling)


def repetitive(row: int, turn: int) -> Request:
    """Greedy."""
    topic = TOPICS[row % len(TOPICS)]
    prompt = f"List number {turn}-{row} of everything about {topic}: 1."
    return asked("repetitive", row, prompt, GREEDY)


def fresh(row: int, turn: int) -> Request:
    """Sampled, with a seed that never came before."""
    topic = TOPICS[row % len(TOPICS)]
    prompt = f"A story about {topic} that nobody has heard."
    return asked("fresh", row, prompt, replace(SAMPLED, seed=1000 * turn + row))


def known(row: int, turn: int) -> Request:
    """Greedy, from prompts that differ in a number."""
    prompt = f"Request {turn}. Explain in detail what {TOPICS[row % len(TOPICS)]} are."
    return asked("known", row, prompt, GREEDY)


WORKS = (Work("repetitive", repetitive), Work("fresh", fresh), Work("known", known))


def play(engine: Engine, requests: list[Request]) -> tuple[float, list[list[int]]]:
    """Answer the requests: output tokens a second from all first tokens on, and the tokens."""
    for request in requests:
        engine.submit(request)
    tokens = {request.id: list[int]() for request in requests}
    began, begun = 0.0, 0
    while not engine.idle:
        for output in engine.step():
            tokens[output.id] += output.tokens
        if not begun and all(tokens.values()):
            began, begun = time.perf_counter(), sum(map(len, tokens.values()))
    speed = (sum(map(len, tokens.values())) - begun) / (time.perf_counter() - began)
    return speed, list(tokens.values())


def drafting(engines: dict[str, Engine]) -> Speculator:
    """A copy of what makes the drafts."""
    speculator = engines["with"].speculator
    if speculator is None:
        raise RuntimeError("nothing makes drafts")
    return copy(speculator)


def swap(engines: dict[str, Engine]) -> None:
    """Let the other engine draft."""
    first, second = engines["with"], engines["without"]
    loops = first.loop, second.loop
    loops[0].speculator, loops[1].speculator = loops[1].speculator, loops[0].speculator
    engines["with"], engines["without"] = second, first


def measure(work: Work, batch: int, rounds: int, engines: dict[str, Engine]) -> dict[str, Any]:
    """One row of figures, printed as it is made."""
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    before = drafting(engines)
    for turn in range(rounds + 1):  # the first warms up
        requests = [work.request(row, turn) for row in range(batch)]
        order = list(engines) if turn % 4 < 2 else list(reversed(engines))
        found = {name: play(engines[name], requests) for name in order}
        if found["with"][1] != found["without"][1]:
            raise RuntimeError("drafts changed a text")
        if turn:
            for name, (speed, _) in found.items():
                speeds[name].append(speed)
        swap(engines)
    after = drafting(engines)
    ratios = [a / b for a, b in zip(speeds["with"], speeds["without"], strict=True)]
    drafted = after.drafted - before.drafted
    row = {
        "text": work.name,
        "batch": batch,
        "without": round(median(speeds["without"]), 1),
        "with": round(median(speeds["with"]), 1),
        "ratio": round(median(map(geometric_mean, zip(*[iter(ratios)] * 2, strict=True))), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "drafted": drafted,
        "accepted": round((after.accepted - before.accepted) / drafted, 2) if drafted else None,
    }
    print(
        f"{work.name:<11} batch {batch:>2}  {row['without']:7.1f} tok/s without  "
        f"{row['with']:7.1f} with  ratio {row['ratio']:.2f}  "
        f"drafted {drafted}, accepted {row['accepted']}",
        flush=True,
    )
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="a reference")
    parser.add_argument("--rounds", type=int, default=6, help="even")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--texts", nargs="+", default=[work.name for work in WORKS])
    parser.add_argument("--output", help="name of a file in benchmarks/results")
    arguments = parser.parse_args()
    about, path = setting(), pull(arguments.model)
    options = EngineOptions(kv_tokens=16_384, overlap=False)  # a step of each in turn, whole
    engines = {
        "with": Engine.load(path, options),
        "without": Engine.load(path, replace(options, speculation=False)),
    }
    rows = [
        measure(work, batch, arguments.rounds, engines)
        for work in WORKS
        if work.name in arguments.texts
        for batch in arguments.batches
    ]
    if arguments.output:
        keep(arguments.output, {"setting": about, "model": arguments.model, "rows": rows})


if __name__ == "__main__":
    main()
