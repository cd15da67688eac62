"""What a step's tokens make of the sequences that sampled: text, an end, log-probabilities.

In two parts: `take` notes the tokens and sees the ends that they alone decide, which is all that
the next step depends on; `tell` reads the text, while the next step runs already.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import zip_longest

from .backends.base import Sampled
from .request import FinishReason, TokenLogprob
from .scheduler import Span
from .sequence import Sequence
from .text.answer import Said
from .text.tokenizer import Vocabulary

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Taken:
    """The tokens that one step gave one sequence, and why the last is the last if that is certain.

    `row` is the first one's in what the step `sampled`; `first`: nothing came before it.
    """

    sequence: Sequence
    reason: FinishReason | None
    tokens: tuple[int, ...] = ()
    sampled: Sampled | None = None
    row: int = 0
    first: bool = False


@dataclass(frozen=True, slots=True)
class News:
    """What one step gave one sequence, and why it is over if it is."""

    said: Said
    tokens: tuple[int, ...]
    reason: FinishReason | None
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


def score(span: Span, sampled: Sampled, row: int, vocabulary: Vocabulary) -> int:
    """Note the log-probabilities of the span's prompt tokens, from `row` on; the row after."""
    sequence = span.sequence
    shown = sequence.sampling.prompt_logprobs or 0
    for _ in span.scored:
        sequence.prompt_logprobs.append(logprob(sampled, row, shown, vocabulary))
        row += 1
    return row


def take(span: Span, sampled: Sampled, row: int, now: float) -> Taken:
    """Give a sequence the token of a row, and those of the rows after it whose drafts held."""
    sequence, first = span.sequence, span.sequence.first_token is None
    if first:
        sequence.first_token = now
    sequence.coming -= 1
    chosen = sampled.tokens[row : row + span.chosen].tolist()
    reason, taken = None, 0
    for token, guess in zip_longest(chosen, span.drafts):
        reason = append(sequence, token)
        taken += 1
        if reason is not None or token != guess:
            break
        sequence.computed += 1  # the draft's KV is that of the token
    return Taken(sequence, reason, tuple(chosen[:taken]), sampled, row, first)


def append(sequence: Sequence, token: int) -> FinishReason | None:
    """Append one token; why it is the last, where its text need not be read to see it."""
    sequence.tokens.append(token)
    if sequence.counts is not None:
        sequence.counts.add(token)
    matcher = sequence.matcher
    if matcher is not None and not matcher.consume(token):
        log.error("the grammar of request %s gave up: %s", sequence.id, matcher.error)
        return "error"
    if token in sequence.end_tokens or (matcher is not None and matcher.stopped):
        return "stop"
    return "length" if len(sequence.tokens) >= sequence.limit else None


def tell(taken: Taken, vocabulary: Vocabulary) -> News:
    """Read what was taken; where that fails, its sequence ends alone."""
    if taken.sampled is None:
        return News(Said(), (), taken.reason)
    try:
        return news(taken, taken.sampled, vocabulary)
    except Exception:
        log.exception("the answer of request %s could not be read", taken.sequence.id)
        return News(Said(), (), "error")


def news(taken: Taken, sampled: Sampled, vocabulary: Vocabulary) -> News:
    """Read what was taken. What comes after a stop string is taken back."""
    sequence, tokens = taken.sequence, taken.tokens
    before = sequence.generated - len(tokens)
    said, reason, count = Said(), taken.reason, 0
    for count, token in enumerate(tokens, 1):
        reason = taken.reason if count == len(tokens) else None
        text, reason = show(sequence, token, before + count, reason)
        more, reason = read(sequence, text, reason)
        said += more
        if reason is not None:
            break
    del sequence.tokens[len(sequence.tokens) - (len(tokens) - count) :]
    shown = sequence.sampling.logprobs
    places = range(taken.row, taken.row + count) if shown is not None else ()
    return News(
        said=said,
        tokens=tokens[:count],
        reason=reason,
        logprobs=tuple(logprob(sampled, place, shown or 0, vocabulary) for place in places),
        prompt_logprobs=prompt_logprobs(sequence, vocabulary) if taken.first else (),
    )


def show(
    sequence: Sequence, token: int, generated: int, reason: FinishReason | None
) -> tuple[str, FinishReason | None]:
    """The text that may be shown with the `generated`th token, and why it is the last if it is."""
    if reason == "error" or token in sequence.end_tokens:
        return rest(sequence), reason
    text, stopped = sequence.detokenizer.feed(token), False
    if generated >= sequence.sampling.min_tokens:
        text, stopped = sequence.stops.feed(text)
    if stopped:
        return text, "stop"
    return (text, None) if reason is None else (text + rest(sequence), reason)


def read(
    sequence: Sequence, text: str, reason: FinishReason | None
) -> tuple[Said, FinishReason | None]:
    """What a token's text says, and why it is the last if it is: a call may end an answer."""
    reader = sequence.reader
    if reader is None:
        return Said(text), reason
    said = reader.read(text, final=reason is not None)
    if reader.called and (reason == "stop" or reader.over):
        reason = "tool_calls"
    return said, reason


def rest(sequence: Sequence) -> str:
    """Text that was held back and may be shown now that nothing follows."""
    text, stopped = sequence.stops.feed(sequence.detokenizer.finish())
    return text if stopped else text + sequence.stops.finish()


def logprob(sampled: Sampled, row: int, shown: int, vocabulary: Vocabulary) -> TokenLogprob:
    """A row's token with its log-probability, and the `shown` most likely ones with theirs."""
    label = vocabulary.label
    token = int(sampled.tokens[row])
    others: tuple[TokenLogprob, ...] = ()
    if sampled.ranked_tokens is not None and sampled.ranked_logprobs is not None:
        found = zip(
            sampled.ranked_tokens[row, :shown].tolist(),
            sampled.ranked_logprobs[row, :shown].tolist(),
            strict=True,
        )
        others = tuple(TokenLogprob(other, label(other), value) for other, value in found)
    return TokenLogprob(token, label(token), float(sampled.logprobs[row]), others)


def prompt_logprobs(sequence: Sequence, vocabulary: Vocabulary) -> tuple[TokenLogprob, ...]:
    """Those of a prompt, where they were asked for; nothing comes before its first token."""
    if sequence.sampling.prompt_logprobs is None:
        return ()
    head = sequence.tokens[0]
    return (TokenLogprob(head, vocabulary.label(head), None), *sequence.prompt_logprobs)
