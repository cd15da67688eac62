"""What the calls so far say of the next one."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.router.latency import KNOWN, Line, Met, Speeds
from headrace.router.plan import Speed

HOST = ("up", "m")


def predicted(speeds: Speeds, tokens: int) -> float:
    speed = speeds.predicted(*HOST, tokens)
    assert speed is not None
    return speed.ttft


def test_nothing_is_predicted_of_a_host_that_was_never_called() -> None:
    assert Speeds().predicted(*HOST, 10) is None


def test_one_call_is_a_prediction() -> None:
    speeds = Speeds()
    speeds.first(*HOST, Met(100, 0.0), 0.4)
    assert predicted(speeds, 100) == pytest.approx(0.4, rel=0.05)


def test_longer_prompts_and_more_load_take_longer() -> None:
    chance = random.Random(1)
    running = 0.0
    speeds = Speeds(lambda provider, model: running)
    for _ in range(200):
        tokens, load = chance.randrange(10_000), float(chance.randrange(8))
        speeds.first(*HOST, Met(tokens, load), 0.2 + 0.0001 * tokens + 0.05 * load)
    assert predicted(speeds, 0) == pytest.approx(0.2, abs=0.03)
    assert predicted(speeds, 8000) == pytest.approx(1.0, abs=0.05)
    running = 4.0
    assert predicted(speeds, 8000) == pytest.approx(1.2, abs=0.05)


def test_a_change_is_learned() -> None:
    speeds = Speeds()
    for seconds in [0.1] * 100 + [0.5] * 100:
        speeds.first(*HOST, Met(100, 0.0), seconds)
    assert predicted(speeds, 100) == pytest.approx(0.5, abs=0.05)


def test_an_answer_far_later_than_usual_is_late_once_the_usual_is_known() -> None:
    speeds = Speeds()
    assert not any(speeds.first(*HOST, Met(100, 0.0), s) for s in [9.0] + [0.3] * KNOWN * 20)
    assert not speeds.first(*HOST, Met(100, 0.0), 1.2)
    assert speeds.first(*HOST, Met(100, 0.0), 8.0)


def test_the_calls_that_run_are_the_load_until_they_end() -> None:
    speeds = Speeds()
    assert [speeds.begun(*HOST, 10).load for _ in range(2)] == [0.0, 1.0]
    speeds.ended(*HOST)
    speeds.ended(*HOST)
    assert speeds.load(*HOST) == 0.0


samples = st.tuples(st.floats(0, 200), st.floats(0, 2000), st.floats(0, 600))


@given(st.lists(samples, min_size=1, max_size=60), st.floats(0, 200), st.floats(0, 2000))
def test_a_prediction_is_a_time_whatever_was_seen(
    seen: list[tuple[float, float, float]], length: float, load: float
) -> None:
    line = Line(3)
    for tokens, others, seconds in seen:
        line.add((1.0, tokens, others), seconds)
    value = line.at((1.0, length, load))
    assert 0.0 <= value < 1e9


def test_what_an_engine_says_of_itself_is_the_prediction_before_any_call() -> None:
    speeds = Speeds(outlook=lambda provider, model, tokens: Speed(0.002 * tokens, 0.01))
    assert speeds.predicted(*HOST, 500) == Speed(1.0, 0.01)


def test_how_many_times_what_an_engine_says_it_takes_is_learned() -> None:
    queued = 0
    speeds = Speeds(outlook=lambda provider, model, tokens: Speed(0.001 * (queued + tokens), 0.01))
    for queued in [0, 4000, 1000, 9000] * 10:
        met = speeds.begun(*HOST, 100)
        speeds.first(*HOST, met, 1.2 * 0.001 * (queued + 100))
        speeds.ended(*HOST)
    queued = 20_000  # more than there ever were
    assert predicted(speeds, 100) == pytest.approx(1.2 * 20.1, rel=0.05)


def test_one_call_of_an_idle_engine_does_not_hide_the_queue_of_a_busy_one() -> None:
    queued = 0
    speeds = Speeds(outlook=lambda provider, model, tokens: Speed(0.001 * (queued + tokens), 0.01))
    speeds.first(*HOST, speeds.begun(*HOST, 20), 0.04)
    queued = 3000
    assert predicted(speeds, 20) == pytest.approx(3.04, rel=0.1)
