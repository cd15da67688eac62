"""What it costs that a request's tokens and log-probabilities do not depend on its company.

    python benchmarks/invariance.py [--model smollm2-135m] [--output invariance]

First it is checked: one request alone, then beside others, with its prefix computed before, with
its prompt in chunks, and after a preemption; tokens and log-probabilities must be equal to the
last bit. There is no switch for it: on a CPU the engine is always so.

Then the price. A row of a chosen token gets the same arithmetic however many rows a step has; an
engine that did not promise that would take whatever is fastest for so many rows, here also the
bfloat16 products that prompts get. `cost` is the time of a step over the faster of the two, less
one; medians, measured in turn.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from cpu import BATCH_DEPTH, BLOCK, Work, batch, seconds_a_step
from setting import keep, setting

from headrace.registry.pull import pull
from headrace.runtime.backends import cpu
from headrace.runtime.backends.base import KVLayout
from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.models.assembly import decoder_program
from headrace.runtime.models.checkpoint import load_checkpoint
from headrace.runtime.options import Limits
from headrace.runtime.processors import usable_processors
from headrace.runtime.request import Request, SamplingParameters

PROMPT = "The history of the water wheel begins in antiquity. It was used for milling grain, and "
ASKED = SamplingParameters(max_tokens=48, temperature=0.8, seed=5, ignore_eos=True, logprobs=0)
OTHERS = SamplingParameters(max_tokens=64, temperature=1.0, seed=9, ignore_eos=True)
ROWS = (1, 2, 4, 8, 16, 32, 64)
REPEATED = 5  # steps of a round

Answer = list[tuple[int, float | None]]  # tokens and their log-probabilities


def main() -> None:
    """Check, measure and print."""
    arguments = parse()
    about = setting()
    path = pull(arguments.model)
    checked = check(path)
    rows = price(path, arguments.rounds)
    if arguments.output:
        content = {"setting": about, "model": arguments.model, "equal": checked, "steps": rows}
        keep(arguments.output, content)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="a reference")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", help="name of a file in benchmarks/results")
    return parser.parse_args()


def check(path: Path) -> dict[str, bool]:
    """Whether the answer is the same to the last bit, by what was different around it."""
    alone = asked(path, EngineOptions(speculation=False, share_prefixes=False))
    found = {
        "beside others": asked(path, EngineOptions(), others=15),
        "its prefix computed before": asked(path, EngineOptions(), before=True),
        "in chunks": asked(path, EngineOptions(limits=Limits(batch_tokens=17, sequences=8))),
        "preempted": asked(path, EngineOptions(kv_tokens=256, share_prefixes=False), others=6),
    }
    equal = {name: answer == alone for name, answer in found.items()}
    for name, same in equal.items():
        print(f"{name:<28} {'equal to the last bit' if same else 'NOT EQUAL'}")
    return equal


def asked(path: Path, options: EngineOptions, others: int = 0, *, before: bool = False) -> Answer:
    """The answer to PROMPT while `others` run; `before`: asked once already."""
    engine = Engine.load(path, replace(options, backend="cpu"))
    try:
        if before:
            answer(engine)
        for index in range(others):
            text = f"{index} unlike the rest: " * (index + 1)
            engine.submit(Request(f"other {index}", text, OTHERS))
        engine.step()
        return answer(engine)
    finally:
        engine.close()


def answer(engine: Engine) -> Answer:
    """Ask, and run until nobody waits."""
    engine.submit(Request("asked", PROMPT * 3, ASKED))
    found: Answer = []
    while not engine.idle:
        for output in engine.step():
            if output.id == "asked":
                logprobs = (one.logprob for one in output.logprobs)
                found += zip(output.tokens, logprobs, strict=True)
    return found


def price(path: Path, rounds: int) -> list[dict[str, Any]]:
    """Steps of so many decoding rows, as they run and in the arithmetic of prompts."""
    checkpoint = load_checkpoint(path)
    tokens = np.random.default_rng(0).integers(0, checkpoint.architecture.vocabulary, (64, 1))
    steps = [batch(count, BATCH_DEPTH, tokens[:count]) for count in ROWS]
    slots = max(int(step.block_tables.max()) + 1 for step in steps)
    program = decoder_program(checkpoint.architecture)
    kv = KVLayout(slots, BLOCK)
    backend = cpu.load(program, checkpoint.weights, kv, usable_processors())
    rows = []
    for count, step in zip(ROWS, steps, strict=True):
        other = replace(step, given=step.context_lengths)
        ways = [Work(f"{count} rows", (each,) * REPEATED, count) for each in (step, other)]
        ratios = []
        taken: list[float] = []
        for _ in range(rounds):
            ours, theirs = (seconds_a_step(backend, way) for way in ways)
            taken.append(ours)
            ratios.append(ours / min(ours, theirs) - 1)
        rows.append({"rows": count, "ms": median(taken) * 1e3, "cost": round(median(ratios), 3)})
        print(f"{count:3} rows  {median(taken) * 1e3:6.2f} ms a step  cost {median(ratios):.1%}")
    backend.close()
    return rows


if __name__ == "__main__":
    main()
