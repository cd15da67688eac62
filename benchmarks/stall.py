"""What a long prompt does to the streams that run beside it.

    python benchmarks/stall.py [--model gemma3-270m] [--prompt 30000] [--bounds 0.05,0.1,0.2]
                               [--output stall]

Some streams decode; then a prompt of many tokens comes. Beside its first token's time stand the
gaps between two tokens of a stream, before it came and until its first token was there: at p50, at
p99 and the longest. A bound is `engine.max_step`; `whole` computes the prompt in one step, as an
engine without chunks does.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import replace
from statistics import quantiles

from setting import keep, setting

from headrace.registry.pull import pull
from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.options import Limits
from headrace.runtime.request import Request, SamplingParameters

STREAMS = 4
ALONE = 60  # steps that are looked at before the prompt comes
WARM = 1024  # tokens of a prompt from which the engine learns how fast it is
LONG = "long"

Spread = dict[str, float]  # milliseconds


def gaps(engine: Engine, last: dict[str, float], until: str | int) -> list[float]:
    """Seconds between the tokens of the streams, for so many steps or until the first token of a
    request came. `last` is when each stream's newest token came, and is kept."""
    steps, found, over = 0, list[float](), False
    while not over:
        outputs, steps = engine.step(), steps + 1
        now = time.monotonic()
        for one in outputs:
            if one.id in last:
                found.append(now - last[one.id])
            if one.tokens and one.id != until:
                last[one.id] = now
        over = steps == until or any(one.id == until and one.tokens for one in outputs)
    return found


def spread(found: list[float]) -> Spread:
    """The distribution of gaps, in milliseconds."""
    cuts = quantiles(found, n=100)
    return {"p50": cuts[49] * 1e3, "p99": cuts[98] * 1e3, "longest": max(found) * 1e3}


def measured(model: str, limits: Limits, prompt: int) -> tuple[Spread, Spread, float]:
    """Gaps before the prompt came and beside it, under some limits; seconds to its first token."""
    dice = random.Random(0)
    options = EngineOptions(kv_tokens=prompt + 8192, limits=limits, speculation=False)
    forever = SamplingParameters(temperature=0, max_tokens=1 << 16, ignore_eos=True)
    once = replace(forever, max_tokens=1)
    with Engine.load(pull(model), options) as engine:
        tokens = [dice.randrange(1000, 40_000) for _ in range(WARM + prompt)]
        engine.generate(tokens[:WARM], once)
        for index in range(STREAMS):
            begin = [dice.randrange(1000, 40_000) for _ in range(32)]
            engine.submit(Request(str(index), begin, forever))
        last: dict[str, float] = {}
        gaps(engine, last, ALONE // 4)
        alone = gaps(engine, last, ALONE)
        began = time.monotonic()
        engine.submit(Request(LONG, tokens[WARM:], once))
        beside = gaps(engine, last, LONG)
        first = time.monotonic() - began
        return spread(alone), spread(beside), first


def main() -> None:
    """Measure under each bound and print a row."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--model", default="gemma3-270m")
    options.add_argument("--prompt", type=int, default=30_000, help="tokens")
    options.add_argument("--bounds", default="0.05,0.1,0.2", help="seconds of a step")
    options.add_argument("--output", help="also write benchmarks/results/NAME.json")
    asked = options.parse_args()
    every = {bound: Limits(step=float(bound)) for bound in asked.bounds.split(",")}
    every["whole"] = Limits(batch_tokens=asked.prompt + STREAMS, step=3600.0)
    print(f"{STREAMS} streams beside a prompt of {asked.prompt} tokens, {asked.model}")
    print("bound s   gaps alone p50/p99/longest ms   beside it p50/p99/longest ms   its TTFT s")
    rows = []
    for bound, limits in every.items():
        alone, beside, first = measured(asked.model, limits, asked.prompt)
        rows.append({"bound": bound, "alone": alone, "beside": beside, "first_token_s": first})
        two = [" / ".join(f"{value:7.1f}" for value in row.values()) for row in (alone, beside)]
        print(f"{bound:7}   {two[0]:29}   {two[1]:28}   {first:10.1f}", flush=True)
    if asked.output:
        about = {"setting": setting(), "model": asked.model, "streams": STREAMS}
        keep(asked.output, {**about, "prompt": asked.prompt, "rows": rows})


if __name__ == "__main__":
    main()
