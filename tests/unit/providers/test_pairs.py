"""Every format in, every dialect out: what a conversation holds arrives, in its order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.config.schema import UpstreamProvider, WireDialect
from headrace.gateway.formats import FORMATS
from headrace.protocol.content import data_url
from headrace.protocol.generation import Endpoint, GenerationRequest
from headrace.providers import anthropic, bedrock, cohere, gemini, mistral, openai

# What a conversation is made of, flat: ("system", text), ("user", text), ("image", url),
# ("assistant", text), ("call", place, name, arguments), ("result", place of its call, text),
# ("mark",) after what is to be cached. Images of results come behind the run of them.
Atom = tuple[Any, ...]
Fields = dict[str, Any]

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=9)
NAMES = st.from_regex(r"[a-z]{1,8}", fullmatch=True)
OBJECTS = st.dictionaries(NAMES, st.booleans() | st.integers(0, 99) | WORDS, max_size=2)
INLINE = data_url("image/png", "AAAA")
ADDRESS = "https://example.com/a.png"
TOOLS = {"type": "object", "properties": {"x": {"type": "string"}}}


class Turn:
    """One turn as it is drawn: a user's `said` and `image`; or calls, `said` before them, and
    their `results` in any order."""

    def __init__(self, said: str, image: str | None, mark: bool) -> None:
        self.said, self.image, self.mark = said, image, mark
        self.calls: list[tuple[str, Fields]] = []
        self.results: list[tuple[int, str, str | None]] = []  # of which call, text, image


@st.composite
def conversations(draw: st.DrawFn, images: tuple[str, ...]) -> tuple[str, list[Turn]]:
    turns: list[Turn] = []
    for _ in range(draw(st.integers(1, 3))):
        image = draw(st.sampled_from((None, *images)))
        turns.append(Turn(draw(WORDS), image, draw(st.booleans())))
        calls = draw(st.lists(st.tuples(NAMES, OBJECTS), max_size=3))
        answer = Turn(draw(WORDS), None, bool(calls) and draw(st.booleans()))
        answer.calls = calls
        shown = st.sampled_from((None, None, *images))
        answer.results = [
            (place, draw(WORDS), draw(shown)) for place in draw(st.permutations(range(len(calls))))
        ]
        turns.append(answer)
    return draw(WORDS), [*turns, Turn(draw(WORDS), None, False)]


def atoms(system: str, turns: list[Turn], marks: bool, shown: bool) -> Iterator[Atom]:
    """What has to arrive: with `marks` those too, with `shown` the images of results."""
    yield "system", system
    calls = 0
    for place, turn in enumerate(turns):
        if place % 2 == 0:
            if turn.image is not None:
                yield "image", turn.image
            yield "user", turn.said
            if turn.mark and marks:
                yield ("mark",)
            continue
        yield "assistant", turn.said
        for index, (name, arguments) in enumerate(turn.calls):
            yield "call", calls + index, name, arguments
        for index, text, _ in turn.results:
            yield "result", calls + index, text
        for _, _, image in turn.results:
            if image is not None and shown:
                yield "image", image
        if turn.mark and marks:
            yield ("mark",)
        calls += len(turn.calls)


def ids(turns: list[Turn]) -> Iterator[tuple[int, Turn, list[str]]]:
    for place, turn in enumerate(turns):
        yield place, turn, [f"call_{place}_{index}" for index in range(len(turn.calls))]


def marked(part: Fields, turn: Turn) -> Fields:
    return part | ({"cache_control": {"type": "ephemeral"}} if turn.mark else {})


def chat(system: str, turns: list[Turn]) -> Fields:
    messages: list[Fields] = [{"role": "system", "content": system}]
    for place, turn, named in ids(turns):
        if place % 2 == 0:
            parts: list[Fields] = []
            if turn.image is not None:
                parts.append({"type": "image_url", "image_url": {"url": turn.image}})
            parts.append(marked({"type": "text", "text": turn.said}, turn))
            messages.append({"role": "user", "content": parts})
            continue
        message: Fields = {"role": "assistant", "content": turn.said}
        if turn.calls:
            message["tool_calls"] = [
                {
                    "id": id,
                    "type": "function",
                    "function": {"name": name, "arguments": json.dumps(arguments)},
                }
                for id, (name, arguments) in zip(named, turn.calls, strict=True)
            ]
        messages.append(message)
        for index, text, _ in turn.results:
            content: Any = text
            if index == turn.results[-1][0] and turn.mark:
                content = [marked({"type": "text", "text": text}, turn)]
            messages.append({"role": "tool", "tool_call_id": named[index], "content": content})
    function = {"name": "f", "description": "d", "parameters": TOOLS}
    tools = [{"type": "function", "function": function}]
    return {"messages": messages, "max_completion_tokens": 9, "tools": tools}


def messages(system: str, turns: list[Turn]) -> Fields:
    told: list[Fields] = []

    def source(url: str) -> Fields:
        if url == INLINE:
            return {"type": "base64", "media_type": "image/png", "data": "AAAA"}
        return {"type": "url", "url": url}

    waiting: list[Fields] = []
    for place, turn, named in ids(turns):
        if place % 2 == 0:
            if turn.image is not None:
                waiting.append({"type": "image", "source": source(turn.image)})
            waiting.append(marked({"type": "text", "text": turn.said}, turn))
            told.append({"role": "user", "content": waiting})
            continue
        blocks: list[Fields] = [{"type": "text", "text": turn.said}]
        blocks += [
            {"type": "tool_use", "id": id, "name": name, "input": arguments}
            for id, (name, arguments) in zip(named, turn.calls, strict=True)
        ]
        told.append({"role": "assistant", "content": blocks})
        waiting = []
        for index, text, image in turn.results:
            content: list[Fields] = [{"type": "text", "text": text}]
            if image is not None:
                content.append({"type": "image", "source": source(image)})
            block = {"type": "tool_result", "tool_use_id": named[index], "content": content}
            waiting.append(marked(block, turn) if index == turn.results[-1][0] else block)
    tools = [{"name": "f", "description": "d", "input_schema": TOOLS}]
    return {"system": system, "messages": told, "max_tokens": 9, "tools": tools}


def responses(system: str, turns: list[Turn]) -> Fields:
    items: list[Fields] = []
    for place, turn, named in ids(turns):
        if place % 2 == 0:
            parts: list[Fields] = []
            if turn.image is not None:
                parts.append({"type": "input_image", "image_url": turn.image, "detail": "auto"})
            parts.append({"type": "input_text", "text": turn.said})
            items.append({"role": "user", "content": parts})
            continue
        said = [{"type": "output_text", "text": turn.said, "annotations": []}]
        items.append({"type": "message", "role": "assistant", "content": said})
        items += [
            {
                "type": "function_call",
                "call_id": id,
                "name": name,
                "arguments": json.dumps(arguments),
            }
            for id, (name, arguments) in zip(named, turn.calls, strict=True)
        ]
        for index, text, image in turn.results:
            output: list[Fields] = [{"type": "input_text", "text": text}]
            if image is not None:
                output.append({"type": "input_image", "image_url": image})
            items.append(
                {"type": "function_call_output", "call_id": named[index], "output": output}
            )
    tools = [
        {"type": "function", "name": "f", "description": "d", "parameters": TOOLS, "strict": False}
    ]
    return {"instructions": system, "input": items, "max_output_tokens": 9, "tools": tools}


class Reader:
    """Makes atoms of a body, in whichever dialect."""

    def __init__(self) -> None:
        self.atoms: list[Atom] = []
        self._calls: dict[str, int] = {}
        self._shown: list[Atom] = []

    def call(self, id: str, name: str, arguments: Fields) -> None:
        self._calls[id] = len(self._calls)
        self.add("call", self._calls[id], name, arguments)

    def result(self, id: str, text: str) -> None:
        self.atoms.append(("result", self._calls[id], text))

    def shown(self, url: str) -> None:
        """An image of a result."""
        self._shown.append(("image", url))

    def add(self, *atom: Any) -> None:
        self.atoms += self._shown
        self._shown = []
        self.atoms.append(atom)


def of_openai(body: Fields) -> list[Atom]:
    return of_chat(body, shows=False)


def of_chat(body: Fields, *, shows: bool = True) -> list[Atom]:
    """OpenAI's own servers take no image in a tool's turn (`shows`)."""
    reader = Reader()
    for message in body["messages"]:
        role, content = message["role"], message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or ()
        role = "system" if role == "developer" else role
        if role == "tool":
            reader.result(message["tool_call_id"], "".join(part.get("text", "") for part in parts))
        for part in parts:
            if part["type"] == "image_url":
                url = part["image_url"]
                url = url if isinstance(url, str) else url["url"]
                assert role != "tool" or shows
                reader.shown(url) if role == "tool" else reader.add("image", url)
            elif role != "tool":
                reader.add(role, part["text"])
            if "cache_control" in part:
                reader.add("mark")
        for call in message.get("tool_calls", ()):
            function = call["function"]
            reader.call(call["id"], function["name"], json.loads(function["arguments"]))
    return reader.atoms


def of_anthropic(body: Fields) -> list[Atom]:
    reader = Reader()

    def url(source: Fields) -> str:
        if source["type"] == "url":
            return str(source["url"])
        return data_url(source["media_type"], source["data"])

    for role, blocks in (
        ("system", body["system"]),
        *((turn["role"], turn["content"]) for turn in body["messages"]),
    ):
        for block in blocks:
            match block["type"]:
                case "text":
                    reader.add(role, block["text"])
                case "image":
                    reader.add("image", url(block["source"]))
                case "tool_use":
                    reader.call(block["id"], block["name"], block["input"])
                case "tool_result":
                    content = block["content"]
                    if isinstance(content, str):
                        content = [{"type": "text", "text": content}]
                    text = "".join(one.get("text", "") for one in content)
                    reader.result(block["tool_use_id"], text)
                    for one in content:
                        if one["type"] == "image":
                            reader.shown(url(one["source"]))
                    if any("cache_control" in one for one in content):
                        reader.add("mark")
            if "cache_control" in block:
                reader.add("mark")
    return reader.atoms


def of_gemini(body: Fields) -> list[Atom]:
    reader = Reader()
    for role, parts in (
        ("system", body["systemInstruction"]["parts"]),
        *((turn["role"], turn["parts"]) for turn in body["contents"]),
    ):
        role = "assistant" if role == "model" else role
        for part in parts:
            match part:
                case {"text": text}:
                    reader.add(role, text)
                case {"inlineData": {"mimeType": kind, "data": data}}:
                    reader.add("image", data_url(kind, data))
                case {"fileData": {"fileUri": url}}:
                    reader.add("image", url)
                case {"functionCall": call}:
                    reader.call(call["id"], call["name"], call["args"])
                case {"functionResponse": result}:
                    reader.result(result["id"], result["response"]["output"])
    return reader.atoms


def of_bedrock(body: Fields) -> list[Atom]:
    reader = Reader()

    def url(image: Fields) -> str:
        return data_url(f"image/{image['format']}", image["source"]["bytes"])

    for role, blocks in (
        ("system", body["system"]),
        *((turn["role"], turn["content"]) for turn in body["messages"]),
    ):
        for block in blocks:
            match block:
                case {"text": text}:
                    reader.add(role, text)
                case {"image": image}:
                    reader.add("image", url(image))
                case {"cachePoint": _}:
                    reader.add("mark")
                case {"toolUse": use}:
                    reader.call(use["toolUseId"], use["name"], use["input"])
                case {"toolResult": result}:
                    content = result["content"]
                    text = "".join(one.get("text", "") for one in content)
                    reader.result(result["toolUseId"], text)
                    for one in content:
                        if "image" in one:
                            reader.shown(url(one["image"]))
    return reader.atoms


INBOUND = {"chat": chat, "messages": messages, "responses": responses}


def written(dialect: WireDialect, request: GenerationRequest) -> Fields:
    match dialect:
        case "anthropic":
            return anthropic.request_body(request, "m")
        case "gemini":
            return gemini.request_body(request, "m")
        case "bedrock":
            return bedrock.request_body(request)
        case "mistral":
            return mistral.request_body(request, "m")
        case "cohere":
            return cohere.request_body(request, "m")
        case _:
            address = UpstreamProvider(dialect=dialect).address or "https://x.openai.azure.com"
            return openai.request_body(request, "m", address)


READERS = {
    "anthropic": of_anthropic,
    "gemini": of_gemini,
    "bedrock": of_bedrock,
    "mistral": of_chat,
    "cohere": of_chat,
}
DIALECTS: tuple[WireDialect, ...] = (
    "openai", "azure", "anthropic", "gemini", "bedrock", "mistral", "cohere",
)  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("endpoint", INBOUND)
@given(data=st.data())
@settings(max_examples=20)
def test_what_a_conversation_holds_arrives_in_its_order(
    endpoint: Endpoint, dialect: WireDialect, data: st.DataObject
) -> None:
    images = (INLINE,) if dialect == "bedrock" else (INLINE, ADDRESS)
    system, turns = data.draw(conversations(images))
    if dialect == "cohere":  # its results hold text
        for turn in turns:
            turn.results = [(place, text, None) for place, text, _ in turn.results]
    body = {"model": "m", **INBOUND[endpoint](system, turns)}
    request = FORMATS[endpoint].read(json.loads(json.dumps(body)))
    assert isinstance(request, GenerationRequest)
    sent = json.loads(json.dumps(written(dialect, request)))
    native = endpoint == "chat" and dialect in ("openai", "azure")
    marks = native or (dialect in ("anthropic", "bedrock") and endpoint != "responses")
    expected = list(atoms(system, turns, marks, shown=endpoint != "chat"))
    assert READERS.get(dialect, of_openai)(sent) == expected
