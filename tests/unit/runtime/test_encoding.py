"""Requests to one encoder share its steps in turn, and each gets its own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from headrace.registry.pull import pull
from headrace.runtime.embedding import Encoder, EncoderOptions
from headrace.runtime.encoding import EncoderQueue
from headrace.runtime.request import EncodeRequest, Encoding, RequestRefused


@pytest.fixture(scope="module")
def encoder() -> Iterator[Encoder]:
    options = EncoderOptions(batch_tokens=24, batch_texts=4)
    with Encoder.load(pull("minilm-l6"), options) as encoder:
        yield encoder


def embed(id: str, *texts: str) -> EncodeRequest:
    return EncodeRequest(id, "embed", texts)


def finished(queue: EncoderQueue) -> dict[str, tuple[int, Encoding]]:
    """Each request by the step that ended it."""
    found = {}
    while not queue.idle:
        for encoding in queue.step():
            found[encoding.id] = (queue.steps, encoding)
    return found


def vectors(encoding: Encoding) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.frombuffer(encoding.values, np.float32).reshape(-1, encoding.width)


def test_a_short_request_does_not_wait_for_a_long_one(encoder: Encoder) -> None:
    queue = EncoderQueue(encoder)
    texts = [f"text number {index}" for index in range(40)]
    queue.submit(embed("long", *texts))
    queue.submit(embed("short", "a river"))
    found = finished(queue)
    assert found["short"][0] == 1
    assert found["long"][0] >= 10
    np.testing.assert_allclose(vectors(found["long"][1]), encoder.embed(texts).vectors, atol=1e-5)


def test_no_request_starves_behind_many_long_ones(encoder: Encoder) -> None:
    queue = EncoderQueue(encoder)
    for index in range(6):
        queue.submit(embed(f"long {index}", *["a b c"] * 30))
    queue.submit(embed("last", "d"))
    assert finished(queue)["last"][0] <= 3


def test_a_step_stays_within_its_tokens(encoder: Encoder) -> None:
    queue = EncoderQueue(encoder)
    for index in range(8):
        queue.submit(embed(str(index), "one two three four five six seven"))  # 9 tokens
    while not queue.idle:
        before = queue.tokens
        queue.step()
        assert queue.tokens - before <= 24


def test_a_cancelled_request_costs_no_more_steps(encoder: Encoder) -> None:
    queue = EncoderQueue(encoder)
    queue.submit(embed("a", *["x"] * 40))
    queue.step()
    queue.cancel("a")
    assert queue.idle
    assert queue.counters().cancelled == 1


def test_one_text_that_cannot_be_read_refuses_its_request_alone(encoder: Encoder) -> None:
    queue = EncoderQueue(encoder)
    queue.submit(embed("good", "a river"))
    with pytest.raises(RequestRefused) as caught:
        queue.submit(embed("bad", "fine", "word " * 600))
    assert caught.value.code == "context_too_long"
    assert list(finished(queue)) == ["good"]


def test_a_long_text_is_cut_where_that_is_wished(encoder: Encoder) -> None:
    queue = EncoderQueue(encoder)
    queue.submit(EncodeRequest("cut", "embed", ("word " * 600,), truncate=True))
    assert finished(queue)["cut"][1].tokens == encoder.reader.longest
