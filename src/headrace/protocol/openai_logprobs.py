"""Log-probabilities in OpenAI's three shapes: chat, completions, and vLLM's `prompt_logprobs`.

Source: the OpenAI API reference (chat completion and completion objects); vLLM's OpenAI-compatible
server for `prompt_logprobs`, which OpenAI does not have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct

from headrace.protocol.generation import TokenLogprob

_BYTES = re.compile(r"bytes:(\\x[0-9a-f]{2})+")


class ChatToken(Struct):
    """A token in a chat answer's `logprobs.content`."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[ChatToken] | None = None


class Logprobs(Struct):
    """`logprobs` of a choice: `content` of a chat, the other lists of a completion."""

    content: list[ChatToken] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class PromptToken(Struct):
    """One candidate at a place of the prompt, under its token id."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


def chat_logprobs(tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
    """`logprobs` of a chat choice."""
    content = [
        {**_chat_token(one), "top_logprobs": [_chat_token(other) for other in one.ranked]}
        for one in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[TokenLogprob], offset: int = 0) -> dict[str, Any]:
    """`logprobs` of a completion choice whose first token stands at character `offset`."""
    offsets = []
    for one in tokens:
        offsets.append(offset)
        offset += characters(one)
    return {
        "tokens": [_label(one) for one in tokens],
        "token_logprobs": [one.logprob for one in tokens],
        "top_logprobs": [
            None if one.logprob is None else {_label(other): other.logprob for other in one.ranked}
            for one in tokens
        ],
        "text_offset": offsets,
    }


def prompt_logprobs(tokens: Iterable[TokenLogprob]) -> list[dict[str, Any] | None]:
    """`prompt_logprobs`: for each token the candidates at its place by id, itself first."""
    return [None if one.logprob is None else _candidates(one) for one in tokens]


def read_logprobs(sent: Logprobs) -> tuple[TokenLogprob, ...]:
    """The tokens of a choice's `logprobs`, of either endpoint."""
    if sent.content is not None:
        return tuple(_read_chat_token(one) for one in sent.content)
    ranked = sent.top_logprobs or []
    return tuple(
        _labelled(
            text,
            logprob,
            tuple(_labelled(other, value) for other, value in (top or {}).items()),
        )
        for text, logprob, top in zip(
            sent.tokens or [],
            sent.token_logprobs or [],
            [*ranked, *[None] * (len(sent.tokens or []) - len(ranked))],
            strict=False,
        )
    )


def read_prompt_logprobs(
    sent: Iterable[dict[str, PromptToken] | None],
) -> tuple[TokenLogprob, ...]:
    """The tokens of `prompt_logprobs`; of a token without candidates nothing is known."""
    tokens = []
    for candidates in sent:
        if not candidates:
            tokens.append(TokenLogprob("", None))
            continue
        known = [
            (one.rank, TokenLogprob(one.decoded_token or "", one.logprob, id=int(id)))
            for id, one in candidates.items()
        ]
        ranked = sorted((one for one in known if one[0] is not None), key=lambda one: one[0] or 0)
        own = known[0][1]
        tokens.append(
            TokenLogprob(own.text, own.logprob, id=own.id, ranked=tuple(one for _, one in ranked))
        )
    return tuple(tokens)


def characters(one: TokenLogprob) -> int:
    """How many characters begin in a token."""
    if one.bytes is None:
        return len(one.text)
    return sum(byte & 0xC0 != 0x80 for byte in one.bytes)


def _chat_token(one: TokenLogprob) -> dict[str, Any]:
    known = None if one.bytes is None else list(one.bytes)
    return {"token": one.text, "logprob": one.logprob, "bytes": known}


def _read_chat_token(sent: ChatToken) -> TokenLogprob:
    return TokenLogprob(
        sent.token,
        sent.logprob,
        None if sent.bytes is None else bytes(sent.bytes),
        ranked=tuple(_read_chat_token(other) for other in sent.top_logprobs or ()),
    )


def _label(one: TokenLogprob) -> str:
    """A token's text; of a part of a character its bytes, as OpenAI writes them."""
    if one.bytes is None or one.bytes == one.text.encode():
        return one.text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in one.bytes)


def _labelled(
    label: str, logprob: float | None, ranked: tuple[TokenLogprob, ...] = ()
) -> TokenLogprob:
    """The token of a completion's label: the reverse of `_label`."""
    if not _BYTES.fullmatch(label):
        return TokenLogprob(label, logprob, ranked=ranked)
    known = bytes.fromhex(label.removeprefix("bytes:").replace("\\x", ""))
    return TokenLogprob(known.decode(errors="replace"), logprob, known, ranked=ranked)


def _candidates(one: TokenLogprob) -> dict[str, Any]:
    places = {other.id: place for place, other in enumerate(one.ranked, 1)}
    return {
        str(other.id): {
            "logprob": other.logprob,
            "rank": places.get(other.id),
            "decoded_token": other.text,
        }
        for other in (one, *one.ranked)
    }
