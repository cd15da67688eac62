"""Which format and kernel each op of a loaded model got, and why: one table, layers folded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields

from .backends.base import Backend
from .backends.choice import because
from .layout import Layout, Placed
from .models.program import Op, Program
from .ranks.leader import Leader
from .weights.tensor import Tensor

PACKAGE = f"{__package__}.backends."
LAYER = re.compile(r"layers\.(\d+)\.")
EXPERT = re.compile(r"(?<=experts)\.\d+")
MULTIPLY = frozenset({"Linear", "Logits", "MixExperts"})


def layout(asked: str, backend: Backend, program: Program, weights: Mapping[str, Tensor]) -> Layout:
    """That of a program that was loaded by the backend `asked` for, which may be "auto"."""
    own = backend.backend if isinstance(backend, Leader) else backend
    name = type(own).__module__.removeprefix(PACKAGE).split(".")[0]
    why = because(asked, name, program)
    if isinstance(backend, Leader):
        why = f"{why}, in {backend.size} parts"
    return Layout(name, why, placed(program, weights, backend.kernels()))


def placed(
    program: Program, weights: Mapping[str, Tensor], kernels: Mapping[str, str]
) -> tuple[Placed, ...]:
    """The lines of a program over these weights; `kernels` as a backend tells them.

    Biases go with their matrices.
    """
    alike: dict[tuple[str, str, str, str, str], list[int]] = {}
    for op in program.ops:
        kind = type(op).__name__
        for name in dict.fromkeys(read_by(op, weights)) or [""]:
            tensor = weights.get(name)
            format = "" if tensor is None else tensor.format
            why = "" if tensor is None else tensor.origin or "as in its file"
            layer = LAYER.match(name)
            role = EXPERT.sub("", LAYER.sub("", name))
            line = (kind, role, format, kernel_of(kind, format, kernels), why)
            alike.setdefault(line, []).extend([int(layer[1])] if layer else [])
    folded: dict[Placed, list[str]] = {}
    for (kind, role, format, kernel, why), layers in alike.items():
        key = Placed(kind, "", ranges(layers), format, kernel, why)
        folded.setdefault(key, []).append(role)
    return tuple(
        Placed(one.op, ", ".join(filter(None, roles)), one.layers, one.format, one.kernel, one.why)
        for one, roles in folded.items()
    )


def read_by(op: Op, weights: Mapping[str, Tensor]) -> Iterator[str]:
    """The weights that an op reads, but for biases."""
    for field in fields(op):
        value = getattr(op, field.name)
        names = value if isinstance(value, tuple) else (value,)
        yield from (
            name
            for name in names
            if isinstance(name, str) and name in weights and not name.endswith("bias")
        )


def kernel_of(kind: str, format: str, kernels: Mapping[str, str]) -> str:
    """What runs an op.

    A backend names products by their format, those of logits besides where they differ, attention,
    and all that goes row by row as "norm"; one that has a single way says "all".
    """
    if kind in MULTIPLY:
        names = [f"logits {format}"] * (kind == "Logits") + [f"linear {format}"]
    elif kind == "Attention":
        names = ["attention"]
    else:
        names = ["norm"]
    return next((kernels[name] for name in (*names, "all") if name in kernels), "")


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as "0-3,5"."""
    found: list[list[int]] = []
    for number in sorted(set(numbers)):
        if found and found[-1][-1] == number - 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    return ",".join("-".join(map(str, run)) for run in found)
