"""How long a swap of two models takes in a memory that holds one of them.

    python benchmarks/swap.py [--models smollm2-135m minilm-l6] [--rounds 5] [--output swap]

Their files' pages are in the page cache, as those of models that were here before are. A swap is
measured from the call to the end of the load, the unloading of the other model included; then a
first answer (a token, a vector) is asked for. Once with a process that was started ahead
(`runtime/spare.py`), once without one.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from statistics import median
from typing import Any

from setting import keep, setting

from headrace.config.schema import Engine
from headrace.protocol.encoding import EmbeddingRequest
from headrace.protocol.generation import GenerationRequest
from headrace.providers.local import LocalProvider
from headrace.registry.pull import pull

PAUSE = 1.2  # seconds between swaps: models that change places all the time do little else


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs=2, default=["smollm2-135m", "minilm-l6"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", help="name of a file in benchmarks/results")
    arguments = parser.parse_args()
    about = setting()
    print(f"{about['processor']}, {about['processors']} processors, load {about['load']:.1f}")
    paths = {name: pull(name) for name in arguments.models}
    rows = [
        row
        for spare in (True, False)
        for row in asyncio.run(swap(paths, arguments.rounds, spare=spare))
    ]
    for row in rows:
        print(
            f"{row['model']:<14} {row['megabytes']:5.0f} MB, process "
            f"{'ahead' if row['spare'] else 'anew '}: swapped in {row['seconds']:.2f} s "
            f"(slowest {row['slowest']:.2f}), first answer after another "
            f"{row['first_answer'] * 1e3:.0f} ms (medians)"
        )
    if arguments.output:
        keep(arguments.output, {"setting": about, "rows": rows})


async def swap(paths: dict[str, Path], rounds: int, *, spare: bool) -> list[dict[str, Any]]:
    """A row for each of two models: medians over the rounds."""
    local = LocalProvider(paths, Engine())
    if not spare:
        local.spare.wanted = lambda: False
    sizes = {name: local.residency.models[name].bytes for name in paths}
    local.residency.budget = max(sizes.values()) + min(sizes.values()) // 2
    await local.start()
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    firsts: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(rounds):
        for name in reversed(paths):
            await asyncio.sleep(PAUSE)
            began = time.perf_counter()
            await local.residency.load(name)
            loaded = time.perf_counter()
            await first(local, name)
            seconds[name].append(loaded - began)
            firsts[name].append(time.perf_counter() - loaded)
    await local.close()
    return [
        {
            "model": name,
            "spare": spare,
            "megabytes": sizes[name] / 1e6,
            "seconds": median(seconds[name]),
            "slowest": max(seconds[name]),
            "first_answer": median(firsts[name]),
        }
        for name in paths
    ]


async def first(local: LocalProvider, name: str) -> None:
    """One token of a model that generates, one vector of one that reads."""
    loaded = local.engines[name].loaded
    if loaded is not None and loaded.task == "generate":
        asked = GenerationRequest(endpoint="completions", model=name, prompt="Hi", max_tokens=1)
        events = local.generate(asked, name)
    else:
        events = local.embed(EmbeddingRequest(model=name, input=("Hi",)), name)
    async for _event in events:
        pass


if __name__ == "__main__":
    main()
