"""Web pages of strangers cannot use a server that asks for no key."""

from __future__ import annotations

import pytest

from headrace.protocol.hosts import is_loopback, is_own_host
from tests.fakes.gateway import Running

STRANGE = {"Host": "evil.example"}


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/metrics"])
async def test_a_name_that_leads_here_is_not_this_server(gateway: Running, path: str) -> None:
    answer = await gateway.http.get(gateway.url + path, headers={"Host": "evil.example"})
    assert answer.status == 403
    body = await answer.json()
    assert body["error"]["type"] == "permission_error"
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("host", ["localhost:8000", "LOCALHOST", "127.0.0.1:1", "[::1]:8000"])
async def test_its_own_names_are(gateway: Running, host: str) -> None:
    answer = await gateway.http.get(gateway.url + "/v1/models", headers={"Host": host})
    assert answer.status == 200


async def test_with_keys_calls_are_answered_under_any_name_and_the_page_is_not(
    gateway: Running,
) -> None:
    async with gateway.http.post(f"{gateway.url}/admin/keys", json={"name": "app"}) as response:
        key = {"authorization": f"Bearer {(await response.json())['key']}"}
    for path, headers, status in (
        ("/v1/models", STRANGE, 401),
        ("/v1/models", {**STRANGE, **key}, 200),
        ("/admin/keys", {**STRANGE, **key}, 403),
        ("/", STRANGE, 403),
        ("/metrics", STRANGE, 403),
    ):
        async with gateway.http.get(gateway.url + path, headers=headers) as answer:
            assert answer.status == status, path


def test_hosts_are_told_apart() -> None:
    assert is_own_host("mine:80", "mine")
    assert not is_own_host("localhost.evil.example", "127.0.0.1")
    assert not is_own_host("127.0.0.1.evil.example", "127.0.0.1")
    assert is_loopback("127.0.0.9")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("mine")
