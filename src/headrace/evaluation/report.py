"""What an experiment found: a share with its interval per grader, and the bars it missed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from msgspec import Struct
from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from headrace.evaluation.experiment import Outcome
from headrace.evaluation.specification import Specification
from headrace.evaluation.statistics import Estimate, mean, proportion

ERRORS_SHOWN = 5


class Row(Struct, frozen=True):
    """One grader: the share that passed, and its bar (met is None where it has none)."""

    grader: str
    passed: Estimate
    bar: float | None = None
    met: bool | None = None


class Report(Struct, frozen=True):
    """The findings. `seconds` and `tokens` are over the calls that were answered."""

    calls: int
    failed: int
    rows: tuple[Row, ...]
    seconds: Estimate
    tokens: Estimate
    errors: tuple[tuple[str, int], ...]  # message and count, the most frequent first

    @property
    def good(self) -> bool:
        """Whether every bar was met, by at least one call that was answered."""
        return self.failed < self.calls and all(row.met is not False for row in self.rows)


def summarise(specification: Specification, outcomes: Sequence[Outcome]) -> Report:
    """The report of an experiment. A failed call counts as failed by every grader."""
    answered = [outcome.answer for outcome in outcomes if outcome.answer.error is None]
    errors = Counter(outcome.answer.error for outcome in outcomes if outcome.answer.error)
    rows = []
    for place, grader in enumerate(specification.graders):
        passed = sum(outcome.grades[place].passed for outcome in outcomes)
        share = proportion(passed, len(outcomes))
        bar = specification.bars.get(grader.name)
        reached = share.low if specification.bars_on == "lower_bound" else share.mean
        rows.append(Row(grader.name, share, bar, None if bar is None else reached >= bar))
    return Report(
        calls=len(outcomes),
        failed=len(outcomes) - len(answered),
        rows=tuple(rows),
        seconds=mean([answer.seconds for answer in answered]),
        tokens=mean([float(answer.completion_tokens) for answer in answered]),
        errors=tuple(errors.most_common()),
    )


def render(specification: Specification, report: Report) -> RenderableType:
    """The report as a table and, below it, the errors of failed calls."""
    target = specification.target
    table = Table(
        box=SIMPLE, title=Text(f"{specification.name}: {target.model} at {target.base_url}")
    )
    table.title_justify = "left"
    table.add_column("")
    for heading in ("n", "mean", "95% interval"):
        table.add_column(heading, justify="right")
    on = "lower bound" if specification.bars_on == "lower_bound" else "mean"
    table.add_column(f"bar ({on})")
    for row in report.rows:
        verdict = "" if row.bar is None else f"{row.bar:g} {'met' if row.met else 'MISSED'}"
        style = "red" if row.met is False else "green" if row.met else ""
        table.add_row(Text(row.grader), *_cells(row.passed), Text(verdict, style=style))
    table.add_section()
    table.add_row("seconds", *_cells(report.seconds), "")
    table.add_row("output tokens", *_cells(report.tokens), "")
    lines = [Text(f"{report.failed} of {report.calls} calls failed.", style="red")]
    lines += [Text(f"  {count} x {message}") for message, count in report.errors[:ERRORS_SHOWN]]
    return Group(table, *(lines if report.failed else []))


def _cells(estimate: Estimate) -> tuple[str, str, str]:
    if estimate.n == 0:
        return "0", "-", "-"
    spread = f"{estimate.low:.3f} to {estimate.high:.3f}"
    return str(estimate.n), f"{estimate.mean:.3f}", spread if math.isfinite(estimate.low) else "-"
