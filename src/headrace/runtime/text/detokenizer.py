"""Incremental detokenisation and stop strings: what may be shown, and no more."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from .tokenizer import Vocabulary


class Detokenizer:
    """Text of one sequence as its tokens come; a character is given once it is whole.

    Bytes that are no UTF-8 become U+FFFD, as in every decoder of the field. Special tokens have no
    text, except for those in `shown`.
    """

    def __init__(self, vocabulary: Vocabulary, shown: frozenset[int] = frozenset()) -> None:
        self.vocabulary = vocabulary
        self.shown = shown
        self.utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """More text, maybe none."""
        if token in self.shown:
            return self.utf8.decode(self.vocabulary.label(token))
        return self.utf8.decode(self.vocabulary.token_bytes(token))

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character that never became whole."""
        return self.utf8.decode(b"", final=True)


class StopStrings:
    """Watches text for stop strings; text that may begin one is held back until it is decided."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """Text that may be shown now, and whether a stop string was reached.

        The stop string itself is never shown. Of several, the one that begins first counts.
        """
        if not self.stops:
            return text, False
        text = self.held + text
        found = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            self.held = ""
            return text[: min(found)], True
        kept = max(overlap(text, stop) for stop in self.stops)
        self.held = text[len(text) - kept :]
        return text[: len(text) - kept], False

    def finish(self) -> str:
        """What was held back, once no more text will come."""
        text, self.held = self.held, ""
        return text


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
