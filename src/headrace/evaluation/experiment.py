"""An experiment: every item asked of the target, every answer graded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from msgspec import Struct

from headrace.evaluation.dataset import Item
from headrace.evaluation.graders import UNBOUNDED, Grade, Grader, grade
from headrace.evaluation.isolation import IsolatedGrader, Task
from headrace.evaluation.specification import Specification
from headrace.evaluation.target import Answer, TargetClient


class Outcome(Struct, frozen=True):
    """One item with its answer and a grade from each grader, in the file's order."""

    item: Item
    answer: Answer
    grades: tuple[Grade, ...]


async def run(
    specification: Specification,
    items: Sequence[Item],
    key: str | None,
    progress: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Ask and grade all items, at most `concurrency` at once; the outcomes in the items' order.

    `progress` is called after each item. A failed call fails every grader; none is raised.
    """
    client = TargetClient(specification.target, specification.seed, key)
    isolated = IsolatedGrader()
    outcomes: dict[int, Outcome] = {}
    waiting = iter(enumerate(items))

    async def work() -> None:
        for place, item in waiting:  # the workers share one iterator: each item is taken once
            answer = await client.ask(item)
            grades = [
                await _graded(grader, item, answer, isolated) for grader in specification.graders
            ]
            outcomes[place] = Outcome(item, answer, tuple(grades))
            progress()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(specification.target.concurrency, len(items))):
                group.create_task(work())
    finally:
        await client.close()
        await isolated.close()
    return [outcomes[place] for place in range(len(items))]


async def _graded(grader: Grader, item: Item, answer: Answer, isolated: IsolatedGrader) -> Grade:
    if answer.error is not None:
        return Grade(grader.name, passed=False, note="the call failed")
    if isinstance(grader, UNBOUNDED):
        return await isolated.grade(Task(grader, answer.text, item.expected, answer.seconds))
    return grade(grader, answer.text, item.expected, answer.seconds)
