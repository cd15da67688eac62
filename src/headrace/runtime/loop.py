"""The loop of steps: while one runs on the backend, the host plans the next.

A turn sees the end of a step and begins the next one, which depends on the tokens alone: nobody has
read them yet, and whoever called reads and tells them while it runs. What can be planned before the
tokens are there is planned while their step runs; a plan that the tokens, an arrival or a cancelled
request contradict is made anew. Where a backend takes steps in a queue, the next one is even begun
before the tokens are known, and rows of sequences that turn out to be over are dropped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from .backends.base import Backend, Batch, GroupLost, Pending, Sampled
from .flight import Flight, launched
from .kvcache import BlockPool
from .options import Limits
from .pace import Pace
from .plan import by_adapter, plan_rows
from .postprocess import Taken, score, take
from .scheduler import Scheduler, Span
from .speculation.speculator import Speculator
from .text.tokenizer import Vocabulary

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """A step, planned while the one before it runs; good as long as nobody comes or goes."""

    spans: list[Span]
    batch: Batch
    after: Pending  # the step that runs
    changes: int  # that the scheduler had seen


class Loop:
    """The steps of one model. `overlap` off: host and backend take turns."""

    def __init__(
        self,
        backend: Backend,
        scheduler: Scheduler,
        speculator: Speculator | None,
        vocabulary: Vocabulary,
        *,
        overlap: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.backend = backend
        self.scheduler = scheduler
        self.speculator = speculator
        self.vocabulary = vocabulary
        self.overlap = overlap
        self.clock = clock
        self.flight: Flight | None = None  # the step that runs between two turns
        self.steps = self.prompt_tokens = self.cached_tokens = 0

    @property
    def pool(self) -> BlockPool:
        """The KV blocks."""
        return self.scheduler.pool

    @property
    def pace(self) -> Pace:
        """How fast steps are."""
        return self.scheduler.pace

    @property
    def limits(self) -> Limits:
        """Bounds of a step."""
        return self.scheduler.limits

    def turn(self, listen: Callable[[], None]) -> list[Taken]:
        """See a step's end, and begin the next: the tokens that came.

        `listen` is called before the next step is settled, to take in what came meanwhile; it may
        add and remove sequences. Raises GroupLost: no step can be run any more.
        """
        flight, self.flight = self.flight, None
        if flight is None or not flight.wanted:
            flight = self.launch()
        if flight is None:
            return []
        self.foresee(flight)
        plan = self.prepare(flight)
        following = self.launch(plan, ahead=True) if plan and self.ahead(flight) else None
        try:
            sampled = flight.pending.wait()
        except GroupLost:
            raise
        except Exception:
            log.exception("a step of %d sequences failed", len(flight.spans))
            return self.isolate(flight, following)
        taken = self.take(flight, sampled)
        if following is not None:
            following.choose()
        listen()
        if following is None and self.overlap:
            following = self.launch(plan)
        self.flight = following
        return taken

    def prepare(self, flight: Flight) -> Plan | None:
        """Plan the step after one that runs, as far as it is certain what that one gives."""
        if not self.overlap or any(span.drafts for span in flight.spans):
            return None
        if self.pool.available <= len(self.scheduler.running):
            return None  # for a plan alone nobody has to give blocks away
        spans = by_adapter(self.scheduler.schedule(self.clock()))
        if not spans:
            return None
        try:
            batch = plan_rows(spans, self.pool.block_size, flight.samples())
        except Exception:  # it fails again where it is begun, and is told apart there
            return None
        return Plan(spans, batch, flight.pending, self.scheduler.changes)

    def ahead(self, flight: Flight) -> bool:
        """Whether the step after one that runs is begun before the tokens of that one are known.

        Who arrives now waits for two steps then, and drafts need the newest tokens.
        """
        calm = self.speculator is None or self.speculator.calm
        return self.backend.queues and flight.plain and calm

    def launch(self, plan: Plan | None = None, *, ahead: bool = False) -> Flight | None:
        """Begin the next step, as it was planned if that is still good; None: nothing to run.

        `ahead`: the step before still runs, and its tokens are to come.
        """
        now = self.clock()
        if plan is not None and plan.changes != self.scheduler.changes:
            plan = None
        spans = by_adapter(self.scheduler.schedule(now)) if plan is None else plan.spans
        if not spans:
            return None
        for span in spans:
            if span.sequence.started is None:
                span.sequence.started = now
                self.prompt_tokens += span.sequence.prompt_tokens
                self.cached_tokens += span.sequence.cached
        if not ahead and (drafted := self.speculate(spans)) is not spans:
            plan, spans = None, drafted
        if (ready := self.bring(spans)) is not spans:
            plan, spans = None, ready
        if not spans:
            return None
        if plan is None:
            flight = launched(self.backend, spans)
        else:
            flight = launched(self.backend, spans, plan.batch, plan.after)
        if not ahead:
            flight.choose()
            flight.exposed = self.clock() - now
        return flight

    def isolate(self, flight: Flight, following: Flight | None) -> list[Taken]:
        """Run the sequences of a failed step one by one, so that only the one at fault ends.

        What the step had written already is written again, into the same slots. A step that was
        begun after it never was.
        """
        if following is not None:
            following.undo()
        flight.undo()
        taken: list[Taken] = []
        for span in self.bring([span for span in flight.spans if span.holds]):
            alone = launched(self.backend, [replace(span, drafts=())])
            alone.choose()
            try:
                taken += self.take(alone, alone.pending.wait())
            except GroupLost:
                raise
            except Exception:
                log.exception("a step of request %s failed", span.sequence.id)
                taken.append(Taken(span.sequence, "error"))
        return taken

    def bring(self, spans: list[Span]) -> list[Span]:
        """Begin the copies between device and host, which the step of these spans may wait for.

        Those that can run: where copying fails, sequences that counted on it are computed again.
        """
        host = self.pool.host
        if host is None or not (host.moves or host.coming):
            return spans
        try:
            host.begin({block for span in spans for block in span.table.blocks})
        except Exception:
            log.exception("KV blocks could not be copied from or to host memory")
            self.scheduler.lose_arrivals()
            return [span for span in spans if span.holds]
        return spans

    def speculate(self, spans: list[Span]) -> list[Span]:
        """Add drafts that pay, where all sequences decode and nobody waits for the step's room."""
        if self.speculator is None or self.speculator.calm or self.scheduler.waiting:
            return spans
        if not all(span.decodes for span in spans):
            return spans
        return self.speculator.extended(spans, self.limits.batch_tokens, self.pool)

    def foresee(self, flight: Flight) -> None:
        """See whether drafts would have paid in a step that began without asking."""
        if self.speculator is None or not self.speculator.calm:
            return
        if flight.plain and not self.scheduler.waiting:
            running = [span.sequence for span in flight.spans if not span.sequence.over]
            self.speculator.drafts(running, self.limits.batch_tokens - len(running))

    def take(self, flight: Flight, sampled: Sampled) -> list[Taken]:
        """Note what a step computed; hand its tokens to the sequences that sampled."""
        found: list[Taken] = []
        row, now = 0, self.clock()
        for span in flight.spans:
            sequence, first = span.sequence, row
            row += len(span.scored) + span.chosen
            if sequence.over:
                continue
            first = score(span, sampled, first, self.vocabulary)
            if span.table is sequence.table:
                self.pool.publish(span.table, sequence.tokens, span.end, sequence.salt)
            if not span.samples:
                continue
            taken = take(span, sampled, first, now)
            if self.speculator is not None:
                self.speculator.judged(sequence, len(span.drafts), taken.tokens)
            if taken.reason is not None:
                sequence.over = True
                self.scheduler.remove(sequence)
            found.append(taken)
        ends = sum(taken.reason is not None for taken in found)
        if ends:
            self.pace.ends(now, ends, crowded=bool(self.scheduler.waiting))
        self.measured(flight, sampled.seconds, sum(len(one.tokens) for one in found))
        return found

    def measured(self, flight: Flight, seconds: float, tokens: int) -> None:
        """Note what a step took."""
        self.steps += 1
        seconds += flight.exposed
        self.pace.measured(flight.decoding, flight.prefilled, seconds)
        if self.speculator is not None and not flight.prefilled:
            self.speculator.measured(len(flight.spans), flight.rows, tokens, seconds)

    def rest(self) -> None:
        """See the end of what still runs, for nobody any more, and begin the copies that wait."""
        flight, self.flight = self.flight, None
        if flight is not None:
            try:
                flight.pending.wait()
            except GroupLost:
                raise
            except Exception as error:
                log.debug("a step that nobody waits for failed: %s", error)
        self.bring([])

    def close(self) -> None:
        """Release the backend, and that of a draft model."""
        self.backend.close()
        if self.speculator is not None:
            self.speculator.close()
