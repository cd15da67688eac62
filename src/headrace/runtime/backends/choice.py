"""Which backend runs: the one asked for, or the fastest that this installation has.

A backend's module may name what it `SUPPORTS` (see `program.demands`); one that does not supports
the basic ops and no more. A program is never run by a backend that would pass over a part of it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from itertools import takewhile

from ..models.program import BASIC, Program, UnsupportedProgram, demands
from ..options import AUTO
from ..weights.tensor import Tensor
from .base import Backend, KVLayout, Load, Place
from .devices import has_nvidia, interpreted

FASTEST_FIRST = ("cuda", "cpu", "reference")

log = logging.getLogger(__name__)


def choose(name: str) -> Load:
    """The loader of a backend by name, or for "auto" one that loads the fastest that can.

    Backends are optional: one whose parts were not installed, or that cannot run the program, is
    passed over by "auto", with a line in the log that says why. A backend asked for by name
    raises UnsupportedProgram on loading. Raises ValueError.
    """
    if name == AUTO:
        return partial(load_fastest, [one for one in candidates() if importable(one)])
    if name not in FASTEST_FIRST:
        raise ValueError(f"backend '{name}'; there are: {', '.join((AUTO, *FASTEST_FIRST))}")
    if importable(name) is None:
        raise ValueError(f"backend '{name}' is not part of this installation")
    return partial(load_by_name, name)


def candidates() -> list[str]:
    """The backends that this machine may have a use for, fastest first."""
    return [one for one in FASTEST_FIRST if one != "cuda" or has_nvidia()]


def load_fastest(
    names: list[str],
    program: Program,
    weights: Mapping[str, Tensor],
    kv: KVLayout,
    threads: int,
) -> Backend:
    """Load by the first of these backends that knows all of the program."""
    for name in names[:-1]:
        try:
            return load_by_name(name, program, weights, kv, threads)
        except UnsupportedProgram as error:
            log.warning("%s: falling back to backend %s, which is slower", error, names[-1])
    return load_by_name(names[-1], program, weights, kv, threads)


def because(asked: str, chosen: str, program: Program) -> str:
    """Why a program that was loaded as `asked` runs on the backend `chosen`."""
    if asked != AUTO:
        return "as asked for"
    passed = []
    for name in takewhile(lambda one: one != chosen, candidates()):
        if importable(name) is None:
            passed.append(f"{name} is not part of this installation")
        else:
            unknown = ", ".join(lacking(name, program)) or "something of the program"
            passed.append(f"{name} does not know {unknown}")
    return "; ".join(passed) or "the fastest"


def lacking(name: str, program: Program) -> list[str]:
    """What a program asks that a backend does not know."""
    module = import_module(f"headrace.runtime.backends.{name}")
    return sorted(demands(program) - getattr(module, "SUPPORTS", BASIC))


def load_by_name(
    name: str,
    program: Program,
    weights: Mapping[str, Tensor],
    kv: KVLayout,
    threads: int,
    place: Place | None = None,
) -> Backend:
    """Load by one backend; `place` is that of a rank. Raises UnsupportedProgram, naming what the
    backend lacks."""
    if unknown := lacking(name, program):
        raise UnsupportedProgram(f"backend {name} does not know {', '.join(unknown)}")
    load: Load = import_module(f"headrace.runtime.backends.{name}").load
    if place is None:
        return load(program, weights, kv, threads)
    return load(program, weights, kv, threads, place)


def choose_for_ranks(name: str, size: int) -> str:
    """The backend that runs a program in so many parts, each in a process of its own.

    Raises ValueError, which says what that needs.
    """
    if name == "reference":
        return name
    needs = f"tensor_parallel {size} needs backend cuda and {size} NVIDIA GPUs"
    if name not in (AUTO, "cuda"):
        raise ValueError(f"{needs}; backend {name} runs a model in one process, on all processors")
    there = gpus()
    if there < size and not (interpreted() and importable("cuda")):
        raise ValueError(f"{needs}; there are {there}")
    return "cuda"


def gpus() -> int:
    """NVIDIA GPUs that this process may use; 0 where torch is not installed."""
    if not has_nvidia() or importable("cuda") is None:
        return 0
    found: int = import_module("headrace.runtime.backends.cuda.group").devices()
    return found


def importable(name: str) -> Load | None:
    """A backend's loader, or None where its parts are missing."""
    try:
        load: Load = import_module(f"headrace.runtime.backends.{name}").load
    except ImportError as error:
        log.warning("backend %s is not available: %s", name, error)
        return None
    return load
