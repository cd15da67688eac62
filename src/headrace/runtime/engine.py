"""The engine's public face: load a model, generate, stream.

    from headrace.runtime.engine import Engine

    with Engine.load(path) as engine:
        for output in engine.stream("Once upon a time", SamplingParameters(max_tokens=20)):
            print(output.text, end="")

An engine is used from one thread; `runtime.worker` runs one in a process of its own.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal

from .adapters import Adapters
from .admission import admit, encode
from .backends.base import Backend, KVLayout, KVType, Sampled
from .backends.choice import AUTO, choose
from .flight import Flight, launched
from .grammar import Grammars
from .kvcache import BlockPool
from .layout import Layout, layout
from .models.assembly import decoder_program
from .models.checkpoint import Checkpoint, load_checkpoint
from .models.rounding import Quantization
from .pace import Pace
from .plan import by_adapter
from .postprocess import Taken, score, take, tell
from .request import (
    DEFAULT_SAMPLING,
    Counters,
    Finish,
    FinishReason,
    Grammar,
    Output,
    Prompt,
    Request,
    RequestRefused,
    SamplingParameters,
    Timings,
    ToolCall,
    Tools,
)
from .scheduler import DEFAULT_LIMITS, Limits, Scheduler, Span
from .sequence import Sequence
from .speculation.model import DraftModel, load_draft_model
from .speculation.speculator import Speculator

log = logging.getLogger(__name__)


KVChoice = Literal["auto", "f16", "int8", "fp8"]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine runs. `threads` 0: as many as this process may use."""

    backend: str = AUTO
    threads: int = 0
    kv_tokens: int = 32_768
    block_size: int = 32
    share_prefixes: bool = True
    speculation: bool = True
    overlap: bool = True  # host and backend work at the same time; off: to see what it is worth
    limits: Limits = DEFAULT_LIMITS
    quantization: Quantization | None = None  # of float weights, when they are loaded
    kv_dtype: KVChoice = "auto"  # of the KV cache; auto: f16
    draft: Path | None = None  # a smaller model of the same vocabulary, for speculation


DEFAULT_OPTIONS = EngineOptions()


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole generation."""

    text: str
    tokens: tuple[int, ...]
    finish: Finish
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()


class Engine:
    """One model, its KV cache and its scheduler. `step` does the work; all else asks or tells."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        backend: Backend,
        options: EngineOptions,
        clock: Callable[[], float] = time.monotonic,
        draft: DraftModel | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.backend = backend
        self.asked = options.backend
        self.limits = options.limits
        self.clock = clock
        self.pool = BlockPool(
            backend.kv.blocks, backend.kv.block_size, share_prefixes=options.share_prefixes
        )
        self.pace = Pace()
        self.scheduler = Scheduler(self.pool, self.limits, self.pace)
        self.speculator = Speculator(self.pace, draft) if options.speculation else None
        size = checkpoint.architecture.vocabulary
        self.grammars = Grammars(checkpoint.vocabulary, size, options.threads)
        self.adapters = Adapters.of(checkpoint, backend)
        self.sequences: dict[str, Sequence] = {}
        self.overlap = options.overlap
        self.flight: Flight | None = None  # the step that runs between two calls of `step`
        self.steps = self.prompt_tokens = self.cached_tokens = 0
        self.generated_tokens = self.cancelled = 0

    @classmethod
    def load(cls, path: Path, options: EngineOptions = DEFAULT_OPTIONS) -> Engine:
        """Load a GGUF file or a Hugging Face directory.

        Raises WeightsError (damaged or unsupported model), OSError, ValueError (options; a draft
        model of another vocabulary).
        """
        load = choose(options.backend)
        quantization, threads = options.quantization, options.threads
        checkpoint = load_checkpoint(path, options.kv_tokens, quantization, threads)
        blocks = -(-options.kv_tokens // options.block_size)
        dtype: KVType = "f16" if options.kv_dtype == "auto" else options.kv_dtype
        kv = KVLayout(blocks, options.block_size, dtype)
        program = decoder_program(checkpoint.architecture)
        backend = load(program, checkpoint.weights, kv, options.threads)
        draft = None
        if options.draft is not None and options.speculation:
            draft = load_draft_model(options.draft, checkpoint, kv, options.backend, threads)
        return cls(checkpoint, backend, options, draft=draft)

    @property
    def context(self) -> int:
        """Longest sequence a request may grow to, in tokens."""
        return min(self.checkpoint.architecture.context, self.pool.blocks * self.pool.block_size)

    @property
    def layout(self) -> Layout:
        """Which backend, formats and kernels the model got, and why."""
        program = decoder_program(self.checkpoint.architecture)
        return layout(self.asked, self.backend, program, self.checkpoint.weights)

    def generate(
        self,
        prompt: Prompt,
        sampling: SamplingParameters = DEFAULT_SAMPLING,
        grammar: Grammar | None = None,
        tools: Tools | None = None,
    ) -> Completion:
        """One generation, whole. Raises RequestRefused."""
        outputs = list(self.stream(prompt, sampling, grammar, tools))
        finish = outputs[-1].finish
        if finish is None:
            raise RuntimeError("the stream ended without a reason")
        tokens = tuple(token for output in outputs for token in output.tokens)
        return Completion(
            "".join(output.text for output in outputs),
            tokens,
            finish,
            "".join(output.reasoning for output in outputs),
            tuple(call for output in outputs for call in output.calls),
        )

    def stream(
        self,
        prompt: Prompt,
        sampling: SamplingParameters = DEFAULT_SAMPLING,
        grammar: Grammar | None = None,
        tools: Tools | None = None,
    ) -> Iterator[Output]:
        """One generation as it comes. Closing the iterator cancels it. Raises RequestRefused."""
        request = Request(secrets.token_hex(8), prompt, sampling, grammar=grammar, tools=tools)
        self.submit(request)
        try:
            while request.id in self.sequences:
                yield from (output for output in self.step() if output.id == request.id)
        finally:
            self.cancel(request.id)

    def load_adapter(self, name: str, path: Path) -> None:
        """Read a LoRA adapter (a PEFT directory, a GGUF file) that requests may name from now on.

        The name's adapter of before, if any, is replaced: its running requests end with it.
        Raises WeightsError where it is damaged or not for this model, ValueError where there are
        too many, OSError, MemoryError.
        """
        self.adapters.put(name, self.adapters.read(path))

    def drop_adapter(self, name: str) -> bool:
        """Take no new request for an adapter; those that wait or run end as they began.

        False where there is none of the name.
        """
        return self.adapters.drop(name)

    def submit(self, request: Request) -> None:
        """Queue a request; `step` will run it. Raises RequestRefused where it never can."""
        if len(self.scheduler.waiting) >= self.limits.waiting:
            raise RequestRefused("busy", "the engine's queue is full")
        if request.id in self.sequences:
            raise RequestRefused("invalid_value", "this id is running already", field="id")
        adapter = self.adapters.use(request.adapter)
        now = self.clock()
        sequence = admit(request, adapter, self.checkpoint, self.grammars, self.context, now)
        if adapter is not None:
            adapter.users += 1
        self.sequences[request.id] = sequence
        self.scheduler.add(sequence)

    def count(self, request: Request) -> int:
        """How many tokens the prompt of a request has. Raises RequestRefused."""
        return len(
            encode(self.checkpoint, request.prompt, request.tools, request.variables, self.context)
        )

    def cancel(self, id: str) -> bool:
        """Drop a request and free its KV; False where it is not there (any more)."""
        sequence = self.sequences.get(id)
        if sequence is None:
            return False
        self.forget(sequence)
        self.cancelled += 1
        return True

    def forget(self, sequence: Sequence) -> None:
        """Drop a sequence wherever it is known, and free its KV; a step may still run with it."""
        sequence.over = True
        del self.sequences[sequence.id]
        self.scheduler.remove(sequence)
        self.adapters.release(sequence.adapter)
        if self.speculator is not None:
            self.speculator.forget(sequence)

    @property
    def idle(self) -> bool:
        """Whether `step` would have nothing to do."""
        return not self.sequences

    def step(self) -> list[Output]:
        """See a step's end, and begin the next: news of every sequence that got a token or ended.

        The next step depends on tokens alone: it begins before anybody has read them, and runs
        while their text is told, sent, and answered with new requests. Where steps are short it is
        planned before the tokens are there (`ahead`).
        """
        outputs = self.end_late()
        flight, self.flight = self.flight or self.launch(), None
        if flight is None:
            return outputs
        following = self.launch(flight) if self.ahead(flight) else None
        try:
            sampled = flight.pending.wait()
        except Exception:
            log.exception("a step of %d sequences failed", len(flight.spans))
            return outputs + self.isolate(flight, following)
        taken = self.take(flight, sampled)
        if following is None and self.overlap:
            following = self.launch()
        elif following is not None:
            following.choose()
            self.foresee(following)
        outputs += [self.tell(one, sampled) for one in taken]
        self.flight = following if following is not None and following.wanted else None
        return outputs

    def end_late(self) -> list[Output]:
        """End those that can no longer have their first token in time."""
        late = self.scheduler.late(self.clock())
        return [Output(one.id, "", finish=self.end(one, "late")) for one in late]

    def ahead(self, flight: Flight) -> bool:
        """Whether the step after one that runs is planned before the tokens of that one are known.

        That is for steps so short that planning takes a good part of them: who arrives now waits
        for two of them. A token that ends its sequence makes its row of the next step useless, and
        drafts need the newest tokens.
        """
        decode = self.pace.decode
        short = decode is not None and decode < self.limits.ahead
        return (
            self.overlap
            and short
            and flight.plain
            and (self.speculator is None or self.speculator.calm)
        )

    def launch(self, before: Flight | None = None) -> Flight | None:
        """Plan the next step and begin it; None where there is nothing to run.

        `before` is the step that runs, where it does: all its tokens are coming.
        """
        now = self.clock()
        spans = self.scheduler.schedule(now)
        if not spans:
            return None
        for span in spans:
            if span.sequence.started is None:
                span.sequence.started = now
                self.prompt_tokens += span.sequence.prompt_tokens
                self.cached_tokens += span.sequence.cached
        spans = by_adapter(self.speculate(spans) if before is None else spans)
        flight = launched(self.backend, spans, before)
        if before is None:
            flight.exposed = self.clock() - now
        return flight

    def isolate(self, flight: Flight, following: Flight | None) -> list[Output]:
        """Run the sequences of a failed step one by one, so that only the one at fault ends.

        What the step had written already is written again, into the same slots. A step that was
        planned after it never was.
        """
        if following is not None:
            following.undo()
        flight.undo()
        outputs = []
        for span in [span for span in flight.spans if span.holds]:
            alone = launched(self.backend, [replace(span, drafts=())])
            try:
                sampled = alone.pending.wait()
            except Exception:
                log.exception("a step of request %s failed", span.sequence.id)
                ended = self.end(span.sequence, "error")
                outputs.append(Output(span.sequence.id, "", finish=ended))
            else:
                outputs += [self.tell(one, sampled) for one in self.take(alone, sampled)]
        return outputs

    def speculate(self, spans: list[Span]) -> list[Span]:
        """Add drafts that pay, where all sequences decode and nobody waits for the step's room."""
        if self.speculator is None or self.scheduler.waiting:
            return spans
        if not all(span.decodes for span in spans):
            return spans
        return self.speculator.extended(spans, self.limits.batch_tokens, self.pool)

    def foresee(self, flight: Flight) -> None:
        """See whether drafts would have paid in a step that began without."""
        if self.speculator is not None and flight.plain and not self.scheduler.waiting:
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
            first = score(span, sampled, first, self.checkpoint.vocabulary)
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
        self.measured(flight, sampled.seconds, sum(len(one.tokens) for one in found))
        return found

    def measured(self, flight: Flight, seconds: float, tokens: int) -> None:
        """Note what a step took."""
        self.steps += 1
        seconds += flight.exposed
        self.pace.measured(flight.decoding, flight.prefilled, seconds)
        if self.speculator is not None and not flight.prefilled:
            self.speculator.measured(len(flight.spans), flight.rows, tokens, seconds)

    def tell(self, taken: Taken, sampled: Sampled) -> Output:
        """The output that says the news of a sequence; it is forgotten where it is over."""
        sequence = taken.sequence
        news = tell(taken, sampled, self.checkpoint.vocabulary)
        self.generated_tokens += len(news.tokens)
        return Output(
            id=sequence.id,
            text=news.said.text,
            reasoning=news.said.reasoning,
            calls=news.said.calls,
            tokens=news.tokens,
            finish=None if news.reason is None else self.end(sequence, news.reason),
            logprobs=news.logprobs,
            prompt_logprobs=news.prompt_logprobs,
        )

    def end(self, sequence: Sequence, reason: FinishReason) -> Finish:
        """Forget a sequence and say how it went."""
        now = self.clock()
        started = now if sequence.started is None else sequence.started
        first = now if sequence.first_token is None else sequence.first_token
        timings = Timings(started - sequence.arrived, first - started, now - first)
        self.forget(sequence)
        return Finish(reason, sequence.prompt_tokens, sequence.generated, sequence.cached, timings)

    def counters(self) -> Counters:
        """The engine's state in numbers."""
        return Counters(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            kv_blocks_used=self.pool.used,
            kv_blocks_total=self.pool.blocks,
            kv_evictions=self.pool.evictions,
            steps=self.steps,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            generated_tokens=self.generated_tokens,
            cancelled=self.cancelled,
            preempted=self.scheduler.preempted,
            drafted=self.speculator.drafted if self.speculator else 0,
            accepted=self.speculator.accepted if self.speculator else 0,
            adapters=len(self.adapters.named),
            adapter_bytes=self.adapters.bytes,
        )

    def close(self) -> None:
        """Release the backend, and that of a draft model."""
        self.backend.close()
        if self.speculator is not None:
            self.speculator.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
