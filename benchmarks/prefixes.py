"""What the sharing of prefixes costs where no two prompts begin alike, and what it saves else.

    python benchmarks/prefixes.py [--model smollm2-135m] [--rounds 15] [--output prefixes]

One engine answers the same requests twice in every round, with sharing and without, in an order
that changes; its pool is full of kept blocks from the first round on, so that every new block is
taken from another prefix. `x` is the time with sharing to that without, the median over the rounds
with its quartiles. `fresh`: no two prompts begin alike. `shared`: all but the last tokens are the
same. Beside it the part of the time that hashing and looking up took, measured by itself.
"""

from __future__ import annotations

import argparse
import random
import time
from statistics import median, quantiles
from typing import Any

from setting import keep, setting

from headrace.registry.pull import pull
from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.kvcache import BlockPool, BlockTable
from headrace.runtime.request import Request, SamplingParameters

CALLS, PROMPT, ANSWER, OWN = 8, 384, 32, 16  # requests at once; tokens, of which each its own
KV_TOKENS = 8_192  # less than what two rounds leave behind
SAMPLING = SamplingParameters(temperature=0, max_tokens=ANSWER, ignore_eos=True)


def prompts(shared: bool, seed: int) -> list[list[int]]:
    """The token ids of a round."""
    draw = random.Random(seed)
    common = [draw.randrange(1000, 40_000) for _ in range(PROMPT - OWN)]
    every = [[draw.randrange(1000, 40_000) for _ in range(PROMPT)] for _ in range(CALLS)]
    return [common + one[-OWN:] for one in every] if shared else every


def answer(engine: Engine, asked: list[list[int]], *, sharing: bool) -> float:
    """Seconds until the last of these requests is answered."""
    engine.pool.share_prefixes = sharing
    began = time.perf_counter()
    for row, prompt in enumerate(asked):
        engine.submit(Request(f"{row}", prompt, SAMPLING))
    while not engine.idle:
        engine.step()
    return time.perf_counter() - began


def bookkeeping(asked: list[list[int]], block_size: int) -> float:
    """Seconds that a pool takes to hash, look up, take and publish the blocks of a round."""
    pool = BlockPool(KV_TOKENS // block_size, block_size)
    seconds = []
    for turn in range(5):
        salt = bytes([turn])
        tables = [BlockTable() for _ in asked]
        began = time.perf_counter()
        for table, prompt in zip(tables, asked, strict=True):
            pool.share(table, prompt, salt)
            pool.grow(table, PROMPT + ANSWER)
            pool.publish(table, prompt, PROMPT, salt)
        seconds.append(time.perf_counter() - began)
        for table in tables:
            pool.release(table)
    return median(seconds)


def measure(engine: Engine, name: str, rounds: int) -> dict[str, Any]:
    """One row of figures, printed as it is made."""
    ratios, with_sharing = [], []
    for turn in range(rounds + 1):
        asked = prompts(name == "shared", turn)
        seconds = {
            sharing: answer(engine, asked, sharing=sharing)
            for sharing in ((True, False) if turn % 2 else (False, True))
        }
        if turn:  # the first round only fills the pool
            ratios.append(seconds[True] / seconds[False])
            with_sharing.append(seconds[True])
    low, x, high = quantiles(ratios, n=4)
    share = bookkeeping(asked, engine.pool.block_size) / median(with_sharing)
    print(
        f"{name:<7} x {x:.4f} (quartiles {low:.4f} to {high:.4f}); {median(with_sharing):.3f} s "
        f"with sharing, of which hashing and looking up {share:.3%}",
        flush=True,
    )
    return {"text": name, "x": x, "quartiles": [low, high], "bookkeeping": share}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="a reference")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", help="name of a file in benchmarks/results")
    arguments = parser.parse_args()
    about = setting()
    options = EngineOptions(kv_tokens=KV_TOKENS, speculation=False)
    with Engine.load(pull(arguments.model), options) as engine:
        rows = [measure(engine, name, arguments.rounds) for name in ("fresh", "shared")]
    if arguments.output:
        keep(arguments.output, {"setting": about, "model": arguments.model, "figures": rows})


if __name__ == "__main__":
    main()
