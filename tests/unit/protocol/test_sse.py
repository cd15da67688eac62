"""Server-sent events come out the same however the bytes are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.protocol.errors import UpstreamError
from headrace.protocol.sse import (
    DONE,
    HEARTBEAT,
    ServerSentEvent,
    SSEDecoder,
    data_frame,
)

line_text = st.text("a: {é日🌊\x85\u2028", max_size=8)


def decode(stream: bytes, cuts: list[int] | None = None) -> list[ServerSentEvent]:
    decoder = SSEDecoder()
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts or []), len(stream)]
    events: list[ServerSentEvent] = []
    for start, end in itertools.pairwise(edges):
        events += decoder.feed(stream[start:end])
    return events + decoder.finish()


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[list[str]]]:
    """A stream with mixed line ends, comments and multi-line data, and the data it carries."""
    ends = st.sampled_from(["\n", "\r\n", "\r"])
    stream = draw(st.sampled_from(["", "\ufeff"]))
    expected: list[list[str]] = []
    for _ in range(draw(st.integers(0, 4))):
        data = draw(st.lists(line_text, min_size=1, max_size=3))
        end = draw(ends)
        if draw(st.booleans()):
            stream += ": " + draw(line_text) + end
        for line in data:
            stream += "data: " + line + end
        stream += end
        expected.append(data)
    return stream.encode(), expected


@given(streams(), st.lists(st.integers(0, 400), max_size=20))
def test_any_split_of_a_stream_gives_the_same_events(
    case: tuple[bytes, list[list[str]]], cuts: list[int]
) -> None:
    stream, expected = case
    assert [event.data for event in decode(stream, cuts)] == ["\n".join(d) for d in expected]


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=10))
def test_any_split_of_arbitrary_bytes_gives_what_the_whole_gives(
    stream: bytes, cuts: list[int]
) -> None:
    assert decode(stream, cuts) == decode(stream)


def test_every_byte_by_itself_gives_the_same_events() -> None:
    stream = "\ufeffevent: error\r\ndata: Zoë\r\ndata: 日本\r\n\r\ndata: [DONE]\r\n\r\n".encode()
    expected = [
        ServerSentEvent(data="Zoë\n日本", event="error"),
        ServerSentEvent(data="[DONE]"),
    ]
    assert decode(stream, list(range(len(stream)))) == expected


def test_an_event_is_given_out_at_its_blank_line_even_when_that_ends_with_a_lone_cr() -> None:
    decoder = SSEDecoder()
    assert decoder.feed(b"data: a\r\r") == [ServerSentEvent(data="a")]
    assert decoder.feed(b"\ndata: b\n\n") == [ServerSentEvent(data="b")]


def test_comments_and_unknown_fields_are_skipped() -> None:
    assert decode(b": PROCESSING\n\nretry: 5\nfoo\n\ndata:x\n\n") == [ServerSentEvent(data="x")]


def test_a_stream_that_ends_without_its_blank_line_keeps_its_last_event() -> None:
    assert decode(b"data: 1\n\ndata: [DONE]") == [
        ServerSentEvent(data="1"),
        ServerSentEvent(data="[DONE]"),
    ]


def test_one_leading_space_is_framing_and_the_next_is_content() -> None:
    assert decode(b"data:  two\n\n") == [ServerSentEvent(data=" two")]


def test_an_id_stays_until_another_comes() -> None:
    events = decode(b"id: 7\ndata: a\n\ndata: b\n\nid: 8\ndata: c\n\n")
    assert [event.id for event in events] == ["7", "7", "8"]


@pytest.mark.parametrize(
    "chunk", [b"data: " + b"x" * 50, b"data: xxxxxxxxxx\n"], ids=["one line", "many lines"]
)
def test_an_event_without_end_is_an_upstream_error(chunk: bytes) -> None:
    decoder = SSEDecoder(max_event_bytes=1000)

    def feed_much() -> None:
        for _ in range(1000):
            decoder.feed(chunk)

    with pytest.raises(UpstreamError, match="over 1000 bytes"):
        feed_much()


def test_what_is_framed_is_decoded() -> None:
    assert decode(data_frame(b'{"a":1}') + HEARTBEAT + DONE) == [
        ServerSentEvent(data='{"a":1}'),
        ServerSentEvent(data="[DONE]"),
    ]
