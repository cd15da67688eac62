"""Memory that runs out in a step: who it does not concern gets the same tokens as ever."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from headrace.runtime.engine import Engine
from headrace.runtime.request import Request

from .run import Line, Run, free_memory
from .serving import engine_over, requests
from .steps import on_device

LEFT = 64 << 20  # bytes that the ballast leaves
SCRIPT = Path(__file__).parents[1] / "gpu.py"


def faults(run: Run) -> Iterator[Line]:
    """Small requests beside one whose prompt does not fit once the memory is taken."""
    model, format = run.sizes.models[0]
    engine = engine_over(on_device(run, model, format), model)
    small = requests(run, model, 3, "small", asked=4, answer=2)
    expected = tokens_of(engine, small)
    ballast = []
    if run.device.type == "cuda":
        free = free_memory(run.device)
        ballast.append(torch.empty(max(0, free - LEFT), dtype=torch.uint8, device=run.device))
    (large,) = requests(run, model, 1, "large", asked=run.sizes.prompts[-1], answer=2)
    found = tokens_of(engine, [*small, large])
    del ballast
    after = tokens_of(engine, small)
    yield {
        "fault": "out of memory",
        "large got": len(found[large.id]),
        "others as ever": all(found[one.id] == expected[one.id] for one in small),
        "and afterwards": after == expected,
    }
    engine.close()
    if run.device.type == "cuda":
        yield from sanitized(run)


def tokens_of(engine: Engine, asked: list[Request]) -> dict[str, list[int]]:
    """Every request's tokens."""
    found: dict[str, list[int]] = {request.id: [] for request in asked}
    for request in asked:
        engine.submit(request)
    while not engine.idle:
        for output in engine.step():
            found[output.id] += output.tokens
    return found


def sanitized(run: Run) -> Iterator[Line]:
    """Some checks of attention under compute-sanitizer, where it is installed."""
    tool = shutil.which("compute-sanitizer")
    for kind in ("memcheck", "racecheck") if tool else ():
        command = [tool or "", "--tool", kind, "--error-exitcode", "9", sys.executable, str(SCRIPT)]
        command += ["--phase", "checks", "--share", "0/12", "--seconds", str(run.left / 2)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=max(5, run.left / 2), check=False
            )
        except subprocess.TimeoutExpired:
            yield {"sanitizer": kind, "skipped": "no time left"}
            continue
        yield {"sanitizer": kind, "clean": done.returncode == 0, "said": done.stdout[-300:]}
