"""Text as it streams: whole characters, and never a part of a stop string."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.runtime.models.checkpoint import load_checkpoint
from headrace.runtime.text.detokenizer import Detokenizer, StopStrings
from headrace.runtime.text.tokenizer import Vocabulary

VALID_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def vocabulary(tiny: Path) -> Vocabulary:
    """One token a byte: every character beyond ASCII comes in pieces."""
    return load_checkpoint(tiny).vocabulary


@given(text=VALID_TEXT.filter(lambda text: "<|" not in text))
def test_text_survives_and_no_broken_character_is_shown(vocabulary: Vocabulary, text: str) -> None:
    detokenizer = Detokenizer(vocabulary)
    shown = ""
    for token in vocabulary.encode(text, add_bos=False):
        shown += detokenizer.feed(token)
        assert text.startswith(shown)
    assert shown + detokenizer.finish() == text


def test_a_character_that_never_becomes_whole_ends_as_a_replacement(vocabulary: Vocabulary) -> None:
    detokenizer = Detokenizer(vocabulary)
    first, *_ = vocabulary.encode("é", add_bos=False)
    assert detokenizer.feed(first) == ""
    assert detokenizer.finish() == "\ufffd"


def test_special_tokens_do_not_show(vocabulary: Vocabulary) -> None:
    detokenizer = Detokenizer(vocabulary)
    tokens = vocabulary.encode("a<|im_end|>b", add_bos=False)
    assert len(tokens) == 3
    assert "".join(map(detokenizer.feed, tokens)) == "ab"


@given(
    pieces=st.lists(st.text("abc", max_size=4), max_size=12),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_nothing_of_a_stop_string_is_ever_shown(pieces: list[str], stops: list[str]) -> None:
    watch, shown, stopped = StopStrings(stops), "", False
    for piece in pieces:
        text, stopped = watch.feed(piece)
        shown += text
        if stopped:
            break
    whole = "".join(pieces)
    first = min((at for stop in stops if (at := whole.find(stop)) >= 0), default=None)
    assert stopped == (first is not None)
    if not stopped:
        assert shown + watch.finish() == whole
        return
    # Shown up to a stop string that was complete when the text stopped; of those, the first.
    assert not any(stop in shown for stop in stops)
    assert whole.startswith(shown)
    assert any(whole[len(shown) :].startswith(stop) for stop in stops)


def test_text_that_may_begin_a_stop_string_waits_until_it_is_decided() -> None:
    watch = StopStrings(["END"])
    assert watch.feed("the E") == ("the ", False)
    assert watch.feed("N") == ("", False)
    assert watch.feed("T") == ("ENT", False)
    assert watch.feed(" EN") == (" ", False)
    assert watch.feed("D of it") == ("", True)
