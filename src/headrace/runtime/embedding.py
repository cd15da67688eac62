"""Texts to vectors, labels and ranks: models that read a whole text in one step.

    from headrace.runtime.embedding import Encoder

    with Encoder.load(path) as encoder:
        vectors = encoder.embed(["a river", "a stream"]).vectors

An encoder is used from one thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .backends.base import Backend, Batch, KVLayout
from .backends.choice import choose
from .layout import Layout
from .models.architecture import Architecture
from .models.assembly import classifier_program, pooled_program
from .models.checkpoint import blaming, describe_directory
from .models.families import from_config
from .models.sentence import Sentences, read_sentences, score_is_raw
from .options import AUTO
from .placement import layout
from .plan import sampling_rows
from .request import RequestRefused
from .text.tokenizer import read_json
from .weights.gguf import WeightsError

Vectors = NDArray[np.float32]
BLOCK_SIZE = 32
LONG_TEXT = 8192  # characters that are encoded whatever the model reads
LONG_TOKEN = 16  # characters; texts have more tokens than one in so many
CUT_WORD = 256  # tokens that the beginning of a word may have more than the whole word


@dataclass(frozen=True, slots=True)
class EncoderOptions:
    """How an encoder runs. `threads` 0: as many as this process may use."""

    backend: str = AUTO
    threads: int = 0
    batch_tokens: int = 4096  # of one step; a longer text has a step of its own
    batch_texts: int = 64

    def __post_init__(self) -> None:
        if self.batch_tokens < 1 or self.batch_texts < 1:
            raise ValueError("batch_tokens and batch_texts must be at least 1")


DEFAULT_OPTIONS = EncoderOptions()


@dataclass(frozen=True, slots=True)
class Encoded:
    """One text, or a pair, as the model reads it."""

    tokens: tuple[int, ...]
    types: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors [texts, dimensions], and how many tokens each text had."""

    vectors: Vectors
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Classes:
    """Probabilities [texts, labels], the labels, and how many tokens each text had."""

    probabilities: Vectors
    labels: tuple[str, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ranked:
    """How well each document answers the query [documents], and how many tokens each pair had."""

    scores: Vectors
    tokens: tuple[int, ...]


class Reader:
    """A model's own tokenizer, special tokens included, bounded by what the model reads."""

    def __init__(self, tokenizer: Tokenizer, sentences: Sentences, longest: int) -> None:
        self.sentences = sentences
        self.longest = longest
        self.tokenizer = tokenizer
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.cutting = Tokenizer.from_str(tokenizer.to_str())
        self.cutting.enable_truncation(longest)

    def read(self, text: str, pair: str | None = None, *, truncate: bool = False) -> Encoded:
        """Ids of a text or a pair. Raises RequestRefused where it is too long, or empty."""
        text = self.sentences.prefix + text
        if self.sentences.lower_case:
            text, pair = text.lower(), pair.lower() if pair is not None else None
        whole = (text, pair)
        text, pair = self.beginning(text), None if pair is None else self.beginning(pair)
        tokenizer = self.cutting if truncate else self.tokenizer
        found = tokenizer.encode(text, pair)
        if len(found.ids) > self.longest:
            count = f"{'' if (text, pair) == whole else 'at least '}{len(found.ids)}"
            raise RequestRefused(
                "context_too_long",
                f"the text has {count} tokens, the model reads {self.longest}",
                limit=self.longest,
                tokens=len(found.ids),
            )
        if not found.ids:
            raise RequestRefused("invalid_value", "the text has no tokens", field="input")
        return Encoded(tuple(found.ids), tuple(found.type_ids))

    def beginning(self, text: str) -> str:
        """The text; of a very long one no more than its beginning, where that alone has more
        tokens than the model reads. Megabytes take seconds, and all other callers wait."""
        enough = max(LONG_TEXT, LONG_TOKEN * self.longest)
        if len(text) <= enough:
            return text
        tokens = len(self.tokenizer.encode(text[:enough]).ids)
        return text[:enough] if tokens > self.longest + CUT_WORD else text


class Encoder:
    """One model that embeds (`embed`), or one that classifies (`classify`, `rank`)."""

    def __init__(
        self,
        backend: Backend,
        model: Architecture,
        reader: Reader,
        options: EncoderOptions,
        raw_scores: bool,
        formats: Mapping[str, int],
        layout: Layout,
    ) -> None:
        self.backend = backend
        self.model = model
        self.reader = reader
        self.options = options
        self.raw_scores = raw_scores
        self.formats = formats  # weights of each
        self.layout = layout

    @classmethod
    def load(cls, path: Path, options: EncoderOptions = DEFAULT_OPTIONS) -> Encoder:
        """Load a Hugging Face directory: an encoder, a classifier, or a decoder that embeds.

        Raises WeightsError (damaged or unsupported model), ValueError (options), OSError.
        """
        with blaming(path):
            described = describe_directory(path, embeds=True)
            model = described.architecture
            sentences = read_sentences(path, otherwise="last" if model.causal else "mean")
        longest = min(sentences.longest or model.context, model.context)
        if model.head is None:
            program = pooled_program(model, sentences.pooling)
        else:
            program = classifier_program(model, model.head)
        rows = max(options.batch_tokens, longest)
        kv = KVLayout(-(-rows // BLOCK_SIZE) + options.batch_texts, BLOCK_SIZE)
        backend = choose(options.backend)(program, described.weights, kv, options.threads)
        reader = Reader(read_tokenizer(path), sentences, longest)
        raw = score_is_raw(read_json(path / "config.json"))
        formats = dict(Counter(tensor.format for tensor in described.weights.values()))
        placed = layout(options.backend, backend, program, described.weights)
        return cls(backend, model, reader, options, raw, formats, placed)

    def embed(
        self, texts: Sequence[str], dimensions: int | None = None, *, truncate: bool = False
    ) -> Embeddings:
        """Vectors of texts, cut to their first `dimensions` and normalised as the model says.

        Cutting keeps meaning only in models trained for it (Matryoshka, arXiv 2205.13147).
        Texts that are too long are cut where `truncate`. Raises RequestRefused.
        """
        self.check_dimensions(dimensions)
        encoded = [self.reader.read(text, truncate=truncate) for text in texts]
        return Embeddings(self.vectors_of(self.run(encoded), dimensions), counts(encoded))

    def check_dimensions(self, dimensions: int | None) -> None:
        """Raise RequestRefused where the model gives no vectors, or none of that size."""
        if self.model.head is not None:
            raise RequestRefused("invalid_value", "this model does not embed", field="model")
        if dimensions is not None and not 1 <= dimensions <= self.model.width:
            expected = f"dimensions must be from 1 to {self.model.width}"
            raise RequestRefused("invalid_value", expected, field="dimensions")

    def vectors_of(self, pooled: Vectors, dimensions: int | None) -> Vectors:
        """The vectors of what the model gave for each text."""
        vectors = pooled[:, :dimensions]
        if self.reader.sentences.normalized:
            lengths = np.sqrt(np.sum(vectors**2, axis=1, keepdims=True))
            vectors = vectors / np.maximum(lengths, np.float32(1e-12))
        return np.ascontiguousarray(vectors)

    def classify(self, texts: Sequence[str], *, truncate: bool = False) -> Classes:
        """Probabilities of the labels: a softmax over them, a sigmoid where there is one.

        Raises RequestRefused.
        """
        labels = self.labels()
        encoded = [self.reader.read(text, truncate=truncate) for text in texts]
        return Classes(probabilities(self.run(encoded)), labels, counts(encoded))

    def rank(self, query: str, documents: Sequence[str], *, truncate: bool = False) -> Ranked:
        """Scores of documents for a query, by a model that reads both together.

        They are between 0 and 1 unless the model says that its scores stay as they are. Raises
        RequestRefused.
        """
        if len(self.labels()) != 1:
            raise RequestRefused("invalid_value", "this model gives no one score", field="model")
        encoded = [self.reader.read(query, one, truncate=truncate) for one in documents]
        return Ranked(self.scores_of(self.run(encoded)), counts(encoded))

    def scores_of(self, found: Vectors) -> Vectors:
        """The scores [texts] of what the model gave for each pair, [texts, 1]."""
        scores: Vectors = (found if self.raw_scores else probabilities(found))[:, 0]
        return scores

    def labels(self) -> tuple[str, ...]:
        """What the model tells apart. Raises RequestRefused where it is no classifier."""
        if self.model.head is None:
            raise RequestRefused("invalid_value", "this model does not classify", field="model")
        return self.model.head.labels

    def run(self, encoded: Sequence[Encoded]) -> Vectors:
        """What the model gives for each text, [texts, its width]; equal lengths go together."""
        out: Vectors = np.empty((len(encoded), self.outputs), np.float32)
        order = sorted(range(len(encoded)), key=lambda index: len(encoded[index].tokens))
        while order:
            taken: list[int] = []
            rows = 0
            while order and len(taken) < self.options.batch_texts:
                rows += len(encoded[order[-1]].tokens)
                if taken and rows > self.options.batch_tokens:
                    break
                taken.append(order.pop())
            out[taken] = self.backend.logits(whole_texts([encoded[index] for index in taken]))
        return out

    @property
    def outputs(self) -> int:
        """Values that the model gives for a text."""
        return self.model.width if self.model.head is None else len(self.model.head.labels)

    def close(self) -> None:
        """Release the backend."""
        self.backend.close()

    def __enter__(self) -> Encoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def is_encoder(path: Path) -> bool:
    """Whether a model reads whole texts; one that is not sound is said to generate.

    A decoder does where its directory says how it makes sentences into vectors.
    """
    if not (path / "config.json").is_file():
        return False
    if (path / "modules.json").is_file():
        return True
    try:
        model = from_config(read_json(path / "config.json"))
    except ValueError:
        return False
    return not model.causal or model.head is not None


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a directory. Raises WeightsError."""
    source = path / "tokenizer.json"
    if not source.exists():
        raise WeightsError(f"{path} has no tokenizer.json")
    try:
        return Tokenizer.from_file(str(source))
    except Exception as error:  # the package raises nothing more exact
        raise WeightsError(f"{source} is not sound: {error}") from error


def whole_texts(texts: Sequence[Encoded]) -> Batch:
    """A step over whole texts, one after the other in the KV cache, from block 0."""
    lengths = np.array([len(text.tokens) for text in texts], np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    blocks = -(-lengths // BLOCK_SIZE)
    first_blocks = np.cumsum(blocks) - blocks
    columns = np.arange(blocks.max(), dtype=np.int32)
    tables = np.where(columns < blocks[:, None], first_blocks[:, None] + columns, -1)
    positions = np.concatenate([np.arange(length) for length in lengths])
    return Batch(
        tokens=np.array([token for text in texts for token in text.tokens], np.int32),
        positions=positions.astype(np.int32),
        slots=(np.repeat(first_blocks * BLOCK_SIZE, lengths) + positions).astype(np.int32),
        row_starts=starts,
        context_lengths=lengths,
        block_tables=tables.astype(np.int32),
        sampled_rows=np.empty(0, np.int32),
        sampling=sampling_rows([]),
        types=np.array([type for text in texts for type in text.types], np.int32),
        given=lengths,
    )


def counts(encoded: Sequence[Encoded]) -> tuple[int, ...]:
    """Tokens of each text."""
    return tuple(len(text.tokens) for text in encoded)


def probabilities(scores: Vectors) -> Vectors:
    """Softmax over the labels; of one label, a sigmoid."""
    if scores.shape[1] == 1:
        scores = np.concatenate([scores, np.zeros_like(scores)], axis=1)
        return probabilities(scores)[:, :1]
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    found: Vectors = powers / powers.sum(axis=1, keepdims=True)
    return found
