"""A model's reasoning, told apart from its answer while the text comes."""

from __future__ import annotations

from collections.abc import Callable

from .detokenizer import overlap

OPEN, CLOSE = "<think>", "</think>"


def reasons(template: str) -> bool:
    """Whether a model of this chat template may begin its answers with reasoning."""
    return CLOSE in template or OPEN in template


def opened(prompt: str) -> bool:
    """Whether a rendered prompt ends within reasoning, so that the answer begins there."""
    return prompt.rstrip().endswith(OPEN)


def rules(literal: Callable[[str], str], *, within: bool) -> str:
    """Lark rules whose `reasoning` comes before an answer; `literal` writes a fixed text."""
    close = literal(CLOSE)
    # A special token is none of a pattern's text; where the mark is text, the first one ends it.
    thought = "THOUGHT " + close if close.startswith("<") else "thought"
    body = thought if within else f"({literal(OPEN)} {thought})?"
    return "\n".join(
        [
            f"reasoning: {body} SPACE?",
            r"THOUGHT: /(.|\n)*/",
            r"thought[lazy]: /(.|\n)*<\/think>/",
            r"SPACE: /[ \n]{1,8}/",
        ]
    )


class ReasoningSplitter:
    """Separates `<think>...</think>` at the start of an answer; `within` begins inside it.

    White space around the reasoning is dropped.
    """

    def __init__(self, *, within: bool) -> None:
        self.state = "within" if within else "before"
        self.pending = ""

    def feed(self, text: str) -> tuple[str, str]:
        """More reasoning, and more of the answer."""
        if self.state == "answer":
            return "", text
        self.pending += text
        if self.state == "before" and not self.decide():
            return "", self.take()
        reasoning = self.think() if self.state in ("within", "thinking") else ""
        if self.state == "after":
            self.pending = self.pending.lstrip()
            if self.pending:
                self.state = "answer"
        return reasoning, self.take()

    def finish(self) -> tuple[str, str]:
        """What was held back, once no more text will come."""
        text, self.pending = self.pending, ""
        if self.state in ("within", "thinking"):
            return text.rstrip() if self.state == "thinking" else text.strip(), ""
        return "", text

    def decide(self) -> bool:
        """Whether the text begins with reasoning; where it does not, all of it is the answer."""
        begun = self.pending.lstrip()
        if begun.startswith(OPEN):
            self.pending, self.state = begun[len(OPEN) :], "within"
        elif not OPEN.startswith(begun):
            self.state = "answer"
        return self.state == "within"

    def think(self) -> str:
        """Reasoning that is decided: not white space at its end, nor what may begin its end."""
        if self.state == "within":
            self.pending = self.pending.lstrip()
            if not self.pending:
                return ""
            self.state = "thinking"
        found = self.pending.find(CLOSE)
        if found >= 0:
            reasoning, self.pending = self.pending[:found], self.pending[found + len(CLOSE) :]
            self.state = "after"
            return reasoning.rstrip()
        kept = overlap(self.pending, CLOSE)
        shown = self.pending[: len(self.pending) - kept].rstrip()
        self.pending = self.pending[len(shown) :]
        return shown

    def take(self) -> str:
        """The pending text, where it is known to be the answer."""
        if self.state != "answer":
            return ""
        text, self.pending = self.pending, ""
        return text
