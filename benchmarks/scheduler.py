"""Goodput under Poisson arrivals of mixed lengths: the scheduler against itself with parts off.

    python benchmarks/scheduler.py [--requests 60] [--loads 0.5,0.8,1.2] [--output scheduler]
    python benchmarks/scheduler.py --llamacpp DIR/llamacpp      beside llama.cpp's server too

A request counts where its TTFT and its mean ITL meet the targets; goodput is the share that
counts. Load 1.0 is what this machine serves at best, measured first: all requests at once. The
engine runs in this process on the model that `headrace serve` serves by default; arrivals and
lengths are the same for all variants. With `--llamacpp`, an environment that
`benchmarks/peers/setup.sh` made, `headrace serve` and llama.cpp's server, with its flash attention
on and off, get the same arrivals over HTTP, and nothing else is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median, quantiles

from peers.catalogue import Variant, both
from peers.protocol import Setup
from peers.servers import Call as Asked
from peers.servers import played, serving
from setting import keep, setting

from headrace.registry.pull import pull
from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.options import Limits
from headrace.runtime.processors import usable_processors
from headrace.runtime.request import Request, SamplingParameters

TTFT_TARGET, ITL_TARGET = 1.0, 0.1  # seconds
SHARED_PREFIX = 256  # tokens that half of the requests have in common
MIX = ((0.7, 48, 32), (0.2, 512, 48), (0.1, 2048, 48))  # share, prompt tokens, output tokens
SLOTS = 16  # of llama.cpp's server: sequences at once, sharing as many tokens of KV
FULL = EngineOptions(kv_tokens=65_536)
VARIANTS = {
    "all on": FULL,
    "order of arrival": replace(FULL, limits=replace(FULL.limits, by_ratio=False)),
    "no chunks": replace(FULL, limits=Limits(batch_tokens=8192, step=60.0)),
    "no shared prefixes": replace(FULL, share_prefixes=False),
    "all off": replace(
        FULL,
        limits=Limits(batch_tokens=8192, step=60.0, by_ratio=False),
        share_prefixes=False,
        speculation=False,
    ),
}


@dataclass
class Call:
    """One request and when its tokens came, in seconds since the start."""

    request: Request
    arrives: float
    times: list[float] = field(default_factory=list)

    @property
    def ttft(self) -> float:
        return self.times[0] - self.arrives

    @property
    def itl(self) -> float:
        return (self.times[-1] - self.times[0]) / max(len(self.times) - 1, 1)

    @property
    def worst_gap(self) -> float:
        return max((b - a for a, b in zip(self.times, self.times[1:], strict=False)), default=0.0)


def calls(count: int, rate: float, seed: int = 0) -> list[Call]:
    """Requests with Poisson arrivals, `rate` a second; all at once where it is infinite."""
    dice = random.Random(seed)
    prefix = [dice.randrange(1000, 40_000) for _ in range(SHARED_PREFIX)]
    made, now = [], 0.0
    for index in range(count):
        (_, prompt, new), *_ = dice.choices(MIX, weights=[share for share, _, _ in MIX])
        tokens = [dice.randrange(1000, 40_000) for _ in range(prompt)]
        if index % 2:
            tokens = prefix + tokens
        sampling = SamplingParameters(max_tokens=new, temperature=0, ignore_eos=True)
        made.append(Call(Request(str(index), tokens, sampling), now))
        now += dice.expovariate(rate) if rate != float("inf") else 0.0
    return made


def run(engine: Engine, asked: list[Call]) -> float:
    """Play the calls in real time; returns how long it took, in seconds."""
    by_id = {call.request.id: call for call in asked}
    coming = sorted(asked, key=lambda call: call.arrives)
    began = time.monotonic()
    while coming or not engine.idle:
        now = time.monotonic() - began
        while coming and coming[0].arrives <= now:
            engine.submit(coming.pop(0).request)
        if engine.idle:
            time.sleep(min(max(coming[0].arrives - now, 0.0), 0.001))
            continue
        for output in engine.step():
            came = time.monotonic() - began
            by_id[output.id].times += [came] * len(output.tokens)
    return time.monotonic() - began


def run_served(url: str, asked: Sequence[Call]) -> None:
    """Play the calls to a server over HTTP."""
    sent = []
    for call in asked:
        prompt = [token for token in call.request.prompt if isinstance(token, int)]
        sent.append(Asked(prompt, call.request.sampling.max_tokens or 1, call.arrives))
    for call, answer in zip(asked, asyncio.run(played(url, sent)), strict=True):
        call.times = answer.times


def figures(asked: Sequence[Call]) -> dict[str, float]:
    """Goodput and the distributions behind it, in seconds."""
    met = [call.ttft <= TTFT_TARGET and call.itl <= ITL_TARGET for call in asked]
    ttft, gaps = [call.ttft for call in asked], [call.worst_gap for call in asked]
    return {
        "goodput": mean(met),
        "ttft_p50": median(ttft),
        "ttft_p95": quantiles(ttft, n=20)[-1],
        "itl_p50": median(call.itl for call in asked),
        "worst_gap_p95": quantiles(gaps, n=20)[-1],
    }


def against_itself(path: Path, count: int, rate: float) -> Iterator[tuple[str, dict[str, float]]]:
    """The figures of every variant at some requests a second."""
    for name, variant in VARIANTS.items():
        with Engine.load(path, variant) as engine:
            run(engine, calls(4, float("inf"), seed=1))
            played_calls = calls(count, rate)
            run(engine, played_calls)
        yield name, figures(played_calls)


def against_server(
    path: Path, environment: Path, count: int, rate: float
) -> Iterator[tuple[str, dict[str, float]]]:
    """The figures of our server and of llama.cpp's at some requests a second."""
    setup = Setup(str(path), usable_processors(), SLOTS, FULL.planned_tokens // SLOTS)
    for variant in (Variant("headrace", path.name), *both(path.name)):
        place = Path(sys.prefix) if variant.engine == "headrace" else environment
        with serving(variant, place, replace(setup, options=dict(variant.options))) as url:
            run_served(url, calls(4, float("inf"), seed=1))
            asked = calls(count, rate)
            run_served(url, asked)
        settings = [f"{key} {value}" for key, value in variant.options]
        yield " ".join([f"{variant.engine} server", *settings]), figures(asked)


def main() -> None:
    """Measure all variants at all loads and print one row each."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--requests", type=int, default=60)
    options.add_argument("--loads", default="0.5,0.8,1.2")
    options.add_argument("--llamacpp", type=Path, help="environment with llama.cpp's server")
    options.add_argument("--output", help="also write benchmarks/results/NAME.json")
    asked = options.parse_args()
    path = pull("smollm2-135m")
    with Engine.load(path, FULL) as engine:
        run(engine, calls(8, float("inf"), seed=1))  # warm
        capacity = asked.requests / run(engine, calls(asked.requests, float("inf"), seed=2))
    print(f"capacity {capacity:.2f} requests/s; targets: TTFT {TTFT_TARGET} s, ITL {ITL_TARGET} s")
    print(f"{'variant':20} load  goodput  TTFT p50/p95 s   ITL p50 ms  worst gap p95 ms")
    results = []
    for load in map(float, asked.loads.split(",")):
        rate = capacity * load
        if asked.llamacpp:
            found = against_server(path, asked.llamacpp, asked.requests, rate)
        else:
            found = against_itself(path, asked.requests, rate)
        for name, figured in found:
            results.append({"variant": name, "load": load, **figured})
            print(
                f"{name:20} {load:4.1f}  {figured['goodput']:7.2f}  "
                f"{figured['ttft_p50']:6.2f} {figured['ttft_p95']:6.2f}  "
                f"{figured['itl_p50'] * 1e3:12.1f} {figured['worst_gap_p95'] * 1e3:17.1f}",
                flush=True,
            )
    if asked.output:
        about = {"setting": setting(), "model": path.name, "requests": asked.requests}
        keep(asked.output, {**about, "capacity": capacity, "rows": results})


if __name__ == "__main__":
    main()
