"""One line's way through the gateway: as any other call, but nobody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from starlette.types import Message

from headrace.config.schema import LOCAL
from headrace.gateway.admission import Admission
from headrace.gateway.connection import CLIENT, Headers
from headrace.gateway.disconnect import ClientGone
from headrace.gateway.door import HOLDER
from headrace.gateway.keyring import Holder
from headrace.gateway.pipeline import Generations
from headrace.router.facts import TAGS_HEADER

T = TypeVar("T")

TAG = "batch"  # what rules know a line by

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Answer(Struct, frozen=True):
    """What the gateway said to a line."""

    status: int
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def code(self) -> str | None:
        """The error's code, if it is one."""
        error = self.body.get("error")
        return error.get("code") if isinstance(error, dict) else None

    @property
    def wait(self) -> float:
        """Seconds after which it asked to come back."""
        said = self.headers.get("retry-after", "")
        return float(said) if said.isdecimal() else 0.0


class Turns:
    """How many lines run at once: on our own engines only while no call of a person is on them,
    on remote providers so many at most."""

    def __init__(self, most: int, locally: Admission) -> None:
        self._locally = locally  # the calls of people on our own engines
        self._here, self._there = asyncio.Semaphore(most), asyncio.Semaphore(most)

    async def take(self, provider: str) -> Callable[[], None]:
        """Wait for a turn; what gives it back."""
        if provider != LOCAL:
            await self._there.acquire()
            return self._there.release
        await self._here.acquire()
        try:
            await self._locally.idle()
        except BaseException:
            self._here.release()
            raise
        return self._here.release


async def ask(
    endpoint: Generations,
    body: dict[str, Any],
    holder: Holder | None,
    turns: Turns,
    halt: asyncio.Event,
) -> Answer | None:
    """The gateway's answer to one body; None where `halt` was set before it came."""
    sent: list[Message] = []
    unread = [{"type": "http.request", "body": _encode(body), "more_body": False}]
    returns: list[Callable[[], None]] = []

    async def receive() -> Message:
        return unread.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    async def turn(provider: str) -> None:
        returns.append(await unless(halt, turns.take(provider)))

    headers = [
        (b"content-type", b"application/json"),
        (TAGS_HEADER.encode(), TAG.encode()),
    ]
    client = _Nobody()
    halting = asyncio.create_task(_halt(halt, client))
    scope = {"type": "http", "method": "POST", "headers": headers, HOLDER: holder, CLIENT: client}
    try:
        await endpoint.answer_later(scope, receive, send, turn)
    finally:
        halting.cancel()
        for give_back in returns:
            give_back()
    if not sent:
        return None
    told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    whole = b"".join(message.get("body", b"") for message in sent[1:])
    return Answer(sent[0]["status"], told, _decode(whole))


class _Nobody:
    """The `Client` of a call that nobody waits for; it hangs up when the work is halted."""

    arrived = True
    full = False
    lost = False
    on_loss: Callable[[], None] | None = None

    def hold(self) -> None:
        """Nothing: what is sent goes nowhere."""

    def answer(self, status: int, headers: Headers, body: bytes) -> bool:
        """Nothing: it is sent by messages."""
        return False

    def drop(self) -> None:
        """Nothing: there is no connection."""


async def _halt(halt: asyncio.Event, client: _Nobody) -> None:
    await halt.wait()
    client.lost = True
    if client.on_loss is not None:
        client.on_loss()


async def unless(halt: asyncio.Event, wanted: Awaitable[T]) -> T:
    """What is waited for. Raises ClientGone where `halt` is set first."""
    task = asyncio.ensure_future(wanted)
    halted = asyncio.ensure_future(halt.wait())
    try:
        await asyncio.wait([task, halted], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for one in (task, halted):
            one.cancel()
