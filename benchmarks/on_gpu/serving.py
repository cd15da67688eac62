"""The engine with its own scheduler over a random model: throughput, latency, what parts are worth.

Prompts are random tokens, so that nothing is shared; answers are as long as they were asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models

from headrace.runtime.backends.cuda import CUDABackend
from headrace.runtime.engine import Engine
from headrace.runtime.models.architecture import Architecture
from headrace.runtime.models.checkpoint import Checkpoint
from headrace.runtime.options import EngineOptions, Limits
from headrace.runtime.request import Request, SamplingParameters
from headrace.runtime.text.template import CHATML, ChatTemplate
from headrace.runtime.text.tokenizer import Vocabulary

from .run import Line, Run
from .steps import on_device

GREEDY = SamplingParameters(temperature=0.0, ignore_eos=True)


@dataclass(slots=True)
class Told:
    """When a request came, and when its tokens did."""

    came: float
    times: list[float] = field(default_factory=list)


def engine_over(
    backend: CUDABackend, model: Architecture, *, speculation: bool = False, sequences: int = 256
) -> Engine:
    """An engine whose tokens are words of numbers."""
    vocabulary = Vocabulary(
        encoder=Tokenizer(models.BPE()),
        sentencepiece=False,
        specials=frozenset(),
        literals={token: f" {token}" for token in range(model.vocabulary)},
        end_ids=frozenset(),
        bos_id=None,
        add_bos=False,
    )
    checkpoint = Checkpoint("llama", model, {}, vocabulary, ChatTemplate(CHATML), False)
    limits = Limits(batch_tokens=2048, sequences=sequences, waiting=4096)
    options = EngineOptions(backend="cuda", limits=limits, speculation=speculation)
    return Engine(checkpoint, backend, options)


def requests(run: Run, model: Architecture, count: int, name: str, **sizes: Any) -> list[Request]:
    """`count` requests of equal sizes, or of sizes like those of a chat where `mixed`."""
    random = np.random.default_rng(len(name))
    asked = sizes.get("asked", run.sizes.asked)
    found = []
    for index in range(count):
        prompt, answer = asked, sizes.get("answer", run.sizes.asked)
        if sizes.get("mixed"):
            prompt, answer = (
                int(np.clip(random.lognormal(np.log(0.2 * asked), 1.0), 4, 2 * asked))
                for _ in range(2)
            )
        tokens = random.integers(0, model.vocabulary, prompt).tolist()
        sampling = replace(GREEDY, max_tokens=max(2, answer))
        found.append(Request(f"{name} {index}", tokens, sampling))
    return found


def play(
    engine: Engine, asked: Sequence[Request], arrivals: Sequence[float], seconds: float
) -> dict[str, Told]:
    """Submit each request at its time, for so many seconds at most; what runs then is cancelled."""
    told: dict[str, Told] = {}
    began = time.perf_counter()
    waiting = list(zip(arrivals, asked, strict=True))

    def listen() -> None:
        while waiting and waiting[0][0] <= time.perf_counter() - began:
            at, request = waiting.pop(0)
            told[request.id] = Told(began + at)
            engine.submit(request)

    while waiting or not engine.idle:
        listen()
        if time.perf_counter() - began > seconds:
            break
        outputs = engine.step(listen) if not engine.idle else []
        now = time.perf_counter()
        for output in outputs:
            told[output.id].times += [now] * len(output.tokens)
    for id in list(engine.sequences):
        engine.cancel(id)
    return told


def throughput(told: dict[str, Told]) -> float:
    """Output tokens a second, from the first request's coming to the last token."""
    times = [time for one in told.values() for time in one.times]
    began = min(one.came for one in told.values())
    return len(times) / (max(times) - began) if times else float("nan")


def latencies(told: dict[str, Told]) -> Line:
    """TTFT and ITL in milliseconds, of those that got a token."""
    first = [one.times[0] - one.came for one in told.values() if one.times]
    gaps = [gap for one in told.values() for gap in np.diff(one.times)]
    found: Line = {}
    for name, values in (("ttft", first), ("itl", gaps)):
        for share in (50, 95, 99):
            value = float(np.percentile(values, share)) * 1e3 if values else float("nan")
            found[f"{name} p{share}"] = value
    return found


def serving(run: Run) -> Iterator[Line]:
    """All at once, then at rates below what that gave; and lengths like those of a chat."""
    model, format = run.sizes.models[min(1, len(run.sizes.models) - 1)]
    name = f"{model.name} {format}"
    engine = engine_over(on_device(run, model, format), model)
    count = run.sizes.requests
    warm = requests(run, model, min(count, 4), "warm", answer=min(8, run.sizes.asked))
    play(engine, warm, [0.0] * len(warm), 30)
    for mixed in (False, True):
        asked = requests(run, model, count, f"saturation {mixed}", mixed=mixed)
        told = play(engine, asked, [0.0] * count, run.left * (0.45 if not mixed else 0.3))
        whole = throughput(told)
        done = sum(len(one.times) for one in told.values())
        yield {
            "serving": name,
            "lengths": "like a chat" if mixed else f"{run.sizes.asked}/{run.sizes.asked}",
            "requests": len(told),
            "tokens": done,
            "tok/s": whole,
            **latencies(told),
        }
    a_second = whole / (done / max(1, len(told)))
    box = run.left / (len(run.sizes.rates) + 0.5)
    for share in run.sizes.rates:
        if run.left < 3:
            break
        rate = share * a_second
        arrivals = np.cumsum(np.random.default_rng(3).exponential(1 / rate, count))
        asked = requests(run, model, count, f"rate {share}", mixed=True)
        told = play(engine, asked, [float(one) for one in arrivals], box)
        yield {"serving": name, "rate/s": rate, "requests": len(told), **latencies(told)}
    engine.close()


def parts(run: Run) -> Iterator[Line]:
    """What running a step ahead is worth, and drafts: the same engine with and without, in turns.

    Drafts on texts that soon say the same again (greedy) and on such that do not (sampled): there
    they must cost nothing.
    """
    model, format = run.sizes.models[0]
    engine = engine_over(on_device(run, model, format), model, speculation=True)
    speculator = engine.loop.speculator
    answer = max(2, run.sizes.asked // 4)
    for rows in (1, 8, 64):
        if rows > run.sizes.requests or run.left < 5:
            continue
        for name, switches, temperature in (
            ("a step ahead", ({"overlap": False}, {"overlap": True}), 1.0),
            ("drafts, greedy", ({"drafts": False}, {"drafts": True}), 0.0),
            ("drafts, sampled", ({"drafts": False}, {"drafts": True}), 1.0),
        ):
            speeds: list[list[float]] = [[], []]
            for turn in range(min(3, run.sizes.rounds)):
                for place, switch in enumerate(switches):
                    engine.loop.overlap = switch.get("overlap", True)
                    engine.loop.speculator = speculator if switch.get("drafts") else None
                    asked = requests(
                        run, model, rows, f"{name} {turn} {rows}", asked=answer, answer=answer
                    )
                    sampling = replace(asked[0].sampling, temperature=temperature, seed=turn)
                    asked = [replace(one, sampling=sampling) for one in asked]
                    told = play(engine, asked, [0.0] * rows, max(1.0, run.left / 8))
                    if turn or run.sizes.rounds == 1:
                        speeds[place].append(throughput(told))
            without, with_it = (median(found) for found in speeds)
            yield {
                "worth": name,
                "model": model.name,
                "rows": rows,
                "without tok/s": without,
                "with tok/s": with_it,
                "ratio": with_it / without,
            }
    engine.close()
