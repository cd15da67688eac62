"""One batch, from its check to its files.

What it has done is in its ledger, so it can be begun again at any moment: a line that is in the
output is not asked again, one that was under way is. Lines that our own limits or an upstream's put
off are asked again until the batch expires; those that an upstream fails are told as failed after
some tries.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from headrace.gateway.disconnect import ClientGone
from headrace.gateway.keyring import Charge
from headrace.gateway.offline.asking import Answer, Turns, ask, unless
from headrace.gateway.offline.ledger import Ledger
from headrace.gateway.offline.lines import (
    ENDPOINTS,
    MAX_LINES,
    Line,
    LineFile,
    RawLine,
    checked,
    read_line,
)
from headrace.gateway.offline.store import KEPT, OfflineStore
from headrace.gateway.pipeline import Generations
from headrace.gateway.services import Services
from headrace.protocol.anthropic_answer import OVERLOADED
from headrace.protocol.errors import AuthenticationRequired, BudgetSpent, ModelNotFound
from headrace.protocol.generation import Endpoint
from headrace.protocol.openai_batches import (
    Batch,
    BatchStatus,
    File,
    LineProblem,
    LineProblems,
    RequestCounts,
)
from headrace.router.rules import known_names

SHOWN = 100  # problems that the batch's object lists
TICK = 1.0  # seconds between two looks at the store
TRIES = 3  # of a line that an upstream fails
SOONEST, LATEST = 0.5, 60.0  # seconds after which a line is asked again
SPENT = BudgetSpent.code
FULL_DISK = 5.0  # seconds before a line is written again that could not be

log = logging.getLogger(__name__)


class Execution:
    """A batch under way, `batch` being what the store says of it."""

    def __init__(
        self,
        services: Services,
        endpoints: Mapping[Endpoint, Generations],
        store: OfflineStore,
        turns: Turns,
        tenant: str,
        batch: Batch,
    ) -> None:
        self.batch = batch
        self._services = services
        self._endpoint = endpoints[ENDPOINTS[batch.endpoint]]
        self._store = store
        self._turns = turns
        self._tenant = tenant
        self._halt = asyncio.Event()  # no further line is asked, and those under way hang up
        self._news = asyncio.Event()  # the store may say something else
        self._stopped = False

    def poke(self) -> None:
        """Look at the store now: somebody may have cancelled it."""
        self._news.set()

    def stop(self) -> None:
        """Leave it as it is, to be gone on with later."""
        self._stopped = True
        self._halt.set()

    async def run(self) -> None:
        """Carry the batch to its end, or until it is stopped."""
        try:
            if self.batch.status == "validating":
                await self._validate()
            if self._stopped or not self.batch.live:
                return
            ledger = await asyncio.to_thread(Ledger, self._path("output"), self._path("errors"))
            try:
                if self.batch.status == "in_progress":
                    await self._ask_all(ledger)
                if self._expired and self.batch.status == "in_progress" and not self._stopped:
                    await self._tell_expired(ledger)
            finally:
                await asyncio.to_thread(ledger.close)
            if not self._stopped:
                await self._finish(ledger)
        except FileNotFoundError:
            await self._fail([LineProblem(code="not_found", message="The input file is gone.")])
        except AuthenticationRequired as error:  # its key was revoked, or has expired
            await self._fail([LineProblem(code="invalid_api_key", message=error.message)])

    @property
    def _expired(self) -> bool:
        return self._services.wall() >= self.batch.expires_at

    def _id(self, kind: str) -> str:
        """The id of the batch's output or errors, the same whenever it is begun again."""
        return f"file-{self.batch.id.removeprefix('batch_')}-{kind}"

    def _path(self, kind: str) -> Path:
        return self._store.path(self._id(kind))

    async def _pieces(self) -> AsyncGenerator[list[RawLine], None]:
        """The input, a few lines at a time. Raises FileNotFoundError where it is gone."""
        most = self._services.configuration.server.max_body_bytes
        path = self._store.path(self.batch.input_file_id)
        lines = await asyncio.to_thread(LineFile, path, most)
        try:
            while piece := await asyncio.to_thread(lines.take):
                yield piece
        finally:
            lines.close()

    async def _validate(self) -> None:
        """Look at every line before any is asked."""
        charge = Charge(holder=self._services.keyring.holder(self._tenant))
        known = frozenset(known_names(self._services.configuration))

        def permit(model: str) -> None:
            if model not in known:
                raise ModelNotFound(model)
            charge.permit(model)

        problems: list[LineProblem] = []
        seen: set[str] = set()
        total = 0
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                if self._stopped:
                    return
                total += len(piece)
                if total > MAX_LINES:
                    said = f"The file has over {MAX_LINES} lines."
                    problems.append(LineProblem(code="too_many_lines", message=said))
                    break
                found = checked(piece, self.batch.endpoint, permit, seen)
                problems += await asyncio.to_thread(list, found)
        if not total:
            problems.append(LineProblem(code="empty_file", message="The file has no lines."))
        if problems:
            await self._fail(problems)
        else:
            counts = RequestCounts(total)
            await self._change("in_progress", request_counts=counts)

    async def _fail(self, problems: list[LineProblem]) -> None:
        """End the batch with what is wrong with it: the first of it in the batch's object, all of
        it in the error file."""
        self._halt.set()

        def write() -> None:
            with self._path("errors").open("ab") as errors:
                for problem in problems:
                    said = {"custom_id": None, "response": None, "error": problem}
                    errors.write(msgspec.json.encode({"id": self._id("errors"), **said}) + b"\n")

        await asyncio.to_thread(write)
        await self._publish()
        await self._change(
            "failed",
            errors=LineProblems(tuple(problems[:SHOWN])),
            output_file_id=await self._there("output"),
            error_file_id=await self._there("errors"),
        )

    async def _ask_all(self, ledger: Ledger) -> None:
        """Ask every line that is not done; ends early when it is cancelled or has expired."""
        watcher = asyncio.create_task(self._watch(ledger))
        places = asyncio.Semaphore(self._services.configuration.batches.concurrency)
        if self._expired:
            self._halt.set()
        try:
            async with aclosing(self._pieces()) as pieces, asyncio.TaskGroup() as group:
                async for line in self._left(pieces, ledger):
                    if self._halt.is_set():
                        break
                    await places.acquire()
                    task = group.create_task(self._one(line, ledger))
                    task.add_done_callback(lambda _: places.release())
        except* AuthenticationRequired as errors:
            raise errors.exceptions[0] from None
        finally:
            watcher.cancel()
            await asyncio.wait([watcher])
        await self._change(None, **self._progress(ledger))

    async def _left(
        self, pieces: AsyncIterator[list[RawLine]], ledger: Ledger
    ) -> AsyncIterator[Line]:
        async for piece in pieces:
            for number, raw in piece:
                line = read_line(number, raw, self.batch.endpoint)
                if line.custom_id not in ledger.done:
                    yield line

    async def _watch(self, ledger: Ledger) -> None:
        """Keep the store's counts near the truth, and see there when it is to end."""
        while not self._halt.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK):
                    await self._news.wait()
            self._news.clear()
            await self._change(None, **self._progress(ledger))
            if self.batch.status == "cancelling" or self._expired:
                self._halt.set()

    def _progress(self, ledger: Ledger) -> dict[str, Any]:
        total = self.batch.request_counts.total
        return {"request_counts": ledger.counts(total), "usage": ledger.usage}

    async def _one(self, line: Line, ledger: Ledger) -> None:
        """Ask one line until it has an answer that stands, and write it down."""
        try:
            answer = await self._answer(line)
        except BaseException:
            self._halt.set()  # those beside it hang up
            raise
        if answer is None:
            return
        response = {
            "status_code": answer.status,
            "request_id": answer.headers.get("x-request-id"),
            "body": answer.body,
        }
        await self._write(line, {"response": response, "error": None}, ledger)

    async def _answer(self, line: Line) -> Answer | None:
        wait, failures = SOONEST, 0
        while True:
            holder = self._services.keyring.holder(self._tenant)
            answer = await ask(self._endpoint, line.body, holder, self._turns, self._halt)
            if answer is None or answer.status < 400:
                return answer
            later = answer.status in (503, OVERLOADED) or (
                answer.status == 429 and answer.code != SPENT
            )
            if not later:
                failures += 1
                if answer.status < 500 or failures == TRIES:
                    return answer
            seconds = min(max(wait, answer.wait), LATEST)
            wait = min(2 * wait, LATEST)
            try:
                await unless(self._halt, asyncio.sleep(seconds))
            except ClientGone:
                return None

    async def _write(self, line: Line, said: dict[str, Any], ledger: Ledger) -> None:
        """Write down what came of a line; where the disk is full, later."""
        entry = {"id": f"batch_req_{self._services.new_id()}", "custom_id": line.custom_id, **said}
        while True:
            try:
                ledger.answered(line.custom_id, entry)
                return
            except OSError as error:
                log.error("Batch %s cannot be written: %s", self.batch.id, error)
                try:
                    await unless(self._halt, asyncio.sleep(FULL_DISK))
                except ClientGone:
                    return  # it is asked again when the batch is gone on with

    async def _tell_expired(self, ledger: Ledger) -> None:
        error = {
            "code": "batch_expired",
            "message": "This request was not executed before the completion window was over.",
        }
        async with aclosing(self._pieces()) as pieces:
            async for line in self._left(pieces, ledger):
                await self._write(line, {"response": None, "error": error}, ledger)

    async def _finish(self, ledger: Ledger) -> None:
        """Make files of what was written, and say that the batch is over."""
        ends: dict[BatchStatus, BatchStatus] = {"cancelling": "cancelled"}
        end = ends.get(self.batch.status, "completed")
        if end == "completed" and self._halt.is_set() and self._expired:
            end = "expired"
        if end == "completed":
            await self._change("finalizing", **self._progress(ledger))
        await self._publish()
        await self._change(
            end,
            **self._progress(ledger),
            output_file_id=await self._there("output"),
            error_file_id=await self._there("errors"),
        )

    async def _publish(self) -> None:
        """Make files of the output and the errors, where there is anything in them."""
        now = int(self._services.wall())
        for kind in ("output", "errors"):
            await asyncio.to_thread(self._publish_one, kind, now)

    def _publish_one(self, kind: str, now: int) -> None:
        path, id = self._path(kind), self._id(kind)
        size = path.stat().st_size if path.exists() else 0
        if not size:
            path.unlink(missing_ok=True)
            return
        if self._store.file(id, self._tenant) is None:
            file = File(
                id=id,
                bytes=size,
                created_at=now,
                expires_at=now + KEPT,
                filename=f"{self.batch.id}_{kind}.jsonl",
                purpose="batch_output",
            )
            self._store.add_file(file, self._tenant)

    async def _there(self, kind: str) -> str | None:
        found = await asyncio.to_thread(self._store.file, self._id(kind), self._tenant)
        return None if found is None else found.id

    async def _change(self, status: BatchStatus | None, **fields: Any) -> None:
        """Put fields of the batch in the store; its status too, but a batch that is being
        cancelled stays so until it is over."""
        now = int(self._services.wall())

        def change(stored: Batch) -> Batch:
            values = dict(fields)
            if status is not None and not (
                stored.status == "cancelling" and status in ("in_progress", "finalizing")
            ):
                values |= {"status": status, f"{status}_at": now}
            return structs.replace(stored, **values)

        self.batch = await asyncio.to_thread(self._store.change, self.batch.id, change)
