"""A whole answer, put together from the events of a generation."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from headrace.protocol.encoding import Embedded, Encoded
from headrace.protocol.generation import (
    ChoiceFinished,
    Event,
    Finished,
    FinishReason,
    PromptScored,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from headrace.protocol.media import Media, MediaPiece


class ToolCall(Struct):
    """One tool call; `arguments` is JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str
    signature: str | None = None


class Thought(Struct):
    """One thought: `signature` closes it, `redacted` stands for one that is shown to nobody."""

    pieces: list[str] = []
    signature: str | None = None
    redacted: str | None = None

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.pieces)


class Choice:
    """What one choice has said so far."""

    __slots__ = ("_pieces", "logprobs", "reason", "thoughts", "tool_calls")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self.thoughts: list[Thought] = []
        self.tool_calls: dict[int, ToolCall] = {}  # by index, in order of arrival
        self.logprobs: list[TokenLogprob] = []
        self.reason: FinishReason | None = None

    @property
    def text(self) -> str:
        """The text so far."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    @property
    def reasoning(self) -> str:
        """What the model said to itself so far."""
        return "".join(thought.text for thought in self.thoughts)

    def add(self, event: Event) -> None:
        """Append one delta of this choice."""
        if isinstance(event, TextDelta):
            self._pieces.append(event.text)
            self.logprobs += event.logprobs
        elif isinstance(event, ReasoningDelta):
            self._think(event)
        elif isinstance(event, ToolCallDelta):
            call = self.tool_calls.get(event.index)
            if call is None:
                call = ToolCall(id="", name="", arguments="")
                self.tool_calls[event.index] = call
            call.id = event.id or call.id
            call.name = event.name or call.name
            call.signature = event.signature or call.signature
            call.arguments += event.arguments

    def _think(self, event: ReasoningDelta) -> None:
        last = self.thoughts[-1] if self.thoughts else None
        if event.redacted is not None:
            self.thoughts.append(Thought(redacted=event.redacted))
            return
        if last is None or last.signature is not None or last.redacted is not None:
            last = Thought()
            self.thoughts.append(last)
        last.pieces.append(event.text)
        last.signature = event.signature

    def content(self) -> dict[str, Any]:
        """The choice as the call record keeps it."""
        output: dict[str, Any] = {"text": self.text}
        if self.reasoning:
            output["reasoning"] = self.reasoning
        if self.tool_calls:
            output["tool_calls"] = [
                {"id": call.id, "name": call.name, "arguments": call.arguments}
                for call in self.tool_calls.values()
            ]
        if self.logprobs:
            output["logprobs"] = [(one.text, one.logprob) for one in self.logprobs]
        return output


class Answer:
    """What a generation has said so far."""

    __slots__ = ("choices", "deltas", "encoded", "finished", "media", "prompt")

    def __init__(self) -> None:
        self.choices: dict[int, Choice] = {0: Choice()}  # by index
        self.deltas = 0  # how many pieces came: an estimate of the tokens of a cut answer
        self.prompt: tuple[TokenLogprob, ...] = ()
        self.encoded: Encoded | None = None
        self.media: Media | None = None
        self.finished: Finished | None = None

    def add(self, event: Event) -> None:
        """Append one event."""
        if isinstance(event, Finished):
            self.finished = event
            self.choices[0].reason = event.reason
        elif isinstance(event, PromptScored):
            self.prompt = event.logprobs
        elif isinstance(event, Encoded):
            self.encoded = event
        elif isinstance(event, MediaPiece):
            self.media = self.media or Media()
            self.media.add(event)
        else:
            choice = self.choices.get(event.choice)
            if choice is None:
                choice = self.choices[event.choice] = Choice()
            if isinstance(event, ChoiceFinished):
                choice.reason = event.reason
            else:
                self.deltas += 1
                choice.add(event)

    @property
    def silent(self) -> bool:
        """Whether nothing has come yet."""
        return not self.deltas and self.encoded is None and self.media is None

    def content(self) -> dict[str, Any]:
        """The answer as the call record keeps it: choice 0, the others under `choices`.

        Of embeddings it keeps how many there are, of images and sound how much.
        """
        if self.media is not None:
            return self.media.content()
        if isinstance(self.encoded, Embedded):
            return {"vectors": len(self.encoded.vectors)}
        if self.encoded is not None:
            return dict(msgspec.to_builtins(self.encoded))
        first, *others = (choice for _, choice in sorted(self.choices.items()))
        output = first.content()
        if others:
            output["choices"] = [choice.content() for choice in others]
        return output
