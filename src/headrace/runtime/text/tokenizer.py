"""The tokenizer of a model: text to ids, and each id's bytes.

Encoding is the `tokenizers` package's. Decoding is not: every token of the two families served
here (byte-level BPE, SentencePiece BPE) stands for fixed bytes, so text is the concatenation of
bytes, decoded as UTF-8 as they come (`text.detokenizer`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ..native import native_code
from ..weights.gguf import WeightsError

CONTROL, USER_DEFINED = 3, 4  # token types of GGUF
SENTENCEPIECE_SPACE = "▁"

# Pre-tokenisation by GGUF's `tokenizer.ggml.pre`, as the models' own tokenizer.json have it.
DIGITS_THEN_WORDS = ("smollm", "starcoder", "refact", "command-r", "codeshell")
PLAIN_WORDS = ("default", "gpt-2", "gpt2", "olmo", "jais", "phi-2")
LLAMA3 = ("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "dbrx")
O200K = ("gpt-4o", "llama4")
QWEN2 = ("qwen2", "deepseek-r1-qwen")
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Words that change from large to small letters at most once (openai/tiktoken, o200k_base).
LARGE, SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K_SPLIT = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{LARGE}*{SMALL}+{CONTRACTION}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{LARGE}+{SMALL}*{CONTRACTION}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# In harmony (`text.harmony`) these end an answer, and the end of a message does not.
HARMONY_ENDS = ("<|return|>", "<|call|>")
HARMONY_MESSAGE_END = "<|end|>"


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes (openai/gpt-2, encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {chr(256 + index): byte for index, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | shifted


BYTE_OF = byte_alphabet()


@dataclass(slots=True)
class Vocabulary:
    """Encoder, each token's bytes on demand, and the ids that end a generation.

    `sentencepiece` says which of the two families it is. `specials` (control tokens) have no
    bytes: they never show in text.
    """

    encoder: Tokenizer
    sentencepiece: bool
    specials: frozenset[int]
    literals: Mapping[int, str]  # added tokens that stand for their own text
    end_ids: frozenset[int]
    bos_id: int | None
    add_bos: bool
    known_bytes: dict[int, bytes] = field(default_factory=dict)
    longest: int = 0  # characters of the longest token, once they were counted

    def least_tokens(self, text: str) -> int:
        """A number of tokens that `text` has at least, told without encoding it."""
        if not self.longest:
            composed = 1 if self.sentencepiece or self.encoder.normalizer is None else 4  # by NFC
            self.longest = composed * max(map(len, self.encoder.get_vocab()), default=1)
        return -(-len(text) // self.longest)

    def encode(self, text: str, *, add_bos: bool) -> list[int]:
        """Ids of `text`; special tokens written in it are recognised as such."""
        ids: list[int] = self.encoder.encode(text, add_special_tokens=False).ids
        if add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            return [self.bos_id, *ids]
        return ids

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for; none for a special or unknown id."""
        found = self.known_bytes.get(token)
        if found is None:
            found = self.known_bytes[token] = self.spell(token)
        return found

    def label(self, token: int) -> bytes:
        """The bytes a token stands for; of a special one its name."""
        if token in self.specials:
            return str(self.encoder.id_to_token(token)).encode()
        return self.token_bytes(token)

    def special(self, name: str) -> int | None:
        """The id of the special token of that name, if there is one."""
        token: int | None = self.encoder.token_to_id(name)
        return token if token in self.specials else None

    def spell(self, token: int) -> bytes:
        """Work out `token_bytes` for one id."""
        if token in self.specials:
            return b""
        if token in self.literals:
            return self.literals[token].encode()
        piece: str | None = self.encoder.id_to_token(token)
        if piece is None:
            return b""
        if not self.sentencepiece:
            return bytes(BYTE_OF[character] for character in piece if character in BYTE_OF)
        if len(piece) == 6 and piece.startswith("<0x"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SENTENCEPIECE_SPACE, " ").encode()


def vocabulary_from_gguf(about: Mapping[str, Any]) -> Vocabulary:
    """Build the tokenizer from GGUF metadata. Raises WeightsError on an unknown kind."""
    kind = about.get("tokenizer.ggml.model")
    tokens: list[str] = about.get("tokenizer.ggml.tokens") or []
    ids = {token: index for index, token in enumerate(tokens)}
    if kind == "gpt2":
        encoder = byte_level(ids, about)
    elif kind == "llama":
        encoder = sentencepiece(tokens, ids, about)
    else:
        raise WeightsError(f"tokenizer model '{kind}'; supported: gpt2, llama")
    types: Sequence[int] = about.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if len(types) != len(tokens):
        raise WeightsError(f"{len(types)} token types for {len(tokens)} tokens")
    specials = [token for token, type in zip(tokens, types, strict=True) if type == CONTROL]
    literals = [token for token, type in zip(tokens, types, strict=True) if type == USER_DEFINED]
    encoder.add_special_tokens([AddedToken(token, normalized=False) for token in specials])
    encoder.add_tokens([AddedToken(token, normalized=False) for token in literals])
    ends = {about.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}
    if all(name in ids for name in HARMONY_ENDS):
        ends = {*ends, *(ids[name] for name in HARMONY_ENDS)} - {ids.get(HARMONY_MESSAGE_END)}
    return Vocabulary(
        encoder=encoder,
        sentencepiece=kind == "llama",
        specials=frozenset(ids[token] for token in specials),
        literals={ids[token]: token for token in literals},
        end_ids=frozenset(end for end in ends if end is not None),
        bos_id=about.get("tokenizer.ggml.bos_token_id"),
        add_bos=about.get("tokenizer.ggml.add_bos_token", kind == "llama"),
    )


def byte_level(ids: dict[str, int], about: Mapping[str, Any]) -> Tokenizer:
    """A byte-level BPE with the pre-tokenisation that the file names."""
    merges = [tuple(merge.split(" ", 1)) for merge in about.get("tokenizer.ggml.merges") or []]
    pre = about.get("tokenizer.ggml.pre", "default")
    whole_words = pre in LLAMA3 or pre in O200K  # these look a word up before they merge
    encoder = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=merges,
            ignore_merges=whole_words,
        )
    )
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    raw = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if pre in DIGITS_THEN_WORDS:
        parts = [pre_tokenizers.Digits(individual_digits=True), words]
    elif pre in PLAIN_WORDS:
        parts = [words]
    elif pre in O200K:
        parts = [pre_tokenizers.Split(Regex(O200K_SPLIT), "isolated"), raw]
    elif pre in LLAMA3 or pre in QWEN2:
        digits = r"\p{N}" if pre in QWEN2 else r"\p{N}{1,3}"
        parts = [pre_tokenizers.Split(Regex(SPLIT.format(digits=digits)), "isolated"), raw]
    else:
        raise WeightsError(f"pre-tokenizer '{pre}' is not known")
    encoder.pre_tokenizer = pre_tokenizers.Sequence(parts)
    encoder.decoder = decoders.ByteLevel()
    if pre in QWEN2:
        encoder.normalizer = normalizers.NFC()
    return encoder


def sentencepiece(tokens: list[str], ids: dict[str, int], about: Mapping[str, Any]) -> Tokenizer:
    """A SentencePiece BPE: its merges follow from the scores, best first."""
    scores: list[float] = about.get("tokenizer.ggml.scores") or []
    if len(scores) > len(tokens):
        raise WeightsError(f"{len(scores)} scores for {len(tokens)} tokens")
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    native = native_code()
    pairs = merges(tokens, order) if native is None else native.merges(tokens, order)
    unknown = about.get("tokenizer.ggml.unknown_token_id", 0)
    encoder = Tokenizer(
        models.BPE(
            vocab=ids, merges=pairs, unk_token=tokens[unknown], byte_fallback=True, fuse_unk=True
        )
    )
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", SENTENCEPIECE_SPACE)]
    if about.get("tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, normalizers.Prepend(SENTENCEPIECE_SPACE))
    encoder.normalizer = normalizers.Sequence(steps)
    return encoder


def merges(pieces: Sequence[str], order: Iterable[int]) -> list[tuple[str, str]]:
    """The merges of a SentencePiece BPE whose pieces are ranked so.

    SentencePiece merges the adjacent pair whose union has the best score; as a list of merges:
    every way to split a piece into two pieces, ordered by the whole's rank, then by the ids of the
    parts.
    """
    ids = {piece: index for index, piece in enumerate(pieces)}
    found = []
    for index in order:
        piece = pieces[index]
        splits = [
            (piece[:at], piece[at:])
            for at in range(1, len(piece))
            if piece[:at] in ids and piece[at:] in ids
        ]
        found += sorted(splits, key=lambda split: (ids[split[0]], ids[split[1]]))
    return found


def vocabulary_from_directory(directory: Path) -> Vocabulary:
    """Build the tokenizer of a Hugging Face directory from tokenizer.json and its companions."""
    source = directory / "tokenizer.json"
    if not source.exists():
        raise WeightsError(f"{directory} has no tokenizer.json")
    encoder = Tokenizer.from_file(str(source))
    about = read_json(directory / "tokenizer_config.json")
    generation = read_json(directory / "generation_config.json")
    config = read_json(directory / "config.json")
    added = json.loads(source.read_text())["added_tokens"]
    ends = generation.get("eos_token_id", config.get("eos_token_id"))
    end_ids = set(ends) if isinstance(ends, list) else {ends}
    end_ids.add(encoder.token_to_id(token_text(about.get("eos_token")) or ""))
    bos = token_text(about.get("bos_token"))
    return Vocabulary(
        encoder=encoder,
        sentencepiece=bool(getattr(encoder.model, "byte_fallback", False)),
        specials=frozenset(token["id"] for token in added if token["special"]),
        literals={token["id"]: token["content"] for token in added if not token["special"]},
        end_ids=frozenset(end for end in end_ids if end is not None),
        bos_id=encoder.token_to_id(bos) if bos else None,
        add_bos=adds_bos(encoder, bos),
    )


def adds_bos(encoder: Tokenizer, bos: str | None) -> bool:
    """Whether the tokenizer itself begins a text with its beginning-of-sequence token."""
    return bos is not None and encoder.encode("a").tokens[:1] == [bos]


def token_text(token: Any) -> str | None:
    """A token of tokenizer_config.json, which is a string or an object with `content`."""
    return token.get("content") if isinstance(token, dict) else token


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file that may be missing."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    return found if isinstance(found, dict) else {}
