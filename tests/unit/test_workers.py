"""Several workers on one port are one server to whoever calls it, and to whoever runs it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from headrace.config.schema import Limits
from headrace.gateway.board import Board
from headrace.gateway.keystore import Key, KeyStore
from headrace.gateway.limits import Scope
from headrace.observability.record import CallRecord
from headrace.observability.snapshots import HEAD, Snapshots
from headrace.observability.store import CallFilter, CallStore, store_url
from headrace.protocol.errors import RateLimited
from tests.fakes.upstream import FakeUpstream, Gate, Script, chunk

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


@dataclass
class Server:
    """A running `headrace serve --workers 2`."""

    process: Process
    url: str
    home: Path
    http: aiohttp.ClientSession

    @property
    def workers(self) -> list[int]:
        """The process ids of its workers."""
        pid = self.process.pid
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    async def ask(self, key: str = "", **more: object) -> tuple[int, str]:
        """One call over a connection of its own: status and request id."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        async with self.http.post(
            self.url + CHAT, json={**BODY, **more}, headers=headers
        ) as answer:
            await answer.read()
            return answer.status, answer.headers["x-request-id"]

    async def counted(self, status: str) -> float:
        """How many calls /metrics says there were."""
        async with self.http.get(self.url + "/metrics") as answer:
            lines = (await answer.text()).splitlines()
        wanted = [line for line in lines if "headrace_calls_total" in line and status in line]
        return sum(float(line.rpartition(" ")[2]) for line in wanted)

    async def stop(self) -> str:
        """Tell the whole group to stop, as a terminal does; what it said on standard error."""
        os.killpg(self.process.pid, signal.SIGTERM)
        said = (await self.process.communicate())[1].decode()
        assert self.process.returncode == 0
        return said

    def records(self) -> list[CallRecord]:
        """All calls on record."""
        store = CallStore(store_url(self.home))
        try:
            return list(store.all_calls(CallFilter()))
        finally:
            store.close()


def configured(
    home: Path, base_url: str, key: str | None = None, logging: dict[str, str] | None = None
) -> Path:
    path = home / "headrace.yaml"
    provider = {"base_url": base_url, **({} if key is None else {"key": key})}
    price = {"input": 0, "output": 1_000_000}  # a dollar a token
    model = {"provider": "up", "source": "m", "price": price}
    fields = {"providers": {"up": provider}, "models": {"m": model}, "cache": {"enabled": False}}
    fields["logging"] = logging or {}
    path.write_text(json.dumps({**fields, "log": {"directory": str(home)}}))
    return path


async def start(*arguments: str) -> Process:
    command = [sys.executable, "-m", "headrace.cli.main", "serve", *arguments, "--port", "0"]
    return await asyncio.create_subprocess_exec(
        *command, stdout=PIPE, stderr=PIPE, start_new_session=True
    )


@asynccontextmanager
async def serving(
    home: Path, upstream: FakeUpstream, logging: dict[str, str] | None = None
) -> AsyncIterator[Server]:
    path = configured(home, upstream.base_url, logging=logging)
    process = await start(str(path), "--workers", "2")
    assert process.stdout is not None
    url = ""
    async for line in process.stdout:
        if b"address" in line:
            url = line.decode().split()[1].removesuffix("/v1")
        if b"Ctrl-C" in line:
            break
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as http:
        try:
            yield Server(process, url, home, http)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.communicate()


def made(home: Path, key: Key) -> str:
    store = KeyStore.within(home)
    try:
        return store.create(key)[1]
    finally:
        store.close()


def key(name: str, rpm: int | None = None, budget: float | None = None) -> Key:
    return Key(id="", name=name, digest="", hint="", rpm=rpm, budget=budget)


def spent(home: Path, name: str) -> float:
    store = KeyStore.within(home)
    try:
        return next(one.spent for one in store.every() if one.name == name)
    finally:
        store.close()


def served(answers: Sequence[tuple[int, str]]) -> int:
    assert {status for status, _ in answers} <= {200, 429}
    return sum(status == 200 for status, _ in answers)


async def test_limits_budgets_and_metrics_are_those_of_all_workers(tmp_path: Path) -> None:
    quick = made(tmp_path, key("quick", rpm=30))
    poor = made(tmp_path, key("poor", budget=20.0))
    async with FakeUpstream() as upstream, serving(tmp_path, upstream) as server:
        answers = await asyncio.gather(*(server.ask(quick) for _ in range(80)))
        assert served(answers) == 30  # neither more nor less
        paid = served(await asyncio.gather(*(server.ask(poor) for _ in range(40))))
        assert 0 < paid <= 10  # at two dollars each
        assert await server.counted('status="ok"') == 30 + paid
        assert len({request_id for _, request_id in answers}) == 80
        await server.stop()
        assert len(server.records()) == 120
    assert spent(tmp_path, "poor") == 2.0 * paid


async def test_a_key_that_is_revoked_is_refused_by_every_worker_from_the_answer_on(
    tmp_path: Path,
) -> None:
    made(tmp_path, key("other"))
    secret = made(tmp_path, key("lost"))
    async with FakeUpstream() as upstream, serving(tmp_path, upstream) as server:
        assert (await server.ask(secret))[0] == 200
        async with server.http.delete(server.url + "/admin/keys/lost") as answer:
            assert answer.status == 204
        statuses = await asyncio.gather(*(server.ask(secret) for _ in range(20)))
        assert {status for status, _ in statuses} == {401}


async def test_a_worker_that_is_killed_comes_back_and_no_answered_call_is_lost(
    tmp_path: Path,
) -> None:
    async with FakeUpstream() as upstream, serving(tmp_path, upstream) as server:
        answers = await asyncio.gather(*(server.ask() for _ in range(40)))
        before = set(server.workers)
        lost = server.workers[0]
        os.kill(lost, signal.SIGKILL)
        answers += await asyncio.gather(*(server.ask() for _ in range(40)))  # some wait for it
        after = set(server.workers)
        assert len(after) == 2
        assert lost not in after
        assert before & after
        assert {status for status, _ in answers} == {200}
        assert await server.counted('status="ok"') >= 40
        said = await server.stop()
        assert f"(pid {lost}) ended by signal 9; starting it again" in said
        assert {record.id for record in server.records()} == {one for _, one in answers}


async def test_what_is_said_of_workers_has_the_form_that_the_file_asks_for(tmp_path: Path) -> None:
    async with (
        FakeUpstream() as upstream,
        serving(tmp_path, upstream, {"format": "json"}) as server,
    ):
        await server.ask()
        lost = server.workers[0]
        os.kill(lost, signal.SIGKILL)
        await asyncio.gather(*(server.ask() for _ in range(10)))
        said = [json.loads(line) for line in (await server.stop()).splitlines()]
    (ended,) = [line for line in said if line.get("logger") == "headrace.workers"]
    assert (ended["event"], ended["level"]) == ("log", "error")
    assert f"(pid {lost}) ended by signal 9" in ended["message"]


async def test_a_stop_waits_for_the_streams_of_every_worker(tmp_path: Path) -> None:
    gates = [Gate() for _ in range(8)]
    end = [chunk({"content": "lo"}), chunk({}, "stop"), b"data: [DONE]\n\n"]
    async with FakeUpstream() as upstream, serving(tmp_path, upstream) as server:
        scripts = [Script([chunk({"content": "Hel"}), gate, *end]) for gate in gates]
        upstream.answer(*scripts)

        async def read() -> str:
            async with server.http.post(server.url + CHAT, json={**BODY, "stream": True}) as answer:
                return await answer.text()

        streams = [asyncio.create_task(read()) for _ in gates]
        await asyncio.gather(*(gate.reached.wait() for gate in gates))
        stopped = asyncio.create_task(server.stop())
        while await listens(server.url):
            pass
        for gate in gates:
            gate.opened.set()
        assert all(text.endswith("data: [DONE]\n\n") for text in await asyncio.gather(*streams))
        assert await stopped == ""
        assert [record.status for record in server.records()] == ["ok"] * len(gates)


async def listens(url: str) -> bool:
    """Whether a new connection is taken."""
    host, port = url.removeprefix("http://").split(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except ConnectionError:
        return False
    writer.close()
    return True


async def test_no_worker_outlives_the_process_that_watches_over_it(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream, serving(tmp_path, upstream) as server:
        os.kill(server.process.pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            await server.process.communicate()  # ends when nobody holds its pipes any more


async def test_what_keeps_a_worker_from_starting_is_said_once(tmp_path: Path) -> None:
    path = configured(tmp_path, "http://127.0.0.1:9/v1", "env:ABSENT_KEY")
    process = await start(str(path), "--workers", "3")
    _, said = await process.communicate()
    assert process.returncode == 1
    assert said.decode().count("ABSENT_KEY is not set") == 1


async def test_several_workers_for_a_local_model_are_refused(tmp_path: Path, tiny: Path) -> None:
    process = await start("--model", str(tiny), "--workers", "2")
    _, said = await process.communicate()
    assert process.returncode == 1
    assert "leave --workers out" in said.decode()


def test_the_places_of_a_worker_that_died_are_free_for_the_one_after_it() -> None:
    board = Board(2)
    limits = Limits(concurrent=2)
    first = Scope("it", limits, lambda: 0.0, board)
    board.join(1)
    second = Scope("it", limits, lambda: 0.0, board)
    first.enter()
    second.enter()
    with pytest.raises(RateLimited):
        first.enter()
    board.join(1)  # in the place of the one that died
    first.enter()


def test_what_a_worker_said_last_is_there_after_it_died_while_it_wrote() -> None:
    now = 1.0
    snapshots = Snapshots(2, lambda: now)
    snapshots.say(b"first")
    snapshots.say(b"second")
    snapshots._memory[HEAD.size] ^= 1  # the second one's first byte, as if it were not whole
    snapshots.me, now = 1, 0.5
    assert snapshots.others() == [b"first"]
    assert snapshots.join(0) == b"first"
    snapshots.say(b"third")
    snapshots.me = 1
    assert snapshots.others() == [b"third"]
