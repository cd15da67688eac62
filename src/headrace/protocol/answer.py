"""A whole answer, put together from the events of a generation."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from headrace.protocol.generation import Event, Finished, TextDelta


class ToolCall(Struct):
    """One tool call; `arguments` is JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str


class Answer:
    """What a generation has said so far."""

    __slots__ = ("_pieces", "deltas", "finished", "tool_calls")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self.deltas = 0  # how many pieces came: an estimate of the tokens of a cut answer
        self.tool_calls: dict[int, ToolCall] = {}  # by index, in order of arrival
        self.finished: Finished | None = None

    def add(self, event: Event) -> None:
        """Append one event."""
        if isinstance(event, Finished):
            self.finished = event
            return
        self.deltas += 1
        if isinstance(event, TextDelta):
            self._pieces.append(event.text)
        else:
            call = self.tool_calls.get(event.index)
            if call is None:
                call = ToolCall(id="", name="", arguments="")
                self.tool_calls[event.index] = call
            call.id = event.id or call.id
            call.name = event.name or call.name
            call.arguments += event.arguments

    @property
    def text(self) -> str:
        """The text so far."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def content(self) -> dict[str, Any]:
        """The answer as the call record keeps it."""
        output: dict[str, Any] = {"text": self.text}
        if self.tool_calls:
            output["tool_calls"] = [
                {"id": call.id, "name": call.name, "arguments": call.arguments}
                for call in self.tool_calls.values()
            ]
        return output
