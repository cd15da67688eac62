"""A remote provider: a dialect over a pool of connections.

The upstream streams where the request says so; else an answer comes whole, where the dialect has
such answers, which costs either side less.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import replace

from msgspec import structs

from headrace.protocol.encoding import EmbeddingRequest, RankRequest
from headrace.protocol.errors import InvalidField, UpstreamError
from headrace.protocol.generation import Event, Finished, GenerationRequest
from headrace.protocol.media import MediaPiece, MediaRequest
from headrace.protocol.sse import CONTENT_TYPE, SSEDecoder
from headrace.providers.amazon import CONTENT_TYPE as AMAZON
from headrace.providers.amazon import EventStreamDecoder
from headrace.providers.connections import Connection
from headrace.providers.dialect import Dialect, encode
from headrace.providers.estimates import estimated_prompt
from headrace.providers.refusals import read_refusal
from headrace.providers.upstream import Exchange, Patience, Upstream, drain

DONE = "[DONE]"
MODELS = "/models"  # of every dialect that lists models below its address
JSON = "application/json"


class RemoteProvider:
    """A `providers.base.Provider` whose upstream speaks `dialect`."""

    def __init__(self, upstream: Upstream, dialect: Dialect) -> None:
        self.name = upstream.name
        self._upstream = upstream
        self._dialect = dialect

    def ready(self, model: str) -> bool:
        """Whether the pool is open."""
        return self._upstream.open

    async def start(self) -> None:
        """Open the pool; no connection is made yet."""
        await self._upstream.start()

    async def close(self) -> None:
        """Close every connection; running generations fail with UpstreamError."""
        await self._upstream.close()

    async def generate(self, request: GenerationRequest, model: str) -> AsyncGenerator[Event, None]:
        """Run `request` on `model`; see `providers.base.Provider`.

        Raises InvalidField where the dialect cannot say what is asked, RefusedByUpstream,
        RateLimited, Overloaded, UpstreamError and UpstreamTimeout.
        """
        if not self._dialect.whole:
            request = structs.replace(request, stream=True)
        reader = self._dialect.reader(request)
        patience = self._upstream.patience(whole=not request.stream)
        exchange = self._signed(self._dialect.write(request, model))
        async with self._upstream.answer(exchange, patience) as answer:
            if answer.content_type == JSON:
                for event in reader.feed(await self._upstream.body(answer, patience)):
                    yield event
            else:
                async with contextlib.aclosing(self._texts(answer, patience)) as texts:
                    async for text in texts:
                        for event in reader.feed(text):
                            patience.progress()
                            yield event
                        if reader.thinking:
                            patience.progress()
                        patience.satisfied = reader.complete
                        if reader.ended:
                            break
            for event in reader.end(request):
                yield event if request.stream else at_once(event)
            await drain(answer)

    async def count(self, request: GenerationRequest, model: str) -> int:
        """Count the tokens of a prompt; see `providers.base.Counter`."""
        dialect = self._dialect
        if dialect.write_count is None or dialect.read_count is None:
            return estimated_prompt(request)
        return dialect.read_count(await self._asked(dialect.write_count(request, model)), self.name)

    async def list_models(self) -> None:
        """Ask for the list of models; see `providers.base.Lister`."""
        await self._asked(Exchange(MODELS, b"", method="GET"))

    async def embed(self, request: EmbeddingRequest, model: str) -> AsyncGenerator[Event, None]:
        """Embed on `model`; see `providers.base.Embedder`. Raises as `generate` does."""
        dialect = self._dialect
        if dialect.write_embedding is None or dialect.read_embedding is None:
            raise InvalidField("model", "its provider has no embeddings endpoint.")
        answer = await self._asked(dialect.write_embedding(request, model))
        for event in dialect.read_embedding(answer, request, self.name):
            yield event

    async def rank(self, request: RankRequest, model: str) -> AsyncGenerator[Event, None]:
        """Rank on `model`; see `providers.base.Ranker`. Raises as `generate` does."""
        dialect = self._dialect
        if dialect.write_ranking is None or dialect.read_ranking is None:
            raise InvalidField("model", "its provider has no rerank endpoint.")
        answer = await self._asked(dialect.write_ranking(request, model))
        for event in dialect.read_ranking(answer, request, self.name):
            yield event

    async def pass_on(self, request: MediaRequest, model: str) -> AsyncGenerator[Event, None]:
        """Make or hear images or sound; see `providers.base.Artist`. Raises as `generate` does."""
        dialect = self._dialect
        if dialect.write_media is None or dialect.meter is None:
            raise InvalidField("model", f"its provider has no {request.endpoint} endpoint.")
        meter = dialect.meter(request)
        patience = self._upstream.patience(whole=not request.stream)
        exchange = self._signed(dialect.write_media(request, model))
        async with self._upstream.answer(exchange, patience) as answer:
            kind = answer.content_type
            whole = kind == JSON
            if whole:
                body = await self._upstream.body(answer, patience)
                meter.feed(body, kind)
                yield MediaPiece(body, kind, whole=True)
            else:
                told = answer.headers.get("content-type", "application/octet-stream")
                piece = b""
                async with contextlib.aclosing(self._upstream.pieces(answer, patience)) as pieces:
                    async for piece in pieces:
                        patience.progress()
                        meter.feed(piece, kind)
                        yield MediaPiece(piece, told)
                if not piece:
                    yield MediaPiece(b"", told)
        yield Finished("stop", meter.usage(), whole=whole)

    async def _asked(self, exchange: Exchange) -> bytes:
        """The whole body of an answer that is not streamed."""
        patience = self._upstream.patience()
        async with self._upstream.answer(self._signed(exchange), patience) as answer:
            return await self._upstream.body(answer, patience)

    def _signed(self, exchange: Exchange) -> Exchange:
        sign = self._dialect.sign
        if sign is None:
            return exchange
        signature = sign(self._upstream.address, exchange)
        return replace(exchange, headers={**exchange.headers, **signature})

    async def _texts(
        self, answer: Connection, patience: Patience
    ) -> AsyncGenerator[str | bytes, None]:
        """The JSON texts of a stream, up to [DONE]."""
        if self._dialect.framing == "amazon" and answer.content_type == AMAZON:
            async for text in self._amazon(answer, patience):
                yield text
            return
        if answer.content_type != CONTENT_TYPE:
            raise UpstreamError(
                f"Provider '{self.name}' answered with '{answer.content_type[:80]}', "
                "neither an event stream nor JSON."
            )
        decoder = SSEDecoder()
        async with contextlib.aclosing(self._upstream.pieces(answer, patience)) as pieces:
            async for piece in pieces:
                for item in decoder.feed(piece):
                    if item.data.strip() == DONE:
                        return
                    yield item.data
        for item in decoder.finish():
            if item.data.strip() == DONE:
                return
            yield item.data

    async def _amazon(self, answer: Connection, patience: Patience) -> AsyncGenerator[bytes, None]:
        """The messages of an event stream, each as an object of one field: its type."""
        decoder = EventStreamDecoder()
        async with contextlib.aclosing(self._upstream.pieces(answer, patience)) as pieces:
            async for piece in pieces:
                for headers, payload in decoder.feed(piece):
                    if headers.get(":message-type") == "event":
                        kind = headers.get(":event-type", "")
                        yield b"{%b:%b}" % (encode(kind), payload or b"{}")
                    else:
                        yield _exception(headers, payload)


def _exception(headers: dict[str, str], payload: bytes) -> bytes:
    """An exception or error of an event stream, as an object of one field."""
    kind = headers.get(":exception-type") or headers.get(":error-code", "")
    said = read_refusal(payload).message or headers.get(":error-message", "")
    return encode({"exception": {"type": kind, "message": said}})


def at_once(event: Event) -> Event:
    """The event; the last one says that all came at once."""
    return structs.replace(event, whole=True) if isinstance(event, Finished) else event
