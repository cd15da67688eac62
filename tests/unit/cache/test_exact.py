"""What the exact cache keeps, and for how long."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cache.exact import ExactCache, size_of
from headrace.protocol.generation import Event, TextDelta, ToolCallDelta
from tests.unit.cache.answers import answer, finished


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def cache(max_bytes: int = 1 << 20, ttl: float = 60.0) -> tuple[ExactCache, Clock]:
    clock = Clock()
    return ExactCache(ttl=ttl, max_bytes=max_bytes, clock=clock), clock


def test_an_answer_comes_back_event_by_event() -> None:
    store, _ = cache()
    assert store.get(b"k") is None
    assert store.put(b"k", answer("a", "b"))
    assert store.get(b"k") == answer("a", "b")
    assert store.get(b"other") is None


def test_an_answer_is_forgotten_when_its_time_is_over() -> None:
    store, clock = cache(ttl=10)
    store.put(b"k", answer("a"))
    clock.now = 9.9
    assert store.get(b"k") is not None
    clock.now = 10.0
    assert store.get(b"k") is None
    assert (len(store), store.size) == (0, 0)


def test_reading_does_not_lengthen_an_answers_time_but_putting_does() -> None:
    store, clock = cache(ttl=10)
    store.put(b"k", answer("a"))
    clock.now = 9.0
    store.get(b"k")
    store.put(b"l", answer("a"))
    clock.now = 11.0
    assert store.get(b"k") is None
    assert store.get(b"l") is not None


def test_the_answer_unused_for_longest_makes_room() -> None:
    one = size_of(answer("x" * 100))
    store, _ = cache(max_bytes=2 * one)
    store.put(b"a", answer("x" * 100))
    store.put(b"b", answer("y" * 100))
    store.get(b"a")
    store.put(b"c", answer("z" * 100))
    assert store.get(b"b") is None
    assert store.get(b"a") is not None
    assert store.get(b"c") is not None


def test_an_answer_larger_than_the_cache_is_not_kept_and_drives_nothing_out() -> None:
    store, _ = cache(max_bytes=2000)
    store.put(b"a", answer("x"))
    assert not store.put(b"b", answer("x" * 5000))
    assert store.get(b"a") is not None


def test_an_answer_put_twice_is_counted_once() -> None:
    store, _ = cache()
    store.put(b"a", answer("x" * 1000))
    store.put(b"a", answer("y"))
    assert store.get(b"a") == answer("y")
    assert store.size == size_of(answer("y"))


@pytest.mark.parametrize(
    "events",
    [
        (),
        (TextDelta("cut"),),
        answer("filtered", reason="content_filter"),
        answer("called", reason="tool_calls"),
        (ToolCallDelta(index=0, id="c", name="f"), finished()),
    ],
)
def test_what_is_not_a_whole_answer_of_text_is_not_kept(events: tuple[Event, ...]) -> None:
    store, _ = cache()
    assert not store.put(b"k", events)
    assert store.get(b"k") is None


def test_an_answer_that_ended_at_its_length_is_kept() -> None:
    store, _ = cache()
    assert store.put(b"k", answer("a", reason="length"))


STEPS = st.lists(
    st.tuples(st.sampled_from("pgt"), st.integers(0, 6), st.integers(0, 2000)), max_size=60
)


@given(STEPS)
def test_the_bound_holds_and_the_count_is_right_whatever_happens(
    steps: list[tuple[str, int, int]],
) -> None:
    store, clock = cache(max_bytes=6000, ttl=20)
    model: dict[bytes, tuple[Event, ...]] = {}
    for kind, name, amount in steps:
        key = bytes([name])
        if kind == "p":
            events = answer("x" * amount)
            if store.put(key, events):
                model[key] = events
        elif kind == "g":
            assert store.get(key) in (None, model.get(key))
        else:
            clock.now += amount / 200
        assert 0 <= store.size <= 6000
    clock.now += 21
    for key in list(model):
        assert store.get(key) is None
    assert (len(store), store.size) == (0, 0)


def test_the_estimate_is_not_below_what_python_holds() -> None:
    store, _ = cache(max_bytes=1 << 30)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(200):
        texts = [f"{number} {place} é" for place in range(50)]
        store.put(number.to_bytes(32, "big"), answer(*texts))
        del texts
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert held < store.size < 3 * held
