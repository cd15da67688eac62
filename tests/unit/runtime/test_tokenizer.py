"""Tokenizers from GGUF metadata: the ids that the models' own tokenizers give."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from headrace.runtime.native import native_code
from headrace.runtime.text.detokenizer import Detokenizer
from headrace.runtime.text.tokenizer import BYTE_OF, Vocabulary, merges, vocabulary_from_gguf
from headrace.runtime.weights.gguf import WeightsError

CORPUS = [
    "The river brings the water to the wheel, and the wheel turns the stone.",
    "A headrace is the channel that brings water to a mill or to a turbine.",
    "Numbers such as 1, 22, 333 and 4444 come in many lengths; so do words.",
    "It's what they're after: we'll see, I'd say, that you've had enough.",
    "Ünïcödé, naïve café, señor: letters beyond the first hundred and twenty-seven.",
] * 20
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00▁"), max_size=40)
PROSE = st.lists(st.sampled_from(" ".join(CORPUS[:5]).split(" ")), max_size=12).map(" ".join)


@pytest.fixture(scope="module")
def oracle() -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece BPE model like Llama 2's, trained on a few lines."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(scope="module")
def sentencepiece_vocabulary(oracle: sentencepiece.SentencePieceProcessor) -> Vocabulary:
    ids = range(oracle.get_piece_size())
    kinds = [2 if oracle.is_unknown(i) else 3 if oracle.is_control(i) else 1 for i in ids]
    return vocabulary_from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [oracle.id_to_piece(i) for i in ids],
            "tokenizer.ggml.scores": [oracle.get_score(i) for i in ids],
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.unknown_token_id": oracle.unk_id(),
            "tokenizer.ggml.bos_token_id": oracle.bos_id(),
            "tokenizer.ggml.eos_token_id": oracle.eos_id(),
        }
    )


@given(text=TEXT | PROSE)
def test_sentencepiece_gives_its_own_ids(
    oracle: sentencepiece.SentencePieceProcessor, sentencepiece_vocabulary: Vocabulary, text: str
) -> None:
    assert sentencepiece_vocabulary.encode(text, add_bos=False) == oracle.encode(text)


@given(text=TEXT | PROSE)
def test_sentencepiece_text_comes_back(sentencepiece_vocabulary: Vocabulary, text: str) -> None:
    detokenizer = Detokenizer(sentencepiece_vocabulary)
    tokens = sentencepiece_vocabulary.encode(text, add_bos=True)
    shown = "".join(map(detokenizer.feed, tokens)) + detokenizer.finish()
    assert shown == (f" {text}" if text else "")


@given(
    st.lists(st.text("aé\0▁𝄞", min_size=1, max_size=5), min_size=1, max_size=30).flatmap(
        lambda pieces: st.tuples(st.just(pieces), st.permutations(range(len(pieces))))
    )
)
def test_native_code_finds_the_same_merges(ranked: tuple[list[str], list[int]]) -> None:
    pieces, order = ranked
    native = native_code()
    assert native is not None
    assert native.merges(pieces, order) == merges(pieces, order)


def test_scores_without_tokens_are_refused() -> None:
    about = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [0.0]}
    with pytest.raises(WeightsError, match="1 scores for 0 tokens"):
        vocabulary_from_gguf(about)


def byte_level_metadata(pre: str) -> dict[str, Any]:
    """A small byte-level BPE as GGUF metadata."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    vocabulary = tokenizer.get_vocab()
    model = json.loads(tokenizer.to_str())["model"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": sorted(vocabulary, key=lambda token: vocabulary[token]),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.eos_token_id": 0,
    }


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
@given(text=TEXT | PROSE)
def test_byte_level_text_comes_back(pre: str, text: str) -> None:
    vocabulary = VOCABULARIES[pre]
    detokenizer = Detokenizer(vocabulary)
    tokens = vocabulary.encode(text, add_bos=False)
    shown = "".join(map(detokenizer.feed, tokens)) + detokenizer.finish()
    if pre != "qwen2":  # which normalises to NFC
        assert shown == text


VOCABULARIES = {
    pre: vocabulary_from_gguf(byte_level_metadata(pre))
    for pre in ("gpt-2", "smollm", "llama-bpe", "qwen2")
}


def words(pre: str, text: str) -> list[str]:
    found = VOCABULARIES[pre].encoder.pre_tokenizer.pre_tokenize_str(text)
    return [word.replace("Ġ", " ").replace("Ċ", "\n") for word, _ in found]


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["I", "'ll", " pay", " 12345", "\n  ", " now"]),
        ("smollm", ["I", "'ll", " pay", " ", "1", "2", "3", "4", "5", "\n  ", " now"]),
        ("llama-bpe", ["I", "'ll", " pay", " ", "123", "45", "\n", "  ", " now"]),
        ("qwen2", ["I", "'ll", " pay", " ", "1", "2", "3", "4", "5", "\n", "  ", " now"]),
    ],
)
def test_text_is_cut_into_words_as_the_model_was_trained(pre: str, expected: list[str]) -> None:
    assert words(pre, "I'll pay 12345\n   now") == expected


def test_an_unknown_pre_tokenizer_is_refused_by_name() -> None:
    with pytest.raises(WeightsError, match="future-words"):
        vocabulary_from_gguf(byte_level_metadata("gpt-2") | {"tokenizer.ggml.pre": "future-words"})


def test_special_tokens_in_text_are_one_id_each() -> None:
    about = byte_level_metadata("gpt-2")
    about["tokenizer.ggml.tokens"].append("<|eot|>")
    about["tokenizer.ggml.token_type"] = [1] * (len(about["tokenizer.ggml.tokens"]) - 1) + [3]
    vocabulary = vocabulary_from_gguf(about)
    last = len(about["tokenizer.ggml.tokens"]) - 1
    assert vocabulary.encode("a<|eot|>", add_bos=False)[-1] == last
    assert vocabulary.token_bytes(last) == b""


def test_o200k_cuts_words_where_small_letters_turn_large() -> None:
    vocabulary = vocabulary_from_gguf(byte_alphabet_about("gpt-4o"))
    cut = vocabulary.encoder.pre_tokenizer.pre_tokenize_str("HTMLParser's 12345 fooBar//\n\n  x")
    words = [word.replace("Ġ", " ").replace("Ċ", "\n") for word, _ in cut]
    assert words == ["HTMLParser's", " ", "123", "45", " foo", "Bar", "//\n\n", " ", " x"]


def test_a_message_s_end_does_not_end_harmony_s_answer() -> None:
    more = ["<|end|>", "<|return|>", "<|call|>"]
    about = byte_alphabet_about("gpt-4o", more)
    about["tokenizer.ggml.eos_token_id"] = about["tokenizer.ggml.eot_token_id"] = 256
    assert vocabulary_from_gguf(about).end_ids == {257, 258}


def byte_alphabet_about(pre: str, more: Sequence[str] = ()) -> dict[str, Any]:
    """The metadata of a byte-level BPE without merges, and these special tokens after it."""
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*sorted(BYTE_OF, key=lambda one: BYTE_OF[one]), *more],
        "tokenizer.ggml.token_type": [1] * 256 + [3] * len(more),
    }
