"""What a loaded model got, as a table: the format and kernel of each op, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

COLUMNS = ("op", "weights", "layers", "format", "kernel", "why")


@dataclass(frozen=True, slots=True)
class Placed:
    """One line: the weights of an op that are kept and computed alike. `layers` is "0-3,5", or
    nothing for what is outside of layers."""

    op: str
    weights: str
    layers: str
    format: str
    kernel: str
    why: str  # they have this format


@dataclass(frozen=True, slots=True)
class Layout:
    """Which backend runs a model, why this one, and what it made of each op."""

    backend: str
    because: str
    lines: tuple[Placed, ...]


def table(lines: Iterable[Placed]) -> list[str]:
    """The lines as text, in columns; a column in which nothing stands is left out."""
    rows = [COLUMNS, *((p.op, p.weights, p.layers, p.format, p.kernel, p.why) for p in lines)]
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    sizes = [max(map(len, column)) for column in columns]
    return [
        "  ".join(text.ljust(size) for text, size in zip(row, sizes, strict=True)).rstrip()
        for row in zip(*columns, strict=True)
    ]
