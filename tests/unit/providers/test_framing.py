"""However an upstream frames its stream, and wherever the network cuts it, it says the same."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.config.schema import UpstreamProvider
from headrace.protocol.answer import Answer
from headrace.protocol.generation import GenerationRequest, Message
from headrace.protocol.sse import SSEDecoder
from headrace.providers.anthropic import anthropic_dialect
from headrace.providers.cohere import cohere_dialect
from headrace.providers.dialect import Dialect
from headrace.providers.gemini import gemini_dialect
from headrace.providers.mistral import mistral_dialect
from headrace.providers.openai import openai_dialect
from tests.fakes import dialects

ASKED = GenerationRequest(
    endpoint="chat", model="m", messages=(Message(role="user", content="?"),), stream=True
)
DIALECTS: dict[str, Dialect] = {
    "openai": openai_dialect("up", UpstreamProvider(), "http://up", None),
    "anthropic": anthropic_dialect("up", None),
    "gemini": gemini_dialect("up", None),
    "mistral": mistral_dialect("up", None),
    "cohere": cohere_dialect("up", None),
}
COMMENTS = ("", ": OPENROUTER PROCESSING", ":", "retry: 10", "id: 7")


def read(dialect: str, stream: bytes, cuts: list[int]) -> tuple[Any, ...]:
    """What the dialect's reader makes of a stream that is cut into pieces."""
    reader, decoder, answer = DIALECTS[dialect].reader(ASKED), SSEDecoder(), Answer()
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    events = [e for a, b in itertools.pairwise(edges) for e in decoder.feed(stream[a:b])]
    for event in events + decoder.finish():
        if event.data.strip() != "[DONE]":
            for one in reader.feed(event.data):
                answer.add(one)
    for one in reader.end(ASKED):
        answer.add(one)
    calls = answer.choices[0].tool_calls.values()
    said = [(call.id, call.name, json.loads(call.arguments)) for call in calls]
    return answer.choices[0].text, said, answer.finished


@st.composite
def reframed(draw: st.DrawFn, dialect: str) -> bytes:
    """The dialect's answer as another server may frame it: other line ends, comments between the
    lines, JSON over several data lines, no blank line at the end; with characters of several bytes
    beside escaped ones."""
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    stream = ""
    for part in dialects.PARTS[dialect]:
        for line in part.decode().strip().splitlines():
            if comment := draw(st.sampled_from(COMMENTS)):
                stream += comment + end
            name, _, value = line.partition(": ")
            if name == "data" and value.startswith("{") and draw(st.booleans()):
                value = json.dumps(json.loads(value), indent=1, ensure_ascii=draw(st.booleans()))
            stream += "".join(f"{name}: {piece}{end}" for piece in value.split("\n"))
        stream += end
    if draw(st.booleans()):
        stream = stream.removesuffix(end)
    return stream.replace("Let me see.", "Let me sée 🌊.").encode()


@pytest.mark.parametrize("dialect", DIALECTS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_framing_and_any_split_of_a_stream_parses_the_same(
    dialect: str, data: st.DataObject
) -> None:
    plain = b"".join(dialects.PARTS[dialect]).decode().replace("see.", "sée 🌊.").encode()
    expected = read(dialect, plain, [])
    assert expected[0] == "Let me sée 🌊."
    assert [call[1:] for call in expected[1]] == [
        ("weather", {"city": "Ulm"}),
        ("weather", {"city": "Bonn"}),
    ]
    stream = data.draw(reframed(dialect))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=30))
    assert read(dialect, stream, cuts) == expected
