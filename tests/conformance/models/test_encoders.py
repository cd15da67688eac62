"""Encoders: random ones of every family, and a real one, against transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from headrace.registry.pull import pull
from headrace.runtime.embedding import Embeddings, Encoder, EncoderOptions
from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.models.fields import UnsupportedModel
from headrace.runtime.request import RequestRefused
from tests.conformance.models.oracle import randomize, small, write

OPTIONS = EncoderOptions(backend="reference", batch_tokens=64, batch_texts=4)
WORDS = [f"w{index}" for index in range(40)]
TEXTS = [" ".join(WORDS[first : first + count]) for first, count in ((0, 3), (5, 30), (9, 1))] + [
    " ".join(WORDS[::-1]),
    "w1 w1 w2 unheard-of w3",
    " ".join(WORDS * 2),
]
NO_WINDOW = {"num_key_value_heads": None, "pad_token_id": 0, "max_position_embeddings": 128}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {"hidden_act": "gelu"}),
    "roberta": ("Roberta", {"pad_token_id": 1, "type_vocab_size": 1}),
    "xlm-roberta": ("XLMRoberta", {"pad_token_id": 1, "type_vocab_size": 1}),
    "modernbert": ("ModernBert", {"local_attention": 16, "global_attn_every_n_layers": 3}),
    "modernbert with biases": (
        "ModernBert",
        {
            "local_attention": 12,
            "attention_bias": True,
            "mlp_bias": True,
            "norm_bias": True,
            "classifier_bias": True,
            "classifier_pooling": "mean",
        },
    ),
}


def write_tokenizer(path: Path) -> None:
    """A tokenizer of whole words, with BERT's special tokens put in by its post-processor."""
    names = ["[MASK]", "[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.enable_padding(length=100)  # as files have it that were saved after training
    tokenizer.enable_truncation(8)
    tokenizer.save(str(path / "tokenizer.json"))


def piece_tokenizer(path: Path, model: models.Model) -> None:
    """A tokenizer over single characters, as SentencePiece and byte-level BPE write theirs."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 3), ("<s>", 2))
    tokenizer.save(str(path / "tokenizer.json"))


def build(path: Path, name: str, head: str, **changes: Any) -> transformers.PreTrainedModel:
    """A random encoder with its tokenizer; `head` is "" or "ForSequenceClassification"."""
    family, own = ENCODERS[name]
    settings = {**small(**NO_WINDOW), **own, **changes}
    del settings["num_key_value_heads"]
    config = getattr(transformers, f"{family}Config")(**settings)
    kind = transformers.AutoModelForSequenceClassification if head else transformers.AutoModel
    model = write(path, config, kind)
    write_tokenizer(path)
    return model


def states(model: torch.nn.Module, encoder: Encoder, text: str) -> np.ndarray[Any, Any]:
    tokens = encoder.reader.read(text).tokens
    with torch.inference_mode():
        found: np.ndarray[Any, Any] = model(torch.tensor([tokens])).last_hidden_state[0].numpy()
    return found


@pytest.fixture(params=["reference", "cpu"])
def options(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> EncoderOptions:
    monkeypatch.setenv("HEADRACE_CPU_PRECISE", "1")
    return replace(OPTIONS, backend=request.param)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_gives_the_oracle_s_vectors(
    tmp_path: Path, name: str, options: EncoderOptions
) -> None:
    model = build(tmp_path, name, "")
    with Encoder.load(tmp_path, options) as encoder:
        found = encoder.embed(TEXTS)
        for text, vector, count in zip(TEXTS, found.vectors, found.tokens, strict=True):
            hidden = states(model, encoder, text)
            assert len(hidden) == count
            expected = hidden.mean(axis=0)
            expected /= np.linalg.norm(expected)
            np.testing.assert_allclose(vector, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("labels", [1, 3])
def test_every_classifier_gives_the_oracle_s_probabilities(
    tmp_path: Path, name: str, labels: int, options: EncoderOptions
) -> None:
    model = build(tmp_path, name, "ForSequenceClassification", num_labels=labels)
    with Encoder.load(tmp_path, options) as encoder:
        found = encoder.classify(TEXTS)
        assert found.labels == tuple(f"LABEL_{index}" for index in range(labels))
        for text, row in zip(TEXTS, found.probabilities, strict=True):
            with torch.inference_mode():
                scores = model(torch.tensor([encoder.reader.read(text).tokens])).logits[0]
            expected = torch.sigmoid(scores) if labels == 1 else torch.softmax(scores, 0)
            np.testing.assert_allclose(row, expected.numpy(), atol=1e-5, rtol=0)


def test_a_cross_encoder_reads_query_and_document_as_two_types(
    tmp_path: Path, options: EncoderOptions
) -> None:
    model = build(tmp_path, "bert", "ForSequenceClassification", num_labels=1)
    query, documents = "w1 w2 w3", ["w4 w5", "w3 w2 w1 w0", "w9"]
    with Encoder.load(tmp_path, options) as encoder:
        found = encoder.rank(query, documents)
        raw = []
        for document in documents:
            pair = encoder.reader.read(query, document)
            assert set(pair.types) == {0, 1}
            given = {"token_type_ids": torch.tensor([pair.types])}
            with torch.inference_mode():
                raw.append(model(torch.tensor([pair.tokens]), **given).logits[0, 0].item())
    np.testing.assert_allclose(found.scores, 1 / (1 + np.exp(-np.array(raw))), atol=1e-5)
    config = json.loads((tmp_path / "config.json").read_text())
    config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with Encoder.load(tmp_path, options) as encoder:
        np.testing.assert_allclose(encoder.rank(query, documents).scores, raw, atol=1e-5)


def write_modules(path: Path, pooling: str, *more: str) -> None:
    """The steps of a sentence-transformers directory."""
    types = ["Transformer", "Pooling", *more]
    steps = [
        {"idx": at, "path": f"{at}_{type}" if at else "", "type": f"sentence_transformers.{type}"}
        for at, type in enumerate(types)
    ]
    (path / "modules.json").write_text(json.dumps(steps))
    (path / "1_Pooling").mkdir(exist_ok=True)
    modes = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, pooling: True}
    (path / "1_Pooling" / "config.json").write_text(json.dumps(modes))


@pytest.mark.parametrize(
    ("pooling", "row"), [("pooling_mode_cls_token", 0), ("pooling_mode_lasttoken", -1)]
)
def test_pooling_and_norm_are_those_of_the_directory(
    tmp_path: Path, pooling: str, row: int
) -> None:
    model = build(tmp_path, "bert", "")
    write_modules(tmp_path, pooling)
    with Encoder.load(tmp_path, OPTIONS) as encoder:
        found = encoder.embed(TEXTS)
        for text, vector in zip(TEXTS, found.vectors, strict=True):
            np.testing.assert_allclose(vector, states(model, encoder, text)[row], atol=1e-4)


def test_a_step_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    build(tmp_path, "bert", "")
    write_modules(tmp_path, "pooling_mode_mean_tokens", "Dense")
    with pytest.raises(UnsupportedModel, match="Dense"):
        Encoder.load(tmp_path, OPTIONS)
    write_modules(tmp_path, "pooling_mode_max_tokens")
    with pytest.raises(UnsupportedModel, match="pooling_mode_max_tokens"):
        Encoder.load(tmp_path, OPTIONS)


@pytest.mark.parametrize("stated", [True, False])
def test_a_decoder_embeds_by_its_last_token(tmp_path: Path, stated: bool) -> None:
    torch.manual_seed(4)
    config = transformers.Qwen3Config(**small(head_dim=16))
    model = transformers.Qwen3Model(config)
    randomize(model)
    model.train(False)
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    if stated:
        write_modules(tmp_path, "pooling_mode_lasttoken", "Normalize")
    with Encoder.load(tmp_path, OPTIONS) as encoder:
        found = encoder.embed(TEXTS)
        for text, vector in zip(TEXTS, found.vectors, strict=True):
            expected = states(model, encoder, text)[-1]
            expected /= np.linalg.norm(expected)
            np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_fewer_dimensions_are_the_first_ones_at_length_1(tmp_path: Path) -> None:
    build(tmp_path, "bert", "")
    with Encoder.load(tmp_path, OPTIONS) as encoder:
        whole = encoder.embed(TEXTS).vectors
        short = encoder.embed(TEXTS, dimensions=16).vectors
        expected = whole[:, :16] / np.linalg.norm(whole[:, :16], axis=1, keepdims=True)
        np.testing.assert_allclose(short, expected, atol=1e-6)
        for wrong in (0, 65):
            with pytest.raises(RequestRefused, match="dimensions must be from 1 to 64"):
                encoder.embed(TEXTS, dimensions=wrong)


def test_what_is_too_long_is_refused_or_cut_with_its_last_special_token(tmp_path: Path) -> None:
    build(tmp_path, "bert", "")
    long = "w1 " * 500
    with Encoder.load(tmp_path, OPTIONS) as encoder:
        with pytest.raises(RequestRefused, match="502 tokens, the model reads 128") as refused:
            encoder.embed([long])
        assert refused.value.code == "context_too_long"
        cut: Embeddings = encoder.embed([long], truncate=True)
        assert cut.tokens == (128,)
        np.testing.assert_array_equal(cut.vectors, encoder.embed(["w1 " * 126]).vectors)


def test_of_an_endless_text_only_the_beginning_is_read(tmp_path: Path) -> None:
    build(tmp_path, "bert", "")
    endless = "w1 " * 400_000
    with Encoder.load(tmp_path, OPTIONS) as encoder:
        with pytest.raises(RequestRefused, match="at least 2733 tokens, the model reads 128"):
            encoder.embed([endless])
        cut = encoder.embed([endless], truncate=True)
        np.testing.assert_array_equal(cut.vectors, encoder.embed(["w1 " * 126]).vectors)
        blank = " " * 1_000_000
        assert encoder.embed([blank + "w1"]).tokens == (3,)


def test_a_model_refuses_what_it_is_not_for(tmp_path: Path) -> None:
    build(tmp_path, "bert", "")
    with Encoder.load(tmp_path, OPTIONS) as encoder:
        assert encoder.embed([]).vectors.shape == (0, 64)
        with pytest.raises(RequestRefused, match="does not classify"):
            encoder.classify(TEXTS)
    build(tmp_path, "bert", "ForSequenceClassification", num_labels=3)
    with Encoder.load(tmp_path, OPTIONS) as encoder:
        with pytest.raises(RequestRefused, match="does not embed"):
            encoder.embed(TEXTS)
        with pytest.raises(RequestRefused, match="no one score"):
            encoder.rank("w1", TEXTS)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_every_kind_of_tokenizer_is_the_file_s_own(tmp_path: Path, kind: str) -> None:
    pieces = ["<unk>", "<pad>", "<s>", "</s>", "▁", "w", "1", "2", "▁w"]
    if kind == "unigram":
        scored = [(piece, -float(index)) for index, piece in enumerate(pieces)]
        model: models.Model = models.Unigram(scored, unk_id=0)
    else:
        ids = {piece: index for index, piece in enumerate(pieces)}
        model = models.BPE(ids, merges=[("▁", "w")], unk_token="<unk>")
    build(tmp_path, "xlm-roberta", "")
    piece_tokenizer(tmp_path, model)
    oracle: Any = transformers.PreTrainedTokenizerFast
    expected = oracle(tokenizer_file=str(tmp_path / "tokenizer.json"))
    with Encoder.load(tmp_path, OPTIONS) as encoder:
        for text in ("w1 w2", "w w21", ""):
            tokens = list(encoder.reader.read(text).tokens)
            assert tokens == expected(text).input_ids
            assert (tokens[0], tokens[-1]) == (2, 3)
        pair = encoder.reader.read("w1", "w2")
        assert list(pair.tokens) == expected("w1", "w2").input_ids


@pytest.mark.parametrize(("tokens", "texts"), [(0, 1), (1, 0)])
def test_a_batch_of_nothing_is_refused(tokens: int, texts: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        EncoderOptions(batch_tokens=tokens, batch_texts=texts)


def test_an_encoder_is_no_engine_s_model(tmp_path: Path) -> None:
    build(tmp_path, "bert", "")
    with pytest.raises(UnsupportedModel, match="does not generate text"):
        Engine.load(tmp_path, EngineOptions(backend="reference", kv_tokens=64))


def test_minilm_gives_the_vectors_that_sentence_transformers_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first values of the two sentences of the model's own example."""
    shown = {
        "This is an example sentence": [6.7657e-02, 6.3496e-02, 4.8713e-02, 7.9305e-02, 3.7448e-02],
        "Each sentence is converted": [8.6439e-02, 1.0276e-01, 5.3946e-03, 2.0444e-03, -9.9634e-03],
    }
    with Encoder.load(pull("minilm-l6")) as encoder:
        fast = encoder.embed(list(shown)).vectors
    monkeypatch.setenv("HEADRACE_CPU_PRECISE", "1")
    with Encoder.load(pull("minilm-l6")) as encoder:
        found = encoder.embed(list(shown)).vectors
    np.testing.assert_allclose(found[:, :5], list(shown.values()), atol=1e-5)
    assert (np.sum(fast * found, axis=1) > 0.9999).all()  # bfloat16, where there are tiles


def test_minilm_gives_the_oracle_s_vectors_and_ids() -> None:
    path = pull("minilm-l6")
    texts = [
        "A man is eating food.",
        "Someone is having a meal.",
        "The stock market fell sharply today.",
        "été, naïve café, 你好 🎉",
        "x" * 50 + " word" * 200,
    ]
    model = transformers.AutoModel.from_pretrained(path, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    with Encoder.load(path, EncoderOptions(backend="reference")) as encoder:
        found = encoder.embed(texts)
    for text, vector, count in zip(texts, found.vectors, found.tokens, strict=True):
        tokens = tokenizer(text).input_ids
        assert len(tokens) == count
        with torch.inference_mode():
            expected = model(torch.tensor([tokens])).last_hidden_state[0].mean(0).numpy()
        assert vector @ expected / np.linalg.norm(expected) >= 0.9999
    similar = found.vectors @ found.vectors.T
    assert similar[0, 1] > 0.6 > 0.2 > similar[0, 2]
