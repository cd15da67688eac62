"""What goes out is what OpenAI's own client types can read, chunk by chunk."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from headrace.protocol.answer import Answer
from headrace.protocol.errors import ContextTooLong, RateLimited
from headrace.protocol.generation import (
    Delta,
    Event,
    Finished,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from headrace.protocol.openai_answer import (
    ChunkEncoder,
    Identity,
    error_body,
    model_list_body,
    whole_body,
)

CHAT = Identity(id='chatcmpl-"1', created=5, model='m"\n', endpoint="chat")
COMPLETIONS = Identity(id="cmpl-1", created=5, model="m", endpoint="completions")
END = Finished("stop", Usage(10, 4, cached_tokens=3))

CHARACTERS = 'a {}"\\/é日🌊\r\n\t\0\x7f\u2028'
events = st.lists(
    st.builds(TextDelta, st.text(CHARACTERS, max_size=5))
    | st.builds(ReasoningDelta, st.text(CHARACTERS, max_size=5))
    | st.builds(
        ToolCallDelta,
        index=st.integers(0, 2),
        arguments=st.text(CHARACTERS, max_size=5),
        id=st.none() | st.text("ab", min_size=1, max_size=2),
        name=st.none() | st.text("fg", min_size=1, max_size=2),
    ),
    max_size=8,
)


def answer_of(said: list[Event]) -> Answer:
    answer = Answer()
    for event in [*said, END]:
        answer.add(event)
    return answer


@given(events, st.booleans())
def test_chunks_put_together_are_the_whole_answer(said: list[Event], include_usage: bool) -> None:
    encoder = ChunkEncoder(CHAT, include_usage=include_usage)
    pieces = [encoder.opening()]
    pieces += [encoder.delta(e) for e in said if isinstance(e, Delta)]
    pieces.append(encoder.closing("stop"))
    chunks = [ChatCompletionChunk.model_validate_json(piece or b"") for piece in pieces]
    whole = ChatCompletion.model_validate_json(whole_body(CHAT, answer_of(said)))
    assert {c.id for c in chunks} == {whole.id} == {CHAT.id}
    assert {c.model for c in chunks} == {whole.model} == {CHAT.model}
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == (whole.choices[0].message.content or "")
    thoughts = [(c.choices[0].delta.model_extra or {}).get("reasoning_content", "") for c in chunks]
    told = whole.choices[0].message.model_extra or {}
    assert "".join(thoughts) == told.get("reasoning_content", "")
    arguments: dict[int, str] = {}
    for piece in chunks:
        for call in piece.choices[0].delta.tool_calls or ():
            assert call.function is not None
            arguments.setdefault(call.index, "")
            arguments[call.index] += call.function.arguments or ""
    calls = whole.choices[0].message.tool_calls or []
    assert [c.function.arguments for c in calls if c.type == "function"] == list(arguments.values())
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["stop"]


@given(st.text(CHARACTERS))
def test_text_of_any_kind_survives_a_chunk(text: str) -> None:
    chat = ChunkEncoder(CHAT, include_usage=False).delta(TextDelta(text))
    assert json.loads(chat)["choices"][0]["delta"]["content"] == text
    plain = ChunkEncoder(COMPLETIONS, include_usage=True).delta(TextDelta(text))
    assert json.loads(plain)["choices"][0]["text"] == text
    assert b"\n" not in chat + plain


def test_usage_counts_cached_tokens_within_the_prompt() -> None:
    encoder = ChunkEncoder(CHAT, include_usage=True)
    last = ChatCompletionChunk.model_validate_json(encoder.usage(END))
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.total_tokens) == (10, 14)
    assert last.usage.prompt_tokens_details is not None
    assert last.usage.prompt_tokens_details.cached_tokens == 3
    assert json.loads(encoder.closing("stop"))["usage"] is None


def test_an_unfinished_answer_has_no_body() -> None:
    with pytest.raises(ValueError, match="not finished"):
        whole_body(CHAT, Answer())


def test_an_error_has_openais_shape() -> None:
    error = json.loads(error_body(ContextTooLong(limit=2048, tokens=3000)))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "messages"
    assert "2048" in error["message"]
    assert "3000" in error["message"]
    assert json.loads(error_body(RateLimited("slow")))["error"]["type"] == "rate_limit_error"


def test_the_model_list() -> None:
    listed = json.loads(model_list_body([("a", "local", {"x": 1}), ("b", "up", {})], created=5))
    assert listed["object"] == "list"
    assert listed["data"][1] == {"id": "b", "object": "model", "created": 5, "owned_by": "up"}
