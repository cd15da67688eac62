"""Any upstream that speaks OpenAI's chat/completions and completions, over HTTP.

The upstream always streams, whoever asks: first tokens and stalls are seen in either case, and
the gateway assembles a whole answer itself. Four time-outs are kept apart: `pool` (waiting for a
free connection), `connect` (name, TCP, TLS), `first_token` (from the request sent to the first
piece of the answer) and `between_tokens`; time the caller takes to read counts for none.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from headrace import __version__
from headrace.config.schema import Timeouts, UpstreamProvider
from headrace.protocol.encoding import EmbeddingRequest
from headrace.protocol.errors import HeadraceError, UpstreamError, UpstreamTimeout
from headrace.protocol.generation import Event, GenerationRequest, Message
from headrace.protocol.sse import CONTENT_TYPE, SSEDecoder
from headrace.providers.openai_chunks import Translator
from headrace.providers.openai_embeddings import embedded, embedding_body
from headrace.providers.refusals import error_for, read_refusal, retry_after

MAX_ANSWER_BYTES = 64 * 1024 * 1024  # as framed by the upstream
MAX_ERROR_BYTES = 64 * 1024
ERROR_WAIT = 2.0  # seconds an upstream has to say what is wrong after the status
DRAIN = 0.02  # seconds an upstream has to end its answer after saying [DONE]

_encoder = msgspec.json.Encoder()

# aiohttp says RuntimeError where a connection is closed under a call, ValueError where what came
# is not HTTP.
_CONNECTION_FAULTS = (aiohttp.ClientError, OSError, ValueError, RuntimeError)


class OpenAIProvider:
    """A `providers.base.Provider` over one pool of connections.

    `key` is the secret itself; it goes into the Authorization header and nowhere else. `clock`
    gives Unix seconds (for a Retry-After that is a date), `new_id` names tool calls that the
    upstream left without an id.
    """

    def __init__(
        self,
        name: str,
        settings: UpstreamProvider,
        key: str | None,
        clock: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: f"call_{secrets.token_hex(12)}",
    ) -> None:
        self.name = name
        self._settings = settings
        self._key = key
        self._clock = clock
        self._new_id = new_id
        self._slots = asyncio.Semaphore(settings.max_connections)
        self._session: aiohttp.ClientSession | None = None

    def ready(self, model: str) -> bool:
        """Whether the pool is open."""
        return self._session is not None

    async def start(self) -> None:
        """Open the pool; no connection is made yet."""
        headers = {
            "Accept": f"{CONTENT_TYPE}, application/json",
            "Accept-Encoding": "identity",  # a stream that is compressed cannot be bounded
            "Content-Type": "application/json",
            "User-Agent": f"headrace/{__version__}",
        }
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(_request_sent)
        self._session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=self._settings.max_connections),
            timeout=aiohttp.ClientTimeout(connect=self._settings.timeouts.connect),
            cookie_jar=aiohttp.DummyCookieJar(),  # one caller's cookies are not another's
            auto_decompress=False,
            trust_env=False,
            trace_configs=[trace],
        )

    async def close(self) -> None:
        """Close every connection; running generations fail with UpstreamError."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def generate(self, request: GenerationRequest, model: str) -> AsyncGenerator[Event, None]:
        """Run `request` on `model`; see `providers.base.Provider`.

        Raises RefusedByUpstream, RateLimited, UpstreamError and UpstreamTimeout.
        """
        translator = Translator(self.name, self._new_id, request.n)
        patience = _Patience(self.name, self._settings.timeouts)
        path = "/chat/completions" if request.endpoint == "chat" else "/completions"
        body = request_body(request, model, self._settings.base_url)
        with self._discreet():
            async with (
                self._slot(),
                self._answer(path, body, patience) as response,
                contextlib.aclosing(self._chunks(response, patience)) as chunks,
            ):
                async for chunk in chunks:
                    for event in translator.feed(chunk):
                        patience.progress()
                        yield event
                    if translator.thinking:
                        patience.progress()
                    patience.satisfied = translator.complete
                for event in translator.end(request):
                    yield event
                await _drain(response)

    async def embed(self, request: EmbeddingRequest, model: str) -> AsyncGenerator[Event, None]:
        """Embed on `model`; see `providers.base.Embedder`. Raises as `generate` does."""
        patience = _Patience(self.name, self._settings.timeouts)
        body = embedding_body(request, model)
        with self._discreet():
            async with (
                self._slot(),
                self._answer("/embeddings", body, patience) as response,
            ):
                answer = await self._body(response, patience, MAX_ANSWER_BYTES)
            for event in embedded(answer, request, self.name):
                yield event

    @contextlib.contextmanager
    def _discreet(self) -> Iterator[None]:
        """Take the key out of what an upstream quotes."""
        try:
            yield
        except HeadraceError as error:
            if self._key is not None and self._key in error.message:
                error.message = error.message.replace(self._key, "[key]")
                error.args = (error.message,)
            raise

    async def _chunks(
        self, response: aiohttp.ClientResponse, patience: _Patience
    ) -> AsyncGenerator[str | bytes, None]:
        """The JSON texts of an answer: a stream's up to [DONE], or the one of a plain body."""
        if response.content_type == "application/json":
            yield await self._body(response, patience, MAX_ANSWER_BYTES)
            return
        if response.content_type != CONTENT_TYPE:
            raise UpstreamError(
                f"Provider '{self.name}' answered with '{response.content_type[:80]}', "
                "neither an event stream nor JSON."
            )
        decoder = SSEDecoder()
        left = MAX_ANSWER_BYTES
        while True:
            try:
                piece = await self._read(response, patience)
            except (UpstreamError, UpstreamTimeout):
                if patience.satisfied:
                    return
                raise
            left -= len(piece)
            if left < 0:
                raise self._too_large()
            for item in decoder.feed(piece) if piece else decoder.finish():
                if item.data.strip() == "[DONE]":
                    return
                yield item.data
            if not piece:
                return

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """Hold one of the pool's connections."""
        seconds = self._settings.timeouts.pool
        try:
            async with asyncio.timeout(seconds):
                await self._slots.acquire()
        except TimeoutError:
            raise UpstreamTimeout(
                f"No connection to provider '{self.name}' became free within {seconds:g} s (pool)."
            ) from None
        try:
            yield
        finally:
            self._slots.release()

    @contextlib.asynccontextmanager
    async def _answer(
        self, path: str, body: dict[str, Any], patience: _Patience
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The upstream's good answer; its connection is kept only if it was read to the end."""
        response = await self._ask(path, body, patience)
        try:
            if response.status != 200:
                raise await self._refused(response, patience)
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise UpstreamError(
                    f"Provider '{self.name}' compressed its answer although asked not to."
                )
            yield response
        finally:
            if response.content.at_eof():
                response.release()
            else:
                response.close()

    async def _ask(
        self, path: str, body: dict[str, Any], patience: _Patience
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            raise UpstreamError(f"Provider '{self.name}' is not running.")
        try:
            # No limit at first: connecting has its own, and `_request_sent` sets the next one.
            async with asyncio.timeout(None) as limit:
                return await self._session.post(
                    self._settings.base_url.rstrip("/") + path,
                    data=_encoder.encode(body),
                    allow_redirects=False,
                    trace_request_ctx=(patience, limit),
                )
        except aiohttp.ConnectionTimeoutError:
            seconds = self._settings.timeouts.connect
            raise UpstreamTimeout(
                f"Provider '{self.name}' could not be reached within {seconds:g} s (connect)."
            ) from None
        except TimeoutError:
            raise patience.error() from None
        except _CONNECTION_FAULTS as error:
            raise self._broken(error) from None

    async def _read(self, response: aiohttp.ClientResponse, patience: _Patience) -> bytes:
        """The next bytes of the answer; empty at its end."""
        try:
            async with patience.reading():
                return await response.content.readany()
        except TimeoutError:
            raise patience.error() from None
        except _CONNECTION_FAULTS as error:
            raise self._broken(error) from None

    async def _body(
        self, response: aiohttp.ClientResponse, patience: _Patience, limit: int
    ) -> bytes:
        """The whole body. Raises UpstreamError if it is over `limit` bytes."""
        body = bytearray()
        while piece := await self._read(response, patience):
            body += piece
            if len(body) > limit:
                raise self._too_large()
        return bytes(body)

    async def _refused(
        self, response: aiohttp.ClientResponse, patience: _Patience
    ) -> HeadraceError:
        try:
            async with asyncio.timeout(ERROR_WAIT):
                body = await self._body(response, patience, MAX_ERROR_BYTES)
        except (TimeoutError, UpstreamError, UpstreamTimeout):
            body = b""  # the status says enough
        wait = retry_after(response.headers, self._clock)
        return error_for(self.name, response.status, read_refusal(body), wait)

    def _broken(self, error: Exception) -> UpstreamError:
        """A connection fault. Only its kind is said: its text may hold the request's headers."""
        return UpstreamError(
            f"The connection to provider '{self.name}' failed ({type(error).__name__})."
        )

    def _too_large(self) -> UpstreamError:
        return UpstreamError(f"Provider '{self.name}' sent over {MAX_ANSWER_BYTES} bytes.")


class _Patience:
    """How long one call still waits, and for what.

    `satisfied` says that all that matters has come: what breaks then does not matter.
    """

    def __init__(self, provider: str, timeouts: Timeouts) -> None:
        self.satisfied = False
        self._provider = provider
        self._timeouts = timeouts
        self._begun = False
        self._deadline: float | None = None  # of the wait under way, on the loop's clock

    def sent(self, limit: asyncio.Timeout) -> None:
        """The request is on its way: the wait for the first token begins."""
        self._deadline = asyncio.get_running_loop().time() + self._timeouts.first_token
        limit.reschedule(self._deadline)

    def progress(self) -> None:
        """A piece of the answer came: the next wait begins when the caller wants more."""
        self._begun = True
        self._deadline = None

    def reading(self) -> asyncio.Timeout:
        """Bounds one read of the answer's body."""
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._timeouts.between_tokens
        return asyncio.timeout_at(self._deadline)

    def error(self) -> UpstreamTimeout:
        """What to say when the wait was too long."""
        if self._begun:
            said = f"was silent for {self._timeouts.between_tokens:g} s (between_tokens)"
        else:
            said = f"sent no token within {self._timeouts.first_token:g} s (first_token)"
        return UpstreamTimeout(f"Provider '{self._provider}' {said}.")


async def _request_sent(
    session: aiohttp.ClientSession, context: Any, params: aiohttp.TraceRequestHeadersSentParams
) -> None:
    patience, limit = context.trace_request_ctx
    patience.sent(limit)


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Read the answer's end, so that its connection can serve the next call."""
    with contextlib.suppress(*_CONNECTION_FAULTS):  # TimeoutError is an OSError
        async with asyncio.timeout(DRAIN):
            while await response.content.readany():
                pass


def request_body(request: GenerationRequest, model: str, base_url: str) -> dict[str, Any]:
    """`request` in OpenAI's words, for the upstream at `base_url`.

    `extra` goes as it came but overrides nothing.
    """
    options = request.extra.get("stream_options")
    body: dict[str, Any] = {
        **request.extra,
        "model": model,
        "stream": True,
        "stream_options": {
            **(options if isinstance(options, dict) else {}),
            "include_usage": True,
        },
    }
    if request.endpoint == "chat":
        body["messages"] = [_turn(message) for message in request.messages or ()]
    else:
        body["prompt"] = request.prompt
    if request.logprobs is not None:
        if request.endpoint == "chat":
            body |= {"logprobs": True, "top_logprobs": request.logprobs}
        else:
            body["logprobs"] = request.logprobs
    limit = "max_tokens"
    if request.endpoint == "chat" and _is_openai(base_url):
        limit = "max_completion_tokens"  # its newer models refuse the old name
    given = {
        limit: request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "repetition_penalty": request.repetition_penalty,
        "logit_bias": request.logit_bias or None,
        "seed": request.seed,
        "stop": request.stop or None,
        "stop_token_ids": request.stop_token_ids or None,
        "min_tokens": request.min_tokens,
        "ignore_eos": request.ignore_eos or None,
        "prompt_logprobs": request.prompt_logprobs,
        "echo": request.echo or None,
        "n": request.n if request.n > 1 else None,
        "best_of": request.best_of,
    }
    body.update((name, value) for name, value in given.items() if value is not None)
    return body


def _turn(message: Message) -> dict[str, Any]:
    turn = dict(message.extra)
    for name in ("role", "content", "name", "tool_calls", "tool_call_id"):
        value = getattr(message, name)
        if value is not None:
            turn[name] = value
    return turn


def _is_openai(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    return host == "api.openai.com" or host.endswith(".openai.azure.com")
