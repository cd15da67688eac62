"""What an upstream's chunks become, whatever the upstream's habits."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.protocol.errors import HeadraceError, RateLimited, RefusedByUpstream, UpstreamError
from headrace.protocol.generation import (
    ChoiceFinished,
    Event,
    Finished,
    GenerationRequest,
    Message,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from headrace.protocol.sse import SSEDecoder
from headrace.providers.openai_chunks import MAX_TOOL_CALLS, Translator
from tests.fakes.upstream import DONE, chunk, sse, usage_chunk

REQUEST = GenerationRequest(
    endpoint="chat", model="m", messages=(Message(role="user", content="x" * 40),)
)


def translate(*frames: bytes, size: int | None = None) -> list[Event]:
    """The events of a stream of frames, cut into pieces of `size` bytes."""
    numbers = itertools.count()
    translator = Translator("up", lambda: f"new_{next(numbers)}")
    decoder = SSEDecoder()
    whole = b"".join(frames)
    size = size or max(len(whole), 1)
    events: list[Event] = []
    items = [
        item for at in range(0, len(whole), size) for item in decoder.feed(whole[at : at + size])
    ]
    for item in [*items, *decoder.finish()]:
        if item.data.strip() == "[DONE]":
            break
        events.extend(translator.feed(item.data))
    return [*events, *translator.end(REQUEST)]


def call(**fields: Any) -> dict[str, Any]:
    """A delta with one tool call."""
    function = {name: fields.pop(name) for name in ("name", "arguments") if name in fields}
    return {"tool_calls": [{**fields, "function": function}]}


def calls(*deltas: dict[str, Any], finish: str = "tool_calls") -> list[dict[str, Any]]:
    """The tool calls of an answer, put together."""
    events = translate(*(chunk(delta) for delta in deltas), chunk({}, finish), usage_chunk())
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == "tool_calls"
    together: list[dict[str, Any]] = []
    for event in events[:-1]:
        assert isinstance(event, ToolCallDelta)
        if event.index == len(together):
            assert event.id
            assert event.name
            together.append({"id": event.id, "name": event.name, "arguments": ""})
        else:
            assert event.id is None
            assert event.name is None
        together[event.index]["arguments"] += event.arguments
    return together


def test_text_usage_and_reason_come_through() -> None:
    events = translate(
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "Hé"}),
        chunk({"content": "llo"}),
        chunk({}, "stop"),
        usage_chunk(
            {
                "prompt_tokens": 9,
                "completion_tokens": 3,
                "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
            }
        ),
        DONE,
    )
    usage = Usage(prompt_tokens=9, completion_tokens=3, cached_tokens=4)
    assert events == [TextDelta("Hé"), TextDelta("llo"), Finished("stop", usage)]
    assert usage.provenance == "provider"


USAGE = {"prompt_tokens": 7, "completion_tokens": 2}


@pytest.mark.parametrize(
    "tail",
    [
        [chunk({}, "stop"), usage_chunk(USAGE)],
        [chunk({}, "stop"), sse({"choices": [{"delta": {}}], "usage": USAGE})],
        [chunk({}, "stop", usage=USAGE)],
        [chunk({}, "stop"), sse({"choices": None, "usage": USAGE})],
        [chunk({}, "stop"), sse({"usage": USAGE})],
        [
            chunk({}, "stop", usage={"prompt_tokens": 7, "completion_tokens": 1}),
            usage_chunk(USAGE),
        ],
        [chunk({}, "stop", usage=USAGE), chunk({}, None, usage=None)],
        [chunk({}, "stop"), usage_chunk({**USAGE, "prompt_tokens_details": None})],
    ],
)
def test_usage_is_found_wherever_an_upstream_puts_it_and_the_last_counts(
    tail: list[bytes],
) -> None:
    events = translate(chunk({"content": "hi"}, usage=None), *tail)
    assert events == [
        TextDelta("hi"),
        Finished("stop", Usage(prompt_tokens=7, completion_tokens=2)),
    ]


def test_without_usage_an_estimate_is_given_and_called_one() -> None:
    finished = translate(chunk({"content": "12345678"}), chunk({}, "stop"))[-1]
    assert isinstance(finished, Finished)
    assert finished.usage == Usage(prompt_tokens=10, completion_tokens=2, provenance="estimated")


def test_nonsense_counts_are_put_right() -> None:
    usage = {
        "prompt_tokens": 3,
        "completion_tokens": -1,
        "prompt_tokens_details": {"cached_tokens": 9},
    }
    finished = translate(chunk({"content": "a"}), chunk({}, "stop"), usage_chunk(usage))[-1]
    assert isinstance(finished, Finished)
    assert finished.usage == Usage(prompt_tokens=3, completion_tokens=0, cached_tokens=3)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("stop", "stop"),
        ("STOP", "stop"),
        ("eos_token", "stop"),
        ("length", "length"),
        ("max_tokens", "length"),
        ("content_filter", "content_filter"),
    ],
)
def test_finish_reasons_are_said_in_one_way(theirs: str, ours: str) -> None:
    finished = translate(chunk({"content": "a"}), chunk({}, theirs))[-1]
    assert isinstance(finished, Finished)
    assert finished.reason == ours


def test_an_unknown_finish_reason_is_never_taken_for_a_good_end() -> None:
    with pytest.raises(UpstreamError, match="unknown reason 'abort'"):
        translate(chunk({"content": "a"}), chunk({}, "abort"))


@pytest.mark.parametrize("frames", [[], [chunk({"content": "a"})], [chunk({"content": "a"}), DONE]])
def test_an_answer_without_a_finish_reason_was_cut(frames: list[bytes]) -> None:
    with pytest.raises(UpstreamError, match="cut off"):
        translate(*frames)


def test_completions_text_and_a_refusal_are_text() -> None:
    assert translate(sse({"choices": [{"text": "a", "index": 0}]}), chunk({}, "stop"))[0] == (
        TextDelta("a")
    )
    assert translate(chunk({"refusal": "I will not"}), chunk({}, "stop"))[0] == (
        TextDelta("I will not")
    )


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning_content": "Hm."},
        {"reasoning": "Hm."},
        {"reasoning": "Hm.", "reasoning_content": "Hm."},
        {"reasoning": "Hm.", "reasoning_content": None, "content": ""},
    ],
)
def test_reasoning_comes_through_under_either_name(delta: dict[str, Any]) -> None:
    events = translate(chunk(delta), chunk({"content": "a"}), chunk({}, "stop"))
    assert events[:2] == [ReasoningDelta("Hm."), TextDelta("a")]
    whole = sse({"choices": [{"message": {**delta, "content": "a"}, "finish_reason": "stop"}]})
    assert translate(whole)[:2] == [ReasoningDelta("Hm."), TextDelta("a")]


def test_reasoning_that_is_no_text_is_left_out() -> None:
    events = translate(chunk({"reasoning": {"effort": 1}}), chunk({"content": "a"}, "stop"))
    assert events[0] == TextDelta("a")


def test_content_in_parts_is_put_together() -> None:
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "a"}]
    assert translate(chunk({"content": parts}), chunk({}, "stop"))[0] == TextDelta("a")


def test_other_choices_are_not_mixed_in() -> None:
    other = sse({"choices": [{"index": 1, "delta": {"content": "b"}, "finish_reason": "stop"}]})
    assert translate(chunk({"content": "a"}), other, chunk({}, "length"))[:-1] == [TextDelta("a")]


@pytest.mark.parametrize(
    "frame",
    [
        b"data: {not json\n\n",
        b"data: 3\n\n",
        b"data: []\n\n",
        b'data: {"choices": 3}\n\n',
        b'data: {"choices": [{"delta": {"content": 3}}]}\n\n',
        b"data: " + b"[" * 100_000 + b"\n\n",
        b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n',
    ],
)
def test_malformed_chunks_are_an_upstream_error_or_nothing(frame: bytes) -> None:
    with pytest.raises(UpstreamError):
        translate(frame)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        ({"message": "it burns", "type": "server_error"}, UpstreamError, "it burns"),
        ({"message": "slow down", "code": 429}, RateLimited, "slow down"),
        ({"message": "bad x", "code": 400, "param": "x"}, RefusedByUpstream, "bad x"),
        ({"message": "it burns", "code": 502}, UpstreamError, "it burns"),
        ("plain words", UpstreamError, "plain words"),
        ({}, UpstreamError, "broke its answer off"),
        ([], UpstreamError, "broke its answer off"),
    ],
)
def test_an_error_inside_a_stream_is_raised_in_kind(
    error: object, kind: type[HeadraceError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        translate(chunk({"content": "a"}), sse({"error": error}), chunk({}, "stop"))


def test_an_error_object_without_a_wrapper_is_an_error_too() -> None:
    with pytest.raises(RefusedByUpstream, match="too long"):
        translate(sse({"object": "error", "message": "too long", "code": 400}))


def test_a_tool_call_comes_through_piece_by_piece() -> None:
    events = translate(
        chunk(call(index=0, id="c1", name="f", arguments="")),
        chunk(call(index=0, arguments='{"a"')),
        chunk(call(index=0, arguments=":1}")),
        chunk({}, "tool_calls"),
    )
    assert events[:-1] == [
        ToolCallDelta(index=0, id="c1", name="f"),
        ToolCallDelta(index=0, arguments='{"a"'),
        ToolCallDelta(index=0, arguments=":1}"),
    ]


F = {"id": "c1", "name": "f", "arguments": '{"a":1}'}
G = {"id": "c2", "name": "g", "arguments": '{"b":2}'}


@pytest.mark.parametrize(
    "deltas",
    [
        # by index, interleaved
        [
            call(index=0, id="c1", name="f"),
            call(index=1, id="c2", name="g"),
            call(index=1, arguments='{"b"'),
            call(index=0, arguments='{"a":1}'),
            call(index=1, arguments=":2}"),
        ],
        # every call has the index 0
        [call(index=0, **F), call(index=0, **G)],
        [
            call(index=0, id="c1", name="f", arguments='{"a"'),
            call(index=0, arguments=":1}"),
            call(index=0, id="c2", name="g", arguments='{"b"'),
            call(index=0, arguments=":2}"),
        ],
        # no index: the id says it
        [
            call(id="c1", name="f", arguments='{"a"'),
            call(id="c2", name="g", arguments='{"b"'),
            call(id="c1", arguments=":1}"),
            call(id="c2", arguments=":2}"),
        ],
        # no index and no id: the current call
        [
            call(id="c1", name="f", arguments='{"a"'),
            call(arguments=":1}"),
            call(id="c2", name="g"),
            call(arguments='{"b":2}'),
        ],
        # id and name in every delta, or empty in the later ones
        [
            call(index=0, id="c1", name="f", arguments='{"a"'),
            call(index=0, id="c1", name="f", arguments=":1}"),
            call(index=1, id="c2", name="g", arguments='{"b"'),
            call(index=1, id="", name="", arguments=":2}"),
        ],
        # indices that do not start at 0
        [call(index=3, **F), call(index=7, **G)],
        # a placeholder before the real arguments
        [
            call(index=0, id="c1", name="f", arguments="{}"),
            call(index=0, arguments='{"a":1}'),
            call(index=1, **G),
        ],
        # the name after the id
        [call(index=0, id="c1"), call(index=0, name="f", arguments='{"a":1}'), call(index=1, **G)],
        # arguments as an object
        [call(index=0, id="c1", name="f", arguments={"a": 1}), call(index=1, **G)],
        # both in one chunk
        [{"tool_calls": call(**F)["tool_calls"] + call(**G)["tool_calls"]}],
    ],
)
def test_parallel_tool_calls_are_kept_apart(deltas: list[dict[str, Any]]) -> None:
    copies = json.loads(json.dumps(deltas))
    assert calls(*copies) == [F, G]


def test_one_name_called_twice_is_two_calls() -> None:
    again = {**F, "id": "c9"}
    assert calls(call(index=0, **F), call(index=1, **again)) == [F, again]


def test_empty_arguments_stay_an_empty_object() -> None:
    assert calls(call(index=0, id="c1", name="f", arguments="{}"))[0]["arguments"] == "{}"


def test_a_call_without_an_id_gets_one() -> None:
    assert [c["id"] for c in calls(call(index=0, name="f"), call(index=1, name="g"))] == [
        "new_0",
        "new_1",
    ]


def test_a_stop_after_a_tool_call_is_said_to_be_one() -> None:
    assert calls(call(index=0, **F), finish="stop") == [F]


def test_a_call_that_never_had_a_name_is_an_error() -> None:
    with pytest.raises(UpstreamError, match="no name"):
        translate(chunk(call(index=0, id="c1", arguments="{}")), chunk({}, "tool_calls"))


def test_calls_without_end_are_an_error() -> None:
    with pytest.raises(UpstreamError, match="over 128"):
        translate(*(chunk(call(index=i, name="f")) for i in range(MAX_TOOL_CALLS + 1)))


TRANSCRIPTS = st.lists(
    st.tuples(st.sampled_from(["f", "g"]), st.text(min_size=1, max_size=12)),
    min_size=1,
    max_size=4,
)


@given(TRANSCRIPTS, st.data())
def test_any_split_of_any_parallel_calls_comes_out_whole(
    transcript: list[tuple[str, str]], data: st.DataObject
) -> None:
    texts = [json.dumps({"x": text}) for _, text in transcript]
    deltas = [call(index=i, id=f"c{i}", name=name) for i, (name, _) in enumerate(transcript)]
    left = list(texts)
    while any(left):
        i = data.draw(st.sampled_from([i for i, text in enumerate(left) if text]))
        size = data.draw(st.integers(1, len(left[i])))
        deltas.append(call(index=i, arguments=left[i][:size]))
        left[i] = left[i][size:]
    assert calls(*deltas) == [
        {"id": f"c{i}", "name": name, "arguments": texts[i]}
        for i, (name, _) in enumerate(transcript)
    ]


@given(st.lists(st.text(min_size=1), max_size=5), st.integers(1, 40))
def test_the_events_do_not_depend_on_how_the_bytes_were_cut(texts: list[str], size: int) -> None:
    frames = [
        b": PROCESSING\n\n",
        *(chunk({"content": text}) for text in texts),
        chunk({}, "stop"),
        usage_chunk(),
        DONE,
    ]
    events = translate(*frames)
    assert translate(*frames, size=size) == events
    assert events[:-1] == [TextDelta(text) for text in texts]


def several(*choices: dict[str, Any], wanted: int = 2) -> list[Event]:
    """The events of a stream with one choice in each chunk, for a caller who wants `wanted`."""
    translator = Translator("up", lambda: "new", wanted)
    events: list[Event] = []
    for choice in choices:
        events += translator.feed(json.dumps({"choices": [choice]}))
    return [*events, *translator.end(REQUEST)]


def test_choices_are_kept_apart_and_each_ends_by_its_own_reason() -> None:
    events = several(
        {"index": 0, "delta": {"content": "a"}},
        {"index": 1, "delta": {"content": "b"}},
        {"index": 1, "delta": {}, "finish_reason": "length"},
        {"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"name": "f"}}]}},
        {"index": 0, "delta": {}, "finish_reason": "tool_calls"},
    )
    assert events[:2] == [TextDelta("a"), TextDelta("b", 1)]
    assert events[2] == ToolCallDelta(0, "", "new", "f", 0)
    assert events[3:5] == [ChoiceFinished(0, "tool_calls"), ChoiceFinished(1, "length")]
    assert isinstance(events[5], Finished)
    assert events[5].reason == "tool_calls"


def test_a_choice_that_was_not_asked_for_is_left_out() -> None:
    events = several(
        {"index": 1, "delta": {"content": "b"}},
        {"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"},
        wanted=1,
    )
    assert events[0] == TextDelta("a")
    assert len(events) == 2


def test_a_choice_that_never_ends_is_a_cut_answer() -> None:
    with pytest.raises(UpstreamError, match="cut off"):
        several(
            {"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"},
            {"index": 1, "delta": {"content": "b"}},
        )


@pytest.mark.parametrize(
    "logprobs",
    [
        {"content": [{"token": "a"}]},
        {"content": [{"token": "a", "logprob": -1, "bytes": [256]}]},
        {"tokens": "a"},
    ],
)
def test_log_probabilities_that_make_no_sense_are_a_malformed_answer(logprobs: object) -> None:
    with pytest.raises(UpstreamError, match="malformed"):
        several({"index": 0, "delta": {"content": "a"}, "logprobs": logprobs}, wanted=1)
