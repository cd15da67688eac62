"""The local engine as a provider: our own runtime, each model in a process of its own."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec import structs

from headrace.config.schema import LOCAL, OVER, Engine
from headrace.protocol.content import Thinking
from headrace.protocol.encoding import (
    ClassificationRequest,
    EmbeddingRequest,
    EncodingRequest,
    RankRequest,
)
from headrace.protocol.errors import (
    ContextTooLong,
    EngineLost,
    HeadraceError,
    InternalFault,
    InvalidField,
    ModelNotFound,
    Overloaded,
    TooLarge,
)
from headrace.protocol.generation import AnyRequest, Event, Finished, GenerationRequest, Message
from headrace.protocol.openai_content import write_parts, write_tool_call
from headrace.providers.local_choices import RETRY_AFTER, Choices, best, interleave, requests
from headrace.providers.local_constraints import (
    FORMAT,
    GUIDES,
    grammar,
    grammar_field,
    tools,
)
from headrace.providers.local_encoding import asked_of, encoded_of
from headrace.providers.local_memory import residency_of
from headrace.providers.local_template import VARIABLES, variables
from headrace.providers.translation import native
from headrace.runtime.memory import RESERVE, free_memory
from headrace.runtime.options import KV_TOKENS, EngineOptions, Limits
from headrace.runtime.process import (
    AdapterRefused,
    EngineDied,
    EngineFailed,
    EngineProcess,
    RestRefused,
)
from headrace.runtime.request import Objectives, Prompt, Request, RequestRefused, SamplingParameters
from headrace.runtime.spare import Spare

COMPLETIONS_MAX_TOKENS = 16  # OpenAI's default of the completions endpoint

# Fields that change nothing about the tokens.
HARMLESS = frozenset(
    {
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
        "prompt_cache_retention", "stream_options", "context_management", "cache_control",
        "inference_geo", "diagnostics", "verbosity", "include", "truncation",
        "previous_response_id", "instructions",
    }
)  # fmt: skip
# Fields that the engine does not have yet, and the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),  # of a chat
    "echo": (False,),
    "suffix": ("",),
    "modalities": (["text"],),
}


log = logging.getLogger(__name__)


class LocalProvider:
    """Serves models by their references, from files that are already here."""

    def __init__(
        self,
        models: Mapping[str, Path],
        settings: Engine,
        adapters: Mapping[str, Mapping[str, Path]] | None = None,
        draft: Path | None = None,
        hidden: Collection[str] = (),
    ) -> None:
        """`adapters` are those of each model to begin with, by their references; `draft` is a
        model that drafts tokens for all; `hidden` are variables of the environment that no engine
        gets."""
        self.name = LOCAL
        options = EngineOptions(
            backend=settings.backend,
            threads=settings.threads,
            kv_tokens=settings.kv_tokens if len(models) == 1 else settings.kv_tokens or KV_TOKENS,
            memory=settings.memory_bytes,
            kv_offload=settings.kv_offload_bytes,
            kv_dtype=settings.kv,
            quantization=settings.quantization,
            draft=draft,
            tensor_parallel=settings.tensor_parallel,
            limits=Limits(
                settings.max_batch_tokens,
                settings.max_sequences,
                settings.max_waiting,
                settings.max_step,
            ),
        )
        adapters = adapters or {}
        self.spare = Spare(self.swaps, hidden)
        self.engines = {
            source: EngineProcess(path, options, adapters.get(source), self.spare)
            for source, path in models.items()
        }
        self.residency = residency_of(self.engines, models, settings, options)

    def swaps(self) -> bool:
        """Whether some model waits for its turn, and there is memory for a process beside all."""
        states = [one.state for one in self.residency.models.values()]
        return "unloaded" in states and free_memory() > RESERVE

    def ready(self, model: str) -> bool:
        """Whether a call of the model has a chance: its engine takes requests, or can be loaded."""
        engine = self.engine_of(model)[0]
        resident = self.residency.models[self.source_of(model)]
        return engine.ready or (
            resident.state != "loaded" and resident.bytes <= self.residency.budget
        )

    def source_of(self, model: str) -> str:
        """The model reference in what a provider is asked for."""
        if model in self.engines:
            return model
        return next(one for one in self.engines if model.startswith(one + OVER))

    def engine_of(self, model: str) -> tuple[EngineProcess, str | None]:
        """The engine of a model reference, and the adapter that is asked for over it."""
        source = self.source_of(model)
        adapter = model.removeprefix(source).removeprefix(OVER)
        return self.engines[source], adapter or None

    async def start(self) -> None:
        """Load the models that fit together, the first first; the others when they are asked for.

        Raises EngineFailed where one cannot be loaded, TooLarge where one never fits.
        """
        chosen, left = [], self.residency.budget
        for source, resident in self.residency.models.items():
            if resident.bytes > self.residency.budget:
                raise TooLarge(source, resident.bytes, self.residency.budget)
            if resident.bytes <= left:
                chosen.append(source)
                left -= resident.bytes
        await asyncio.gather(*(self.residency.load(source) for source in chosen))

    async def close(self) -> None:
        """End all engines."""
        await self.residency.close()
        await self.spare.close()

    async def load_adapter(self, source: str, name: str, path: Path) -> None:
        """Let `name` be asked for over the model `source`. Raises InvalidField, EngineLost."""
        try:
            async with self.residency.held(source):
                await self.engines[source].load_adapter(name, path)
        except AdapterRefused as refused:
            raise InvalidField("adapter", str(refused)) from refused
        except EngineFailed as failed:
            raise unloadable() from failed
        except EngineDied as died:
            raise lost() from died

    async def sleep(self, source: str) -> None:
        """Let a model that no call uses leave its GPU, until it is asked for again.

        Raises InvalidField where it cannot, Overloaded where it is in use or the host has no
        room, EngineLost.
        """
        try:
            await self.residency.sleep(source)
        except RestRefused as refused:
            raise InvalidField("model", str(refused)) from refused
        except EngineDied as died:
            raise lost() from died

    async def drop_adapter(self, source: str, name: str) -> None:
        """Take no new request for an adapter; those that run end with it. Raises EngineLost."""
        try:
            if self.residency.models[source].state == "unloaded":
                self.engines[source].adapters.pop(name, None)
                return
            await self.engines[source].drop_adapter(name)
        except AdapterRefused:
            return  # it is gone already
        except EngineDied as died:
            raise lost() from died

    async def generate(self, request: GenerationRequest, model: str) -> AsyncGenerator[Event, None]:
        """Run a request on the engine of `model`: a reference, or one with an adapter over it."""
        adapter = self.engine_of(model)[1]
        request = native(request, "openai")
        asked = Request(
            secrets.token_hex(8),
            prompt(request),
            sampling(request),
            request.tenant,
            Objectives(**structs.asdict(request.objectives)),
            grammar=grammar(request),
            tools=tools(request),
            adapter=adapter,
            variables=variables(request),
        )
        runs = requests(request, asked)
        events = self.events(request, runs, model)
        if len(runs) > request.n:
            events = best(events, request)
        async with aclosing(events):
            async for event in events:
                yield event

    @asynccontextmanager
    async def loaded(self, model: str) -> AsyncIterator[EngineProcess]:
        """The engine of `model`, loaded for as long as this block runs."""
        source = self.source_of(model)
        try:
            async with self.residency.held(source):
                yield self.engines[source]
        except EngineFailed as failed:
            log.error("%s", failed)
            raise unloadable() from failed

    async def count(self, request: GenerationRequest, model: str) -> int:
        """How many tokens `model` sees of a prompt; it is loaded for that where it is not."""
        request = native(request, "openai")
        asked = Request(
            secrets.token_hex(8),
            prompt(request),
            SamplingParameters(),
            tools=tools(request),
            variables=variables(request),
        )
        source = self.source_of(model)
        try:
            async with self.residency.held(source):
                return await self.engines[source].count(asked)
        except RequestRefused as refused:
            raise refusal(refused, request) from refused
        except EngineFailed as failed:
            raise unloadable() from failed
        except EngineDied as died:
            raise lost() from died

    async def events(
        self, request: GenerationRequest, runs: list[Request], model: str
    ) -> AsyncGenerator[Event, None]:
        """What the engine says to the `runs` of a request, as events."""
        choices = Choices(request, len(runs))
        async with self.loaded(model) as engine:
            outputs = interleave([engine.generate(run) for run in runs])
            try:
                async for index, output in outputs:
                    for event in choices.feed(index, output):
                        yield event
            except RequestRefused as refused:
                raise refusal(refused, request) from refused
            except EngineDied as died:
                raise lost() from died
            finally:
                await outputs.aclose()

    def embed(self, request: EmbeddingRequest, model: str) -> AsyncGenerator[Event, None]:
        """The vectors of texts, by an encoder."""
        return self.encode(request, model)

    def rank(self, request: RankRequest, model: str) -> AsyncGenerator[Event, None]:
        """Scores of documents, by a cross-encoder or by the angles of an encoder's vectors."""
        return self.encode(request, model)

    def classify(self, request: ClassificationRequest, model: str) -> AsyncGenerator[Event, None]:
        """Labels of texts, by a classifier."""
        return self.encode(request, model)

    async def encode(self, request: EncodingRequest, model: str) -> AsyncGenerator[Event, None]:
        """Run a request on the encoder of the model reference `model`."""
        try:
            async with self.loaded(model) as engine:
                found = await engine.encode(asked_of(request))
        except RequestRefused as refused:
            raise refusal(refused, request) from refused
        except EngineDied as died:
            raise lost() from died
        encoded, usage = encoded_of(request, found)
        yield encoded
        yield Finished("stop", usage)


def prompt(request: GenerationRequest) -> Prompt:
    """What the engine continues: a conversation, text or token ids."""
    if request.messages is not None:
        return [turn(message) for message in request.messages]
    if request.prompt is None:
        raise InvalidField("prompt", "expected a string or token ids")
    return request.prompt


def turn(message: Message) -> dict[str, Any]:
    """A message as chat templates read it, the fields beside OpenAI's among the others."""
    content = message.content
    fields: dict[str, Any] = {**message.extra, "role": message.role}
    if isinstance(content, tuple):
        thoughts = "".join(part.text for part in content if isinstance(part, Thinking))
        if thoughts:
            fields.setdefault("reasoning_content", thoughts)
        fields["content"] = write_parts(content, marks=False)
    elif content is not None:
        fields["content"] = content
    if message.name is not None:
        fields["name"] = message.name
    if message.tool_calls:
        fields["tool_calls"] = [write_tool_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    return fields


def sampling(request: GenerationRequest) -> SamplingParameters:
    """The engine's parameters. Raises InvalidField on a field it could not honour."""
    for field, value in request.extra.items():
        if (
            field in HARMLESS
            or field in GUIDES
            or (field in VARIABLES and request.messages is not None)
            or value is None
            or value in NEUTRAL.get(field, ())
        ):
            continue
        raise InvalidField(field, "this model is served locally, where it is not supported")
    max_tokens = request.max_tokens
    if max_tokens is None and request.endpoint == "completions":
        max_tokens = COMPLETIONS_MAX_TOKENS
    return SamplingParameters(
        max_tokens=max_tokens,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=max(request.top_k or 0, 0),
        seed=request.seed,
        stop=request.stop,
        min_p=request.min_p or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=request.repetition_penalty or 1.0,
        logit_bias=tuple((int(token), bias) for token, bias in request.logit_bias.items()),
        stop_tokens=request.stop_token_ids,
        min_tokens=request.min_tokens or 0,
        ignore_eos=request.ignore_eos,
        logprobs=request.logprobs,
        prompt_logprobs=prompt_logprobs(request),
    )


def prompt_logprobs(request: GenerationRequest) -> int | None:
    """How many likely tokens are asked for at each place of the prompt; an echo needs its tokens
    where they come with log-probabilities, or where they are all that the caller sent."""
    asked = [] if request.prompt_logprobs is None else [request.prompt_logprobs]
    if request.echo and request.logprobs is not None:
        asked.append(request.logprobs)
    if request.echo and not isinstance(request.prompt, str):
        asked.append(0)
    return max(asked, default=None)


def unloadable() -> EngineLost:
    """What a caller is told whose model could not be loaded; the log says why."""
    return EngineLost("The model could not be loaded.", retry_after=RETRY_AFTER)


def lost() -> EngineLost:
    """What a caller is told whose engine died."""
    return EngineLost("The engine stopped; it is being started again.", retry_after=RETRY_AFTER)


def body_field_of(request: AnyRequest) -> str:
    """The field of the body that holds what the model reads."""
    if isinstance(request, GenerationRequest):
        return "messages" if request.messages is not None else "prompt"
    return "documents" if isinstance(request, RankRequest) else "input"


def refusal(refused: RequestRefused, request: AnyRequest) -> HeadraceError:
    """The error that tells the caller why the engine did not take the request."""
    body_field = body_field_of(request)
    if refused.code == "busy":
        return Overloaded("The engine's queue is full.", retry_after=RETRY_AFTER)
    if refused.code == "context_too_long":
        return ContextTooLong(
            limit=refused.details["limit"], tokens=refused.details["tokens"], param=body_field
        )
    if refused.code == "invalid_value":
        field = refused.details["field"]
        if field == "adapter":  # dropped since the call was planned
            return ModelNotFound(request.model)
        if field == "prompt":
            field = body_field
        elif field == FORMAT and isinstance(request, GenerationRequest):
            field = grammar_field(request) or field
        return InvalidField(field, refused.message)
    return InternalFault()
