"""Each token is priced once, whatever the provider counts as cached."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config.schema import Price
from headrace.gateway.connection import Headers
from headrace.gateway.disconnect import ClientGone
from headrace.gateway.formats import FORMATS
from headrace.gateway.reply import Reply, header_value
from headrace.protocol.generation import Usage
from headrace.router.cost import cost

counts = st.integers(0, 10**9)


@given(counts, counts, counts)
def test_at_one_price_for_all_the_cost_is_the_number_of_tokens(
    prompt: int, completion: int, cached: int
) -> None:
    usage = Usage(prompt, completion, cached_tokens=cached)
    expected = (prompt + completion) / 1e6
    assert cost(Price(input=1, output=1), usage) == pytest.approx(expected)
    assert cost(Price(input=1, output=1, cached_input=1), usage) == pytest.approx(expected)


@given(counts, counts)
def test_cached_tokens_cost_what_is_configured_for_them(prompt: int, cached: int) -> None:
    usage = Usage(prompt, 0, cached_tokens=min(prompt, cached))
    free = cost(Price(input=2, cached_input=0), usage)
    assert free == pytest.approx(2 * (prompt - usage.cached_tokens) / 1e6)


@given(st.text("aZ 0%/:é日🌊\r\n\0\x7f"))
def test_any_name_can_stand_in_a_header(name: str) -> None:
    assert all(0x20 <= byte < 0x7F for byte in header_value(name))


async def test_a_client_whose_connection_stays_full_is_gone() -> None:
    async def never_room(message: object) -> None:
        await asyncio.Event().wait()

    class Full:
        arrived = full = True
        lost = False
        on_loss: Callable[[], None] | None = None

        def hold(self) -> None:
            """There is nothing to hold back."""

        def answer(self, status: int, headers: Headers, body: bytes) -> bool:
            """There is no connection."""
            return False

        def drop(self) -> None:
            """There is no connection."""

    with pytest.raises(ClientGone):
        await Reply(never_room, FORMATS["chat"], Full(), patience=0.01).write(b"data: x\n\n")
