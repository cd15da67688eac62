"""Dollars: each token is priced once, by what it was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config.schema import Configuration, Model, Price, UpstreamProvider, Within
from headrace.protocol.generation import Usage
from headrace.router.cost import cost
from headrace.router.facts import Facts
from headrace.router.fitness import outside, promised
from headrace.router.plan import Snapshot

COUNT = st.integers(0, 10**6)


@given(prompt=COUNT, cached=COUNT, written=COUNT, long=COUNT, answer=COUNT)
def test_at_one_price_for_all_the_buckets_add_up_to_all_tokens(
    prompt: int, cached: int, written: int, long: int, answer: int
) -> None:
    flat = Price(input=1e6, output=1e6, cached_input=1e6, cache_write=1e6, cache_write_1h=1e6)
    usage = Usage(prompt, answer, cached, written, long)
    assert cost(flat, usage) == prompt + answer


def test_cache_reads_and_writes_have_their_own_price() -> None:
    price = Price(input=3, output=15, cached_input=0.3, cache_write=3.75, cache_write_1h=6)
    usage = Usage(1000, 100, cached_tokens=400, cache_write_tokens=300, cache_write_1h_tokens=100)
    expected = (300 * 3 + 400 * 0.3 + 200 * 3.75 + 100 * 6 + 100 * 15) / 1e6
    assert cost(price, usage) == pytest.approx(expected)


def test_a_rule_with_a_bound_on_cost_says_that_a_price_is_not_known() -> None:
    configuration = Configuration(
        providers={"up": UpstreamProvider(base_url="http://127.0.0.1:9/v1")},
        models={"a": Model(source="x", provider="up")},
    )
    facts = Facts(endpoint="chat", model="a", prompt_tokens=10)
    attempt = promised("a", configuration, facts, Snapshot(), "asked for")
    assert attempt.cost is None
    said = outside(attempt, Within(max_cost=1.0), configuration, Snapshot())
    assert said is not None
    assert "not known" in said
    assert outside(attempt, Within(), configuration, Snapshot()) is None
