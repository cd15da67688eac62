"""When a provider cools, and for how long."""

from __future__ import annotations

import pytest

from headrace.protocol.errors import (
    HeadraceError,
    InvalidField,
    ModelNotFound,
    Overloaded,
    RateLimited,
    RefusedByUpstream,
    UpstreamError,
    UpstreamTimeout,
)
from headrace.router.health import LONGEST, SHORTEST, THRESHOLD, Health


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def cools(health: Health, provider: str = "a") -> bool:
    return provider in health.snapshot().cooling


def fail(health: Health, times: int, provider: str = "a") -> None:
    for _ in range(times):
        health.failed(provider, UpstreamError("it broke"))


def rest(health: Health, clock: Clock) -> float:
    """Seconds until the provider may be tried again, to 0.5."""
    started = clock.now
    while cools(health):
        clock.now += 0.5
    return clock.now - started


def test_a_provider_cools_after_failures_in_a_row_and_says_why() -> None:
    health = Health(Clock())
    fail(health, THRESHOLD - 1)
    assert not cools(health)
    fail(health, 1)
    assert health.snapshot().cooling == {
        "a": "'a' cools for 5 s: 3 failures in a row, the last one: upstream_error"
    }


def test_the_reason_names_the_status_but_does_not_quote_the_upstream() -> None:
    health = Health(Clock())
    for _ in range(THRESHOLD):
        health.failed("a", UpstreamError("no: 'a private prompt'", upstream_status=500))
    reason = health.snapshot().cooling["a"]
    assert reason.endswith("the last one: upstream_error (status 500)")


def test_one_provider_does_not_cool_for_another() -> None:
    health = Health(Clock())
    fail(health, THRESHOLD, "b")
    assert not cools(health, "a")


def test_a_success_between_failures_starts_the_count_again() -> None:
    health = Health(Clock())
    fail(health, THRESHOLD - 1)
    health.succeeded("a")
    fail(health, THRESHOLD - 1)
    assert not cools(health)


def test_a_success_ends_a_cooling() -> None:
    health = Health(Clock())
    fail(health, THRESHOLD)
    health.succeeded("a")
    assert not cools(health)


def test_each_cooling_is_twice_the_one_before_and_bounded() -> None:
    clock = Clock()
    health = Health(clock)
    fail(health, THRESHOLD)
    rests = [rest(health, clock)]
    for _ in range(9):
        fail(health, 1)
        rests.append(rest(health, clock))
    assert rests[:4] == [SHORTEST, 2 * SHORTEST, 4 * SHORTEST, 8 * SHORTEST]
    assert rests[-2:] == [LONGEST, LONGEST]


def test_after_a_success_the_first_cooling_is_short_again() -> None:
    clock = Clock()
    health = Health(clock)
    fail(health, THRESHOLD)
    rest(health, clock)
    fail(health, 1)
    health.succeeded("a")
    fail(health, THRESHOLD)
    assert rest(health, clock) == SHORTEST


def test_failures_of_calls_already_under_way_do_not_lengthen_a_cooling() -> None:
    clock = Clock()
    health = Health(clock)
    fail(health, 100)
    assert rest(health, clock) == SHORTEST


@pytest.mark.parametrize(
    ("asked", "given"), [(20.0, 20.0), (0.0, 0.0), (-5.0, 0.0), (1e9, LONGEST)]
)
def test_a_rate_limit_cools_for_as_long_as_asked_within_bounds(asked: float, given: float) -> None:
    clock = Clock()
    health = Health(clock)
    health.failed("a", RateLimited("slow down", retry_after=asked))
    assert rest(health, clock) == given


def test_a_shorter_wish_does_not_end_a_longer_cooling() -> None:
    clock = Clock()
    health = Health(clock)
    health.failed("a", RateLimited("slow down", retry_after=60.0))
    health.failed("a", UpstreamError("busy", retry_after=1.0))
    assert rest(health, clock) == 60.0


@pytest.mark.parametrize(
    "error", [UpstreamError("", retry_after=9.0), Overloaded("", retry_after=9.0)]
)
def test_an_overloaded_provider_that_names_a_time_cools_at_once(error: HeadraceError) -> None:
    clock = Clock()
    health = Health(clock)
    health.failed("a", error)
    assert rest(health, clock) == 9.0


def test_timeouts_and_rate_limits_without_a_time_count_as_failures() -> None:
    health = Health(Clock())
    health.failed("a", UpstreamTimeout("slow"))
    health.failed("a", RateLimited("slow down"))
    assert not cools(health)
    health.failed("a", UpstreamTimeout("slow"))
    assert cools(health)


@pytest.mark.parametrize(
    "error",
    [
        InvalidField("x", "y"),
        ModelNotFound("x"),
        RefusedByUpstream("no", status=400),
    ],
)
def test_a_callers_fault_says_nothing_about_the_provider(error: HeadraceError) -> None:
    health = Health(Clock())
    for _ in range(THRESHOLD):
        health.failed("a", error)
    assert not cools(health)


def test_a_snapshot_does_not_change_afterwards() -> None:
    health = Health(Clock())
    before = health.snapshot()
    fail(health, THRESHOLD)
    assert before.cooling == {}
