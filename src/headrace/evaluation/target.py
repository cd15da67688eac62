"""The target: one question to an OpenAI-compatible endpoint, one answer or one error back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct

from headrace.evaluation.dataset import Item
from headrace.evaluation.specification import Target

MAX_ANSWER_BYTES = 16 * 1024 * 1024
MAX_ERROR = 300  # characters of an endpoint's message that are kept


class Answer(Struct, frozen=True, kw_only=True):
    """What came back. `error` says why a call failed; then `text` is empty.

    `seconds` is from the start of the request to the end of the answer; `call_id` is the
    endpoint's x-request-id, which names the call in the log.
    """

    text: str = ""
    seconds: float
    call_id: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None


class _Message(Struct):
    content: str | None = None


class _Choice(Struct):
    message: _Message | None = None
    text: str | None = None


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Body(Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


class _Failure(Exception):
    """The call failed; the message is for the report."""


class TargetClient:
    """Asks one target. `clock` gives seconds."""

    def __init__(
        self,
        target: Target,
        seed: int | None,
        key: str | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._target = target
        self._seed = seed
        self._clock = clock
        path = "chat/completions" if target.endpoint == "chat" else "completions"
        self._url = f"{target.base_url.rstrip('/')}/{path}"
        # each answer is to be the target's own, made now, not one from a cache on the way
        headers = {"x-headrace-cache": "off"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        self._session = aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=target.timeout),
            connector=aiohttp.TCPConnector(limit=target.concurrency),
        )

    async def ask(self, item: Item) -> Answer:
        """One call. A call that fails is an answer with `error`; nothing is raised."""
        call_id = None
        body = msgspec.json.encode(request_body(self._target, self._seed, item))
        begun = self._clock()
        try:
            async with self._session.post(
                self._url,
                data=body,
                headers={"content-type": "application/json"},
                allow_redirects=False,
            ) as response:
                call_id = response.headers.get("x-request-id")
                content = await _bounded(response)
                seconds = self._clock() - begun
                if response.status != 200:
                    raise _Failure(f"HTTP {response.status}: {_message(content)}")
            return _answer(content, seconds, call_id)
        except TimeoutError:
            error = f"no answer within {self._target.timeout:g} s"
        except (aiohttp.ClientError, OSError) as failure:
            error = f"{type(failure).__name__}: {failure}"[:MAX_ERROR]
        except _Failure as failure:
            error = str(failure)
        return Answer(seconds=self._clock() - begun, call_id=call_id, error=error)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()


def request_body(target: Target, seed: int | None, item: Item) -> dict[str, Any]:
    """The body that asks `item`; a prompt becomes one user message on the chat endpoint."""
    body: dict[str, Any] = {
        "model": target.model,
        "max_tokens": target.max_tokens,
        "temperature": target.temperature,
    }
    if target.endpoint == "completions":
        body["prompt"] = item.input
    elif isinstance(item.input, str):
        body["messages"] = [{"role": "user", "content": item.input}]
    else:
        body["messages"] = item.input
    if target.top_p is not None:
        body["top_p"] = target.top_p
    if target.stop:
        body["stop"] = target.stop
    if seed is not None:
        body["seed"] = seed
    return body


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for piece in response.content.iter_chunked(65_536):
        content += piece
        if len(content) > MAX_ANSWER_BYTES:
            raise _Failure(f"the answer is over {MAX_ANSWER_BYTES} bytes")
    return bytes(content)


def _answer(content: bytes, seconds: float, call_id: str | None) -> Answer:
    try:
        body = msgspec.json.decode(content, type=_Body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _Failure(f"the answer is not a completion: {error}") from None
    if not body.choices:
        raise _Failure("the answer has no choices")
    choice = body.choices[0]
    text = choice.text if choice.message is None else choice.message.content
    usage = body.usage or _Usage()
    return Answer(
        text=text or "",
        seconds=seconds,
        call_id=call_id,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
    )


def _message(content: bytes) -> str:
    """The message of an error body in OpenAI's shape, or its beginning."""
    try:
        message = msgspec.json.decode(content)["error"]["message"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        message = content[:MAX_ERROR].decode("utf-8", "replace")
    return " ".join(str(message).split())[:MAX_ERROR]
