"""A step that runs: what it computes, for whom, and the backend's promise of what it chooses."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Several
from dataclasses import dataclass

from .backends.base import Backend, Batch, Pending, Sampled, SamplingRows
from .plan import plan_rows, probes, sampling_rows
from .scheduler import Span
from .sequence import Sequence


@dataclass(slots=True)
class Flight:
    """A launched step. `exposed`: seconds that the backend waited for it to be planned."""

    spans: Several[Span]
    pending: Pending
    exposed: float = 0.0

    @property
    def rows(self) -> int:
        """Rows of the step."""
        return sum(span.rows for span in self.spans)

    @property
    def decoding(self) -> int:
        """Sequences that decode."""
        return sum(span.decodes for span in self.spans)

    @property
    def prefilled(self) -> int:
        """Prompt tokens."""
        return sum(span.count for span in self.spans if not span.decodes)

    @property
    def wanted(self) -> bool:
        """Whether anybody waits for what it computes."""
        return not all(span.sequence.over for span in self.spans)

    @property
    def plain(self) -> bool:
        """Whether it gives each of its sequences one token, neither less nor perhaps more."""
        return all(span.decodes and not span.drafts for span in self.spans)

    def samples(self) -> Mapping[Sequence, int]:
        """Where the tokens that are coming are among the step's samples; there are no drafts."""
        found, place = {}, 0
        for span in self.spans:
            place += len(span.scored)
            if span.samples:
                found[span.sequence] = place
            place += span.chosen
        return found

    def choose(self) -> None:
        """Say how it chooses; all tokens before those are known."""
        try:
            self.pending.choose(sampling_rows(probes(self.spans)))
        except Exception as error:
            self.pending = Failed(error)

    def begin(self) -> None:
        """Its sequences are as they will be once it is over, as far as that is certain."""
        for span in self.spans:
            span.sequence.computed = span.end
            span.sequence.coming += span.samples

    def undo(self) -> None:
        """Its sequences are as they were before it."""
        for span in self.spans:
            span.sequence.coming -= span.samples
            if span.table is span.sequence.table:
                span.sequence.computed = span.begin


def launched(
    backend: Backend,
    spans: Several[Span],
    batch: Batch | None = None,
    after: Pending | None = None,
) -> Flight:
    """Let the backend begin a step; it is yet to be told how it chooses.

    `batch` is its plan, made before the tokens of the step `after` which it comes were known; None:
    all tokens are.
    """
    pending: Pending
    try:
        whole = plan_rows(spans, backend.kv.block_size) if batch is None else batch
        pending = backend.launch(whole, after)
    except Exception as error:
        pending = Failed(error)
    flight = Flight(spans, pending)
    flight.begin()
    return flight


@dataclass(frozen=True, slots=True)
class Failed:
    """A step that could not even begin."""

    error: Exception

    def choose(self, rows: SamplingRows) -> None:
        """Nothing is chosen."""

    def wait(self) -> Sampled:
        """Raises what was wrong."""
        raise self.error
