"""Drafts from a second, smaller model of the same vocabulary.

It follows each sequence in a twin with KV of its own: what the sequence has got besides is computed
when it is asked for next, in the step that gives the first drafted token, and what was drafted in
vain is written over. The sampler draws the drafted tokens with the very numbers that the large
model's tokens will be drawn with, so that two models which agree draw the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Several
from dataclasses import dataclass, replace
from pathlib import Path

from ..backends.base import Backend, KVLayout
from ..backends.choice import choose
from ..kvcache import BlockPool, BlockTable
from ..models.assembly import decoder_program
from ..models.checkpoint import Checkpoint, load_checkpoint
from ..plan import plan_batch
from ..scheduler import Span
from ..sequence import Sequence
from .draft import Draft

CATCH_UP = 256  # tokens a step: a long prompt is followed over several
NEWEST = 0.1  # weight of the newest measurement


@dataclass(slots=True)
class Twin:
    """A sequence in the draft model; the first `agreed` tokens are the sequence's own."""

    sequence: Sequence
    agreed: int


class DraftModel:
    """One draft model: its KV, and a twin of each sequence that it follows."""

    def __init__(self, backend: Backend, clock: Callable[[], float] = time.monotonic) -> None:
        self.backend = backend
        self.clock = clock
        self.pool = BlockPool(backend.kv.blocks, backend.kv.block_size)
        self.twins: dict[str, Twin] = {}  # by sequence id, longest unused first
        self.seconds = 0.0  # a token of all sequences together, smoothed; 0: not measured

    def drafts(self, sequences: Several[Sequence], most: int) -> dict[str, Draft]:
        """Up to `most` tokens for each sequence that the model has caught up with, by its id."""
        began, rounds = self.clock(), 0
        found: dict[str, list[int]] = {}
        running = [self.follow(sequence) for sequence in sequences]
        while running and rounds < most:
            spans = self.spans([twin for twin in running if twin.limit > len(twin.tokens) + 1])
            if not spans:
                break
            rounds += 1
            chosen = iter(self.backend.run(plan_batch(spans, self.pool.block_size)).tokens.tolist())
            running = []
            for span in spans:
                twin, samples = span.sequence, span.samples
                twin.computed += span.count
                self.publish(twin)
                if samples and self.append(twin, next(chosen)):
                    found.setdefault(twin.id, []).append(twin.tokens[-1])
                    running.append(twin)
        if rounds:
            taken = (self.clock() - began) / rounds
            self.seconds += (NEWEST if self.seconds else 1.0) * (taken - self.seconds)
        return {
            id: Draft("model", tuple(tokens), (1.0,) * len(tokens)) for id, tokens in found.items()
        }

    def follow(self, sequence: Sequence) -> Sequence:
        """The twin of a sequence, with its newest tokens and without what was drafted in vain."""
        known = self.twins.pop(sequence.id, None)
        if known is None:
            asked = replace(sequence.sampling, logprobs=None, prompt_logprobs=None)
            twin = replace(sequence, tokens=list(sequence.tokens), sampling=asked, reader=None)
            twin.table, twin.adapter, twin.prompt_logprobs = BlockTable(), None, []
            twin.computed = self.pool.share(twin.table, twin.tokens, twin.salt)
            known = Twin(twin, len(twin.tokens))
        twin, at = known.sequence, known.agreed
        while at < twin.computed and at < len(sequence.tokens):
            if twin.tokens[at] != sequence.tokens[at]:
                break
            at += 1
        twin.computed = min(twin.computed, at, len(sequence.tokens) - 1)
        twin.tokens[known.agreed :] = sequence.tokens[known.agreed :]
        known.agreed = len(sequence.tokens)
        twin.counts = None if sequence.counts is None else sequence.counts.after(())
        twin.matcher = None if sequence.matcher is None else sequence.matcher.fork()
        self.twins[sequence.id] = known
        return twin

    def spans(self, twins: list[Sequence]) -> list[Span]:
        """The next step's spans, of those for which there is memory."""
        found, budget = [], CATCH_UP
        for twin in twins:
            count = min(twin.pending, max(budget, 1))
            if self.make_room(twin, twin.computed + count, twins):
                found.append(Span.of(twin, count))
                budget -= count
        return found

    def make_room(self, twin: Sequence, tokens: int, running: list[Sequence]) -> bool:
        """Take blocks, from those that were not drafted for the longest if need be."""
        while not self.pool.grow(twin.table, tokens):
            idle = next((one for one in self.twins.values() if one.sequence not in running), None)
            if idle is None:
                return False
            self.forget(idle.sequence)
        return True

    def publish(self, twin: Sequence) -> None:
        """Let other sequences share what is computed and no guess."""
        computed = min(twin.computed, self.twins[twin.id].agreed)
        self.pool.publish(twin.table, twin.tokens, computed, twin.salt)

    def append(self, twin: Sequence, token: int) -> bool:
        """Add a drafted token; False where nothing can follow it, so that it serves nobody."""
        twin.tokens.append(token)
        if twin.counts is not None:
            twin.counts.add(token)
        if twin.matcher is not None and (not twin.matcher.consume(token) or twin.matcher.stopped):
            return False
        return token not in twin.end_tokens

    def forget(self, sequence: Sequence) -> None:
        """Free the memory of a sequence's twin, if it has one."""
        twin = self.twins.pop(sequence.id, None)
        if twin is not None:
            self.pool.release(twin.sequence.table)

    def close(self) -> None:
        """Release the backend."""
        self.backend.close()


def load_draft_model(
    path: Path, target: Checkpoint, kv: KVLayout, backend: str, threads: int
) -> DraftModel:
    """Load the draft model at `path` for the model `target`, with KV of its own.

    Raises WeightsError, OSError, and ValueError where its vocabulary is another.
    """
    checkpoint = load_checkpoint(path, kv.blocks * kv.block_size)
    own, wanted = (one.vocabulary.encoder.get_vocab() for one in (checkpoint, target))
    sizes = checkpoint.architecture.vocabulary, target.architecture.vocabulary
    if own != wanted or sizes[0] != sizes[1]:
        differing = len(own.items() ^ wanted.items())
        raise ValueError(
            f"draft: {path.name} has another vocabulary than the model ({differing} entries "
            f"differ; {sizes[0]} against {sizes[1]} logits); a draft model needs the same one"
        )
    program = decoder_program(checkpoint.architecture)
    return DraftModel(choose(backend)(program, checkpoint.weights, kv, threads))
