"""Admission: how many calls run at once, and how large a body may be."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.types import Receive

from headrace.gateway.board import Places
from headrace.gateway.disconnect import ClientGone
from headrace.protocol.errors import BodyTooLarge, MalformedBody, Overloaded, RequestTimeout

RETRY_AFTER = 1.0  # seconds
BODY_TIMEOUT = 60.0  # seconds for a whole body to arrive


class Admission:
    """Counts the calls that run, each in it as a context to its last byte, and refuses at once
    those over the bound; `places` counts them over several processes."""

    def __init__(self, limit: int, places: Places | None = None) -> None:
        self._limit = limit
        self._places = places
        self.running = 0
        self._none = asyncio.Event()  # no call runs
        self._none.set()

    def __enter__(self) -> None:
        """Count the call that runs in this block."""
        self.running += 1
        self._none.clear()
        if self._places is not None:
            self._places.take()

    def __exit__(self, *_: object) -> None:
        """It has ended."""
        self.running -= 1
        if self._places is not None:
            self._places.leave()
        if self.running == 0:
            self._none.set()

    def admit(self) -> None:
        """Raise Overloaded where the call just counted is one too many."""
        running = self.running if self._places is None else self._places.taken
        if running > self._limit:
            raise Overloaded(
                f"The server runs {self._limit} requests already.", retry_after=RETRY_AFTER
            )

    async def idle(self) -> None:
        """Wait until no call runs."""
        await self._none.wait()


def check_type(headers: Mapping[str, str]) -> None:
    """Raise MalformedBody unless the body says that it is plain JSON.

    It has to say so: a web page can send other types, or none, to any address without asking.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise MalformedBody("The content-type must be 'application/json'.")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise MalformedBody("A content-encoding is not supported; send the body as it is.")


async def read_body(
    headers: Mapping[str, str], receive: Receive, limit: int, *, arrived: bool = False
) -> bytes:
    """The whole body, of at most `limit` bytes; `arrived` says that there is nothing to wait for.

    Raises BodyTooLarge (by the announced length, or else as soon as too much has come),
    RequestTimeout where it takes too long to come, and ClientGone.
    """
    announced = headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large(limit)
    if arrived:
        return await _whole(receive, limit)
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            return await _whole(receive, limit)
    except TimeoutError:
        raise RequestTimeout(f"The body did not arrive within {BODY_TIMEOUT:g} s.") from None


async def _whole(receive: Receive, limit: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        if size > limit:
            raise too_large(limit)
        pieces.append(piece)
        if not message.get("more_body", False):
            return b"".join(pieces)


def too_large(limit: int) -> BodyTooLarge:
    """What is said of a body of over `limit` bytes."""
    return BodyTooLarge(f"The body is over the limit of {limit} bytes.")
