"""The scheduler: decodes never wait, nobody is lost, the budget holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.runtime.kvcache import BlockPool
from headrace.runtime.scheduler import Limits, Scheduler, Span
from headrace.runtime.sequence import Sequence
from tests.fakes.batches import new_sequence


def prompt(tokens: int) -> Sequence:
    return new_sequence([0] * tokens)


def scheduler(blocks: int = 64, *, budget: int = 8, sequences: int = 4) -> Scheduler:
    return Scheduler(BlockPool(blocks, 4), Limits(budget, sequences))


def run(spans: list[Span]) -> None:
    """What an engine does with spans: compute, and give a token to those that sample."""
    for span in spans:
        samples = span.samples
        span.sequence.computed += span.count
        if samples:
            span.sequence.tokens.append(0)


def planned(spans: list[Span]) -> dict[Sequence, int]:
    return {span.sequence: span.count for span in spans}


def test_a_long_prompt_runs_in_chunks_and_decodes_go_first() -> None:
    plan = scheduler()
    short, long = prompt(3), prompt(20)
    plan.add(short)
    run(plan.schedule())
    plan.add(long)
    assert planned(plan.schedule()) == {short: 1, long: 7}
    run(plan.schedule())
    assert planned(plan.schedule()) == {short: 1, long: 7}


def test_several_prompts_share_a_step() -> None:
    plan = scheduler()
    first, second, third = prompt(3), prompt(3), prompt(3)
    for sequence in (first, second, third):
        plan.add(sequence)
    assert planned(plan.schedule()) == {first: 3, second: 3, third: 2}


def test_the_youngest_gives_way_when_blocks_run_out_and_comes_back() -> None:
    plan = scheduler(blocks=4)
    old, young = prompt(4), prompt(3)
    plan.add(old)
    plan.add(young)
    while not plan.preempted:
        run(plan.schedule())
    assert plan.running == [old]
    assert young.table.blocks == []
    assert young.computed == 0
    plan.remove(old)
    spans = plan.schedule()
    assert [span.sequence for span in spans] == [young]


@given(
    prompts=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 20)), min_size=1, max_size=12),
    blocks=st.integers(13, 40),
    budget=st.integers(4, 16),
)
def test_everybody_finishes_in_bounds(
    prompts: list[tuple[int, int]], blocks: int, budget: int
) -> None:
    plan = scheduler(blocks, budget=budget)
    left = {prompt(tokens): new for tokens, new in prompts}
    ends = {sequence: sequence.prompt_tokens + new for sequence, new in left.items()}
    for sequence in left:
        plan.add(sequence)
    for _ in range(10_000):
        spans = plan.schedule()
        assert sum(span.count for span in spans) <= budget
        assert len(plan.running) <= 4
        decoding = [one for one in plan.running if one.pending == 1]
        scheduled = planned(spans)
        assert all(scheduled.get(one) == 1 for one in decoding)
        for span in spans:
            reached = span.sequence.computed + span.count
            assert len(span.sequence.table.blocks) * 4 >= reached
        run(spans)
        for sequence in [one for one in left if len(one.tokens) >= ends[one]]:
            plan.remove(sequence)
            del left[sequence]
        if not left:
            break
    assert not left
    assert plan.pool.used == 0
