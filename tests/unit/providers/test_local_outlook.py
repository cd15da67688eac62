"""What the engine's queue and KV cache say of the next call."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.providers.local_outlook import outlook
from headrace.runtime.request import Counters

IDLE = Counters(
    places=4,
    prefill_token_seconds=0.001,
    step_seconds=0.02,
    turn_seconds=0.5,
    kv_blocks_total=100,
    kv_block_tokens=16,
)


def ttft(state: Counters, tokens: int = 100) -> float:
    found = outlook(state, tokens)
    assert found is not None
    return found[0]


def test_nothing_is_said_before_a_prompt_was_computed() -> None:
    assert outlook(Counters(places=4), 100) is None


def test_an_idle_engine_computes_the_prompt_at_once() -> None:
    assert outlook(IDLE, 100) == pytest.approx((0.1 + 0.02, 0.02))


def test_prompts_in_the_queue_are_computed_first() -> None:
    assert ttft(replace(IDLE, running=2, queued=(3000,))) == pytest.approx(3.0 + 0.12)


def test_longer_prompts_in_the_queue_let_a_short_one_pass() -> None:
    queue = replace(IDLE, running=2, queued=(0, 0, 0, 0, 0, 0, 60, 100, 0, 0, 0, 2000))
    assert ttft(queue, 100) == pytest.approx(0.16 + 0.12)
    assert ttft(queue, 2000) == pytest.approx(2.16 + 2.02)


def test_beside_sequences_that_decode_each_chunk_takes_a_step_of_theirs() -> None:
    assert ttft(replace(IDLE, running=2, chunk_tokens=20)) == pytest.approx(0.1 + 5 * 0.02 + 0.02)


def test_where_all_places_are_taken_a_call_waits_for_its_turn() -> None:
    full = replace(IDLE, running=4)
    assert ttft(full) == pytest.approx(0.5 + 0.12)
    assert ttft(replace(full, waiting=3, queued=(300,))) == pytest.approx(4 * 0.5 + 0.12)


def test_where_the_kv_cache_has_no_room_a_call_waits_for_its_turn() -> None:
    assert ttft(replace(IDLE, running=1, kv_blocks_used=94)) > 0.5
    assert ttft(replace(IDLE, running=1, kv_blocks_used=93)) < 0.5
