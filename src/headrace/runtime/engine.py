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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType

from .adapters import Adapters
from .admission import MAX_RANKED, admit, encode
from .backends.base import Backend, Filling, KVLayout, KVType, Offloads, Sleeps
from .backends.choice import choose, choose_for_ranks
from .grammar import Grammars
from .hostcache import HostBlocks
from .kvcache import BlockPool
from .layout import Layout
from .loop import Loop
from .models.architecture import Architecture
from .models.assembly import decoder_program
from .models.checkpoint import Checkpoint, load_checkpoint
from .models.program import Program
from .options import DEFAULT_OPTIONS, EngineOptions
from .pace import Pace
from .placement import layout
from .postprocess import Taken, tell
from .ranks.leader import Job, lead
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
from .scheduler import Scheduler
from .sequence import Sequence
from .speculation.model import DraftModel, load_draft_model
from .speculation.speculator import Speculator
from .weights.tensor import Tensor

__all__ = ["Completion", "Engine", "EngineOptions"]

log = logging.getLogger(__name__)


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
        self.asked = options.backend
        self.limits = options.limits
        self.clock = clock
        self.pool = BlockPool(
            backend.kv.blocks,
            backend.kv.block_size,
            share_prefixes=options.share_prefixes,
            host=host_blocks(backend),
        )
        pace = Pace()
        self.scheduler = Scheduler(self.pool, self.limits, pace)
        self.loop = Loop(
            backend,
            self.scheduler,
            Speculator(pace, draft) if options.speculation else None,
            checkpoint.vocabulary,
            overlap=options.overlap,
            clock=clock,
        )
        size = checkpoint.architecture.vocabulary
        self.grammars = Grammars(checkpoint.vocabulary, size, options.threads)
        self.adapters = Adapters.of(checkpoint, backend)
        self.sequences: dict[str, Sequence] = {}
        self.generated_tokens = self.cancelled = 0
        self.asleep = False

    @classmethod
    def load(cls, path: Path, options: EngineOptions = DEFAULT_OPTIONS) -> Engine:
        """Load a GGUF file or a Hugging Face directory.

        Raises WeightsError (damaged or unsupported model), OSError, ValueError (options; a draft
        model of another vocabulary).
        """
        load = loader(path, options)
        quantization, threads = options.quantization, options.threads
        checkpoint = load_checkpoint(path, options.planned_tokens, quantization, threads)
        blocks = -(-options.planned_tokens // options.block_size)
        dtype: KVType = "f16" if options.kv_dtype == "auto" else options.kv_dtype
        kv = KVLayout(blocks, options.block_size, dtype)
        draft = None
        if options.draft is not None and options.speculation:  # first: the model takes what is left
            draft = load_draft_model(options.draft, checkpoint, kv, options.backend, threads)
        program = decoder_program(checkpoint.architecture)
        kept = options.kv_offload if options.tensor_parallel == 1 else 0
        kv = replace(kv, filling=filling(options, checkpoint.architecture), host_bytes=kept)
        backend = load(program, checkpoint.weights, kv)
        engine = cls(checkpoint, backend, options, draft=draft)
        if options.kv_offload and engine.pool.host is None:
            engine.close()
            raise ValueError("kv_offload: expected a model on one GPU (backend cuda)")
        return engine

    @property
    def backend(self) -> Backend:
        """What runs its steps."""
        return self.loop.backend

    @property
    def speculator(self) -> Speculator | None:
        """What makes drafts, where any are made."""
        return self.loop.speculator

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
        if self.asleep:
            raise RequestRefused("busy", "the model sleeps")
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

    def step(self, listen: Callable[[], None] = lambda: None) -> list[Output]:
        """See a step's end, and begin the next: news of every sequence that got a token or ended.

        The next step runs while this returns. `listen` is called just before what it computes is
        settled: there requests may be submitted and cancelled that came in the meantime.
        """
        late = self.scheduler.late(self.clock())
        outputs = [Output(one.id, "", finish=self.end(one, "late")) for one in late]
        taken = self.loop.turn(listen)
        return outputs + [self.tell(one) for one in taken if self.knows(one.sequence)]

    def knows(self, sequence: Sequence) -> bool:
        """Whether anybody waits for a sequence."""
        return self.sequences.get(sequence.id) is sequence

    def tell(self, taken: Taken) -> Output:
        """The output that says the news of a sequence; it is forgotten where it is over."""
        sequence = taken.sequence
        news = tell(taken, self.checkpoint.vocabulary)
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
        host, pace = self.pool.host, self.scheduler.pace
        return Counters(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            places=self.limits.sequences,
            queued=self.scheduler.queued(),
            chunk_tokens=pace.chunk(self.limits.step, self.limits.batch_tokens),
            prefill_token_seconds=pace.per_prefill_token or 0.0,
            step_seconds=pace.decode or 0.0,
            turn_seconds=pace.turn or 0.0,
            kv_block_tokens=self.pool.block_size,
            kv_blocks_used=self.pool.used,
            kv_blocks_total=self.pool.blocks,
            kv_evictions=self.pool.evictions,
            steps=self.loop.steps,
            prompt_tokens=self.loop.prompt_tokens,
            cached_tokens=self.loop.cached_tokens,
            generated_tokens=self.generated_tokens,
            cancelled=self.cancelled,
            preempted=self.scheduler.preempted,
            kv_offloaded=0 if host is None else host.offloaded,
            kv_fetched=0 if host is None else host.fetched,
            kv_host_used=0 if host is None else host.used,
            kv_host_total=0 if host is None else host.blocks,
            drafted=self.speculator.drafted if self.speculator else 0,
            accepted=self.speculator.accepted if self.speculator else 0,
            adapters=len(self.adapters.named),
            adapter_bytes=self.adapters.bytes,
        )

    def sleep(self) -> None:
        """Leave the device to others: the weights stay in host memory, prefixes are forgotten.

        Raises ValueError where requests run, or the model is in host memory anyway; MemoryError.
        """
        if not self.idle:
            raise ValueError("requests of this model run")
        resting = self.resting()
        self.loop.rest()
        try:
            for backend, pool in resting:
                pool.empty()
                backend.sleep()
        except MemoryError:
            for backend, _ in resting:
                backend.wake()
            raise
        self.asleep = True

    def wake(self) -> None:
        """Take requests again. Raises MemoryError where the device is full: it sleeps on."""
        if self.asleep:
            for backend, _ in self.resting():
                backend.wake()
        self.asleep = False

    def resting(self) -> list[tuple[Sleeps, BlockPool]]:
        """What can sleep of model and draft model. Raises ValueError where one cannot."""
        draft = None if self.speculator is None else self.speculator.model
        found: list[tuple[Sleeps, BlockPool]] = []
        for part in (self.loop, draft):
            if part is not None and not isinstance(part.backend, Sleeps):
                raise ValueError("only a model on one GPU can sleep; this one is in host memory")
            if part is not None and isinstance(part.backend, Sleeps):
                found.append((part.backend, part.pool))
        return found

    def close(self) -> None:
        """Release the backend, and that of a draft model."""
        self.loop.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def host_blocks(backend: Backend) -> HostBlocks | None:
    """The KV blocks that a backend keeps in host memory as well, where it does."""
    if isinstance(backend, Offloads) and backend.host_blocks:
        return HostBlocks(backend.host_blocks, backend.copy_blocks)
    return None


def filling(options: EngineOptions, model: Architecture) -> Filling | None:
    """What a KV cache that takes what is free leaves room for; None where its size is given."""
    if options.kv_tokens is not None:
        return None
    limits, most = options.limits, options.memory
    most = None if most is None else most // options.tensor_parallel
    return Filling(limits.batch_tokens, limits.sequences, model.context, MAX_RANKED, most)


def loader(
    path: Path, options: EngineOptions
) -> Callable[[Program, Mapping[str, Tensor], KVLayout], Backend]:
    """What makes a backend of a program and its weights: here, or in the processes of several
    ranks. Raises ValueError where there is no such backend, or not enough devices."""
    size, threads = options.tensor_parallel, options.threads
    if size == 1:
        return partial(choose(options.backend), threads=threads)
    name = choose_for_ranks(options.backend, size)

    def load(program: Program, weights: Mapping[str, Tensor], kv: KVLayout) -> Backend:
        served, quantization = options.planned_tokens, options.quantization
        return lead(Job(path, name, size, kv, served, threads, quantization), program, weights)

    return load
