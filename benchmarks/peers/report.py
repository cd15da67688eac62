"""The table: every figure, what is left, and our ratio to the best peer's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .catalogue import Variant
from .figures import Column

OURS = "headrace"


def ours(name: str) -> bool:
    """Whether a variant of this name is of our engine."""
    return name.startswith(OURS)


def best(column: Column, found: Mapping[Variant, float]) -> Variant | None:
    """Our variant with the best figure."""
    chosen = None
    for variant, figure in found.items():
        if variant.engine == OURS and (chosen is None or column.better(figure, found[chosen])):
            chosen = variant
    return chosen


def row(
    column: Column, found: Mapping[Variant, float], shares: Mapping[str, Any]
) -> dict[str, Any]:
    """A column's figures of one run as they are kept."""
    us = best(column, found)
    ratios = {
        variant.name: round(found[us] / figure, 3)
        for variant, figure in found.items()
        if us and variant.engine != OURS
    }
    made: dict[str, Any] = {
        "column": column.name,
        "unit": column.unit,
        "more_is_better": column.more_is_better,
        "target": column.target,
        "figures": {variant.name: round(figure, 2) for variant, figure in found.items()},
        "shares": {
            variant.name: shares[variant.name] for variant in found if variant.name in shares
        },
        "ratios": ratios,
    }
    return {**made, **hardest(made)}


def merged(before: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """A column's row of earlier runs with what another run found in its place."""
    both = {key: {**before.get(key, {}), **made[key]} for key in ("figures", "shares", "ratios")}
    return {**made, **both, **hardest({**made, **both})}


def hardest(made: Mapping[str, Any]) -> dict[str, Any]:
    """The peer that we do worst against, and the ratio to it; nothing where there is no peer."""
    if not made["ratios"]:
        return {}
    choose = min if made["more_is_better"] else max
    peer = choose(made["ratios"], key=made["ratios"].__getitem__)
    return {"best_peer": peer, "ratio": made["ratios"][peer]}


def lines(made: Mapping[str, Any]) -> list[str]:
    """A row as a person reads it."""
    head = f"{made['column']} ({made['unit']})"
    if "ratio" in made:
        head += f": {made['ratio']:.2f} of the best peer's, {made['best_peer']}"
        if made["target"] is not None:
            head += f" (target {made['target']:g})"
    shown = [head]
    for name, figure in made["figures"].items():
        share = made["shares"].get(name)
        left = "" if share is None else f"  {share:.0%} of what the machine gives"
        shown.append(f"    {name:<44} {figure:>10.1f}{left}")
    return shown
