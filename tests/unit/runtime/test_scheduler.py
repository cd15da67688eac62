"""The scheduler: decodes never wait, nobody is lost, the budget holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.runtime.kvcache import BlockPool
from headrace.runtime.options import Limits
from headrace.runtime.pace import Pace
from headrace.runtime.scheduler import Scheduler, Span
from headrace.runtime.sequence import Sequence
from tests.fakes.batches import new_sequence


def prompt(tokens: int) -> Sequence:
    return new_sequence([0] * tokens)


def scheduler(blocks: int = 64, *, budget: int = 8, sequences: int = 4) -> Scheduler:
    return Scheduler(BlockPool(blocks, 4), Limits(budget, sequences), Pace(0.0, 0.001))


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
    run(plan.schedule(0.0))
    plan.add(long)
    assert planned(plan.schedule(0.0)) == {short: 1, long: 7}
    run(plan.schedule(0.0))
    assert planned(plan.schedule(0.0)) == {short: 1, long: 7}


def test_several_prompts_share_a_step() -> None:
    plan = scheduler()
    first, second, third = prompt(3), prompt(3), prompt(3)
    for sequence in (first, second, third):
        plan.add(sequence)
    assert planned(plan.schedule(0.0)) == {first: 3, second: 3, third: 2}


def test_the_youngest_gives_way_when_blocks_run_out_and_comes_back() -> None:
    plan = scheduler(blocks=4)
    old, young = prompt(4), prompt(3)
    young.arrived = 1.0
    plan.add(old)
    plan.add(young)
    while not plan.preempted:
        run(plan.schedule(0.0))
    assert list(plan.running) == [old]
    assert young.table.blocks == []
    assert young.computed == 0
    plan.remove(old)
    spans = plan.schedule(0.0)
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
        spans = plan.schedule(0.0)
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


def test_a_short_prompt_passes_a_long_one() -> None:
    plan = scheduler(budget=8)
    long, short = prompt(100), prompt(4)
    plan.add(long)
    run(plan.schedule(0.0))
    short.arrived = 0.01
    plan.add(short)
    assert planned(plan.schedule(0.02)) == {short: 4, long: 4}


def test_a_long_prompt_is_not_starved_by_a_stream_of_short_ones() -> None:
    """Each step a new short prompt comes that could fill it; each is computed and leaves."""
    plan = scheduler(blocks=200, budget=8)
    long = prompt(200)
    plan.add(long)
    for step in range(1, 400):
        now = step * 0.008
        short = prompt(8)
        short.arrived = now - 0.004
        plan.add(short)
        run(plan.schedule(now))
        for done in [one for one in plan.running if one.pending == 1]:
            plan.remove(done)
        if long not in plan.running and long not in plan.waiting:
            return
    raise AssertionError(f"{long.computed} of 200 tokens after {step} steps")


def test_priority_goes_before_all_else() -> None:
    plan = scheduler(budget=8)
    early, urgent = prompt(8), prompt(80)
    urgent.priority, urgent.arrived = 1, 5.0
    plan.add(early)
    plan.add(urgent)
    assert planned(plan.schedule(5.0)) == {urgent: 8}


def test_who_would_miss_its_deadline_goes_before_shorter_ones() -> None:
    plan = scheduler(budget=8)
    short, due = prompt(8), prompt(16)
    due.deadline = 0.02  # of which its prefill takes 0.016
    plan.add(short)
    plan.add(due)
    assert planned(plan.schedule(0.0)) == {due: 8}


def test_who_cannot_meet_its_deadline_is_named_and_the_others_are_not() -> None:
    plan = scheduler()
    hopeless, fine, easy = prompt(50), prompt(50), prompt(50)
    hopeless.deadline, fine.deadline = 0.04, 0.06
    for sequence in (hopeless, fine, easy):
        plan.add(sequence)
    assert plan.late(0.0) == [hopeless]
    assert plan.late(0.02) == [hopeless, fine]


def test_a_chunk_beside_decodes_is_no_longer_than_their_step_may_be() -> None:
    plan = Scheduler(
        BlockPool(200, 4), Limits(256, 4, step=0.1), Pace(decode=0.02, per_prefill_token=0.001)
    )
    decoding, long = prompt(4), prompt(500)
    plan.add(decoding)
    run(plan.schedule(0.0))
    plan.add(long)
    assert planned(plan.schedule(0.0)) == {decoding: 1, long: 80}
    decoding.step_target = 0.05
    assert planned(plan.schedule(0.0)) == {decoding: 1, long: 30}


def test_chunks_shrink_within_a_few_steps_as_a_prompt_grows_dearer() -> None:
    pace, longest = Pace(decode=0.02), 0.0
    pace.measured(0, 512, 0.512)
    for price in [0.001] * 5 + [0.002] * 8:
        chunk = pace.chunk(0.1, 512)
        longest = 0.02 + chunk * price
        pace.measured(1, chunk, longest)
    assert longest < 0.103
    assert pace.prefill_seconds(100) < 0.17  # what others are told is a mean


def test_the_lower_priority_gives_way_when_blocks_run_out() -> None:
    plan = scheduler(blocks=4)
    low, high = prompt(4), prompt(3)
    high.priority, high.arrived = 1, 1.0
    plan.add(low)
    plan.add(high)
    while not plan.preempted:
        run(plan.schedule(1.0))
    assert list(plan.running) == [high]
