"""The engine's public face: load a model, generate, stream.

    from headrace.runtime.engine import Engine

    with Engine.load(path) as engine:
        for output in engine.stream("Once upon a time", SamplingParameters(max_tokens=20)):
            print(output.text, end="")

An engine is used from one thread; `runtime.worker` runs one in a process of its own.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import TracebackType

from .backends.base import Backend, KVLayout
from .backends.choice import AUTO, choose
from .kvcache import DIGEST_BYTES, BlockPool
from .models.assembly import decoder_program
from .models.checkpoint import Checkpoint, load_checkpoint
from .plan import plan_batch
from .request import (
    DEFAULT_SAMPLING,
    Counters,
    Finish,
    FinishReason,
    Output,
    Prompt,
    Request,
    RequestRefused,
    SamplingParameters,
    Timings,
)
from .scheduler import DEFAULT_LIMITS, Limits, Scheduler, Span
from .sequence import Sequence
from .text.detokenizer import Detokenizer, StopStrings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine runs. `threads` 0: as many as this process may use."""

    backend: str = AUTO
    threads: int = 0
    kv_tokens: int = 32_768
    block_size: int = 32
    share_prefixes: bool = True
    limits: Limits = DEFAULT_LIMITS


DEFAULT_OPTIONS = EngineOptions()


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole generation."""

    text: str
    tokens: tuple[int, ...]
    finish: Finish


def check(asked: SamplingParameters) -> None:
    """Raise RequestRefused on a sampling parameter that has no meaning."""
    bounds = {
        "max_tokens": (asked.max_tokens is None or asked.max_tokens >= 1, "at least 1"),
        "temperature": (0 <= asked.temperature < math.inf, "a number from 0"),
        "top_p": (0 < asked.top_p <= 1, "over 0 and at most 1"),
        "top_k": (0 <= asked.top_k < 2**31, "0 (all) or a count"),
        "stop": (all(asked.stop), "strings that are not empty"),
    }
    for field, (good, expected) in bounds.items():
        if not good:
            raise RequestRefused("invalid_value", f"{field} must be {expected}", field=field)


class Engine:
    """One model, its KV cache and its scheduler. `step` does the work; all else asks or tells."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        backend: Backend,
        options: EngineOptions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.checkpoint = checkpoint
        self.backend = backend
        self.limits = options.limits
        self.clock = clock
        self.pool = BlockPool(
            backend.kv.blocks, backend.kv.block_size, share_prefixes=options.share_prefixes
        )
        self.scheduler = Scheduler(self.pool, self.limits)
        self.sequences: dict[str, Sequence] = {}
        self.steps = self.prompt_tokens = self.cached_tokens = 0
        self.generated_tokens = self.cancelled = 0

    @classmethod
    def load(cls, path: Path, options: EngineOptions = DEFAULT_OPTIONS) -> Engine:
        """Load a GGUF file or a Hugging Face directory.

        Raises WeightsError (damaged or unsupported model), ValueError (options), OSError.
        """
        load = choose(options.backend)
        checkpoint = load_checkpoint(path, options.kv_tokens)
        kv = KVLayout(-(-options.kv_tokens // options.block_size), options.block_size)
        program = decoder_program(checkpoint.architecture)
        backend = load(program, checkpoint.weights, kv, options.threads)
        return cls(checkpoint, backend, options)

    @property
    def context(self) -> int:
        """Longest sequence a request may grow to, in tokens."""
        return min(self.checkpoint.architecture.context, self.pool.blocks * self.pool.block_size)

    def generate(
        self, prompt: Prompt, sampling: SamplingParameters = DEFAULT_SAMPLING
    ) -> Completion:
        """One generation, whole. Raises RequestRefused."""
        outputs = list(self.stream(prompt, sampling))
        finish = outputs[-1].finish
        if finish is None:
            raise RuntimeError("the stream ended without a reason")
        tokens = tuple(token for output in outputs for token in output.tokens)
        return Completion("".join(output.text for output in outputs), tokens, finish)

    def stream(
        self, prompt: Prompt, sampling: SamplingParameters = DEFAULT_SAMPLING
    ) -> Iterator[Output]:
        """One generation as it comes. Closing the iterator cancels it. Raises RequestRefused."""
        request = Request(secrets.token_hex(8), prompt, sampling)
        self.submit(request)
        try:
            while request.id in self.sequences:
                yield from (output for output in self.step() if output.id == request.id)
        finally:
            self.cancel(request.id)

    def submit(self, request: Request) -> None:
        """Queue a request; `step` will run it. Raises RequestRefused where it never can."""
        if len(self.scheduler.waiting) >= self.limits.waiting:
            raise RequestRefused("busy", "the engine's queue is full")
        if request.id in self.sequences:
            raise RequestRefused("invalid_value", "this id is running already", field="id")
        asked = request.sampling
        check(asked)
        tokens = self.encode(request.prompt)
        if len(tokens) >= self.context:
            raise RequestRefused(
                "context_too_long",
                f"the prompt has {len(tokens)} tokens, the context holds {self.context} with "
                "at least one for the answer",
                limit=self.context,
                tokens=len(tokens),
            )
        limit = self.context
        if asked.max_tokens is not None:
            limit = min(limit, len(tokens) + asked.max_tokens)
        sequence = Sequence(
            id=request.id,
            tokens=tokens,
            prompt_tokens=len(tokens),
            limit=limit,
            sampling=asked,
            seed=secrets.randbits(64) if asked.seed is None else asked.seed,
            detokenizer=Detokenizer(self.checkpoint.vocabulary),
            stops=StopStrings(asked.stop),
            salt=blake2b(request.tenant.encode(), digest_size=DIGEST_BYTES).digest(),
            arrived=self.clock(),
        )
        self.sequences[request.id] = sequence
        self.scheduler.add(sequence)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt. Raises RequestRefused on none, or on ids not in the vocabulary."""
        vocabulary = self.checkpoint.vocabulary
        if isinstance(prompt, str):
            tokens = vocabulary.encode(prompt, add_bos=vocabulary.add_bos)
        elif prompt and isinstance(prompt[0], Mapping):
            text = self.checkpoint.template.render(prompt)  # type: ignore[arg-type]
            tokens = vocabulary.encode(text, add_bos=vocabulary.add_bos)
        else:
            tokens = list(prompt)  # type: ignore[arg-type]
        size = self.checkpoint.architecture.vocabulary
        if not tokens:
            raise RequestRefused("invalid_value", "the prompt has no tokens", field="prompt")
        if not all(isinstance(token, int) and 0 <= token < size for token in tokens):
            raise RequestRefused(
                "invalid_value", f"token ids must be integers from 0 to {size - 1}", field="prompt"
            )
        return tokens

    def cancel(self, id: str) -> bool:
        """Drop a request and free its KV; False where it is not there (any more)."""
        sequence = self.sequences.pop(id, None)
        if sequence is None:
            return False
        self.scheduler.remove(sequence)
        self.cancelled += 1
        return True

    @property
    def idle(self) -> bool:
        """Whether `step` would have nothing to do."""
        return not self.sequences

    def step(self) -> list[Output]:
        """Run one step: news of every sequence that got a token or ended."""
        spans = self.scheduler.schedule()
        if not spans:
            return []
        now = self.clock()
        for span in spans:
            if span.sequence.started is None:
                span.sequence.started = now
                self.prompt_tokens += span.sequence.prompt_tokens
                self.cached_tokens += span.sequence.cached
        batch = plan_batch(spans, self.pool.block_size)
        try:
            sampled = self.backend.run(batch)
        except Exception:
            # The step's requests fail; the engine and everybody else go on.
            log.exception("a step of %d sequences failed", len(spans))
            return [self.end(span.sequence, "", (), "error") for span in spans]
        self.steps += 1
        return self.collect(spans, sampled.tokens.tolist())

    def collect(self, spans: list[Span], tokens: list[int]) -> list[Output]:
        """Note what a step computed; hand its tokens to the sequences that sampled."""
        outputs = []
        chosen = iter(tokens)
        for span in spans:
            samples, sequence = span.samples, span.sequence
            sequence.computed += span.count
            self.pool.publish(sequence.table, sequence.tokens, sequence.computed, sequence.salt)
            if samples:
                outputs.append(self.append(sequence, next(chosen)))
        return outputs

    def append(self, sequence: Sequence, token: int) -> Output:
        """Give a sequence its next token; it may be its last."""
        sequence.tokens.append(token)
        self.generated_tokens += 1
        if sequence.first_token is None:
            sequence.first_token = self.clock()
        if token in self.checkpoint.vocabulary.end_ids and not sequence.sampling.ignore_eos:
            return self.end(sequence, self.rest(sequence), (token,), "stop")
        text, stopped = sequence.stops.feed(sequence.detokenizer.feed(token))
        if stopped:
            return self.end(sequence, text, (token,), "stop")
        if len(sequence.tokens) >= sequence.limit:
            return self.end(sequence, text + self.rest(sequence), (token,), "length")
        return Output(sequence.id, text, (token,))

    def rest(self, sequence: Sequence) -> str:
        """Text that was held back and may be shown now that nothing follows."""
        text, stopped = sequence.stops.feed(sequence.detokenizer.finish())
        return text if stopped else text + sequence.stops.finish()

    def end(
        self, sequence: Sequence, text: str, tokens: tuple[int, ...], reason: FinishReason
    ) -> Output:
        """Forget a sequence and say how it went."""
        now = self.clock()
        started = now if sequence.started is None else sequence.started
        first = now if sequence.first_token is None else sequence.first_token
        timings = Timings(started - sequence.arrived, first - started, now - first)
        del self.sequences[sequence.id]
        self.scheduler.remove(sequence)
        finish = Finish(
            reason, sequence.prompt_tokens, sequence.generated, sequence.cached, timings
        )
        return Output(sequence.id, text, tokens, finish)

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
        )

    def close(self) -> None:
        """Release the backend."""
        self.backend.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
