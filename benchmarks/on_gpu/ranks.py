"""A model among ranks: what its part costs in a group of one, and, of several GPUs, what two gain.

A group of one calls every collective, captured with the rest of a decode step, and has nobody to
wait for: what it takes beside the whole model is what ranks pay before they gain anything.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from headrace.runtime.backends import cuda
from headrace.runtime.backends.base import KVLayout, Place
from headrace.runtime.engine import Engine
from headrace.runtime.models.assembly import decoder_program
from headrace.runtime.models.sharding import shard
from headrace.runtime.options import EngineOptions
from headrace.runtime.request import SamplingParameters

from .run import Line, Run, error_of
from .shapes import BLOCK, random_weights, step_batch

ANSWER = 64  # tokens
BOUND = 1e-2  # of bfloat16 logits: a part's are computed as the whole's, and then copied


def ranks(run: Run) -> Iterator[Line]:
    """The first model as a part; a real one on two GPUs, where there are two."""
    model, format = run.sizes.models[0]
    weights, program = random_weights(model, format, 0), decoder_program(model)
    kv = KVLayout(run.sizes.contexts[0] // BLOCK + 1, BLOCK)
    batch = step_batch([(run.sizes.contexts[0] - 1, 1)], model.vocabulary)
    whole = cuda.load(program, weights, kv, 0)
    expected, (alone, _) = whole.logits(batch), run.step(whole, batch)
    whole.close()
    own = shard(program, weights, 0, 1)
    with tempfile.TemporaryDirectory() as folder:
        place = Place(0, 1, Path(folder) / "meeting")
        part = cuda.load(own.program, own.weights, kv, 0, place)
        among, _ = run.step(part, batch)
        error = error_of(part.logits(batch), expected)
        part.close()
    yield {"check": f"a part of {model.name} {format}", "error": error, "right": error < BOUND}
    yield {"rank": model.name, "whole ms": alone * 1e3, "part ms": among * 1e3}
    if torch.cuda.device_count() > 1 and run.model is not None:
        yield from shared(run.model)


def shared(path: Path) -> Iterator[Line]:
    """A real model on one GPU, and on two: the same tokens, and how fast."""
    found = {}
    for size in (1, 2):
        with Engine.load(path, EngineOptions(backend="cuda", tensor_parallel=size)) as engine:
            sampling = SamplingParameters(max_tokens=ANSWER, temperature=0.0, ignore_eos=True)
            engine.generate("Once upon a time", sampling)  # compiles, and captures
            began = time.perf_counter()
            tokens = engine.generate("Once upon a time", sampling).tokens
            found[size] = tokens, ANSWER / (time.perf_counter() - began)
    same = sum(a == b for a, b in zip(found[1][0], found[2][0], strict=True))
    yield {"ranks": path.name, "1 GPU tok/s": found[1][1], "2 GPUs tok/s": found[2][1]} | {
        "same tokens": f"{same} of {ANSWER}"
    }
