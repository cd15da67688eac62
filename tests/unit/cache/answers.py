"""Answers to put into caches."""

from __future__ import annotations

from headrace.protocol.generation import Event, Finished, FinishReason, TextDelta, Usage


def finished(reason: FinishReason = "stop") -> Finished:
    return Finished(reason=reason, usage=Usage(prompt_tokens=1, completion_tokens=1))


def answer(*texts: str, reason: FinishReason = "stop") -> tuple[Event, ...]:
    return (*(TextDelta(text) for text in texts), finished(reason))
