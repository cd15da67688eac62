"""The store of calls: one row per call, the newest first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Double,
    Engine,
    Integer,
    MetaData,
    Select,
    Table,
    Text,
    case,
    func,
    select,
)

from headrace.observability.database import insert_new, migrate, open_engine
from headrace.observability.record import CacheOutcome, CallRecord, CallStatus

VERSIONS = Path(__file__).parent / "migrations" / "versions"
HEAD = "calls_0001"
PAGE = 500
IDENTITY = ("id", "started_at")

calls_table = Table(
    "calls",
    MetaData(),
    Column("sequence", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("id", Text, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("model", Text, nullable=False),  # that served, or was asked for where none served
    Column("provider", Text),
    Column("route", Text),
    Column("status", Text, nullable=False),
    Column("cache", Text, nullable=False),
    Column("duration", Double, nullable=False),
    Column("ttft", Double),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("cost", Double, nullable=False),
    Column("record", Text, nullable=False),  # the whole record, JSON
)
_columns = calls_table.c
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(CallRecord).decode


class CallFilter(Struct, frozen=True, kw_only=True):
    """Which calls; all that is given must hold. Times are Unix seconds of the call's start.

    `model` is the model that served the call, or the one asked for where none served it. `before`
    is the id of a call: only those stored before it, so that the last of one page gives the next.
    """

    since: float | None = None
    until: float | None = None
    model: str | None = None
    provider: str | None = None
    status: CallStatus | None = None
    route: str | None = None
    cache: CacheOutcome | None = None
    before: str | None = None
    limit: int = 100


EVERY_CALL = CallFilter()


class Summary(Struct, frozen=True, kw_only=True):
    """Sums over calls; times in seconds (None where no call had one), money in dollars."""

    calls: int
    errors: int
    cancelled: int
    cache_hits: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cost: float
    ttft_p50: float | None
    ttft_p95: float | None


def store_url(directory: Path) -> str:
    """The URL of the embedded store in a data directory."""
    return f"sqlite:///{directory / 'calls.db'}"


class CallStore:
    """Calls in a database. Its methods block, and may be called from any thread.

    The constructor opens the database and brings its tables to the newest revision.
    """

    def __init__(self, url: str) -> None:
        self.engine: Engine = open_engine(url)
        migrate(self.engine, VERSIONS, "calls_version", HEAD)

    def insert(self, records: Sequence[CallRecord]) -> None:
        """Store the records, durably; those stored already are left as they are.

        A record is the same if both its id and its start are: an id may come from a caller, who
        may use it again.

        Raises sqlalchemy.exc.SQLAlchemyError or OverflowError; then none was stored.
        """
        if not records:
            return
        with self.engine.begin() as connection:
            insert_new(connection, calls_table, IDENTITY, [_row(record) for record in records])

    def calls(self, which: CallFilter = EVERY_CALL) -> list[CallRecord]:
        """The calls that match, the one stored last first."""
        statement = _matching(which).order_by(_columns.sequence.desc()).limit(which.limit)
        if which.before is not None:
            statement = statement.where(_columns.sequence < _sequence_of(which.before))
        return self._records(statement)

    def calls_after(self, call_id: str | None, which: CallFilter = EVERY_CALL) -> list[CallRecord]:
        """The calls that match and were stored after `call_id` (None: all), the oldest first."""
        statement = _matching(which).order_by(_columns.sequence).limit(which.limit)
        if call_id is not None:
            statement = statement.where(_columns.sequence > _sequence_of(call_id))
        return self._records(statement)

    def all_calls(self, which: CallFilter = EVERY_CALL) -> Iterator[CallRecord]:
        """Every call that matches, oldest first, read page by page; `limit` does not count."""
        last: str | None = None
        while page := self.calls_after(last, msgspec.structs.replace(which, limit=PAGE)):
            yield from page
            last = page[-1].id

    def call(self, call_id: str) -> CallRecord | None:
        """The call with this id (the last one stored, if several have it), or None."""
        statement = select(_columns.record).where(_columns.id == call_id)
        found = self._records(statement.order_by(_columns.sequence.desc()).limit(1))
        return found[0] if found else None

    def summary(self, since: float) -> Summary:
        """Sums over the calls that started at `since` (Unix seconds) or later."""
        total = func.sum
        statement = select(
            func.count(),
            _count(_columns.status == "error"),
            _count(_columns.status == "cancelled"),
            _count(_columns.cache.in_(("hit", "shared"))),
            func.coalesce(total(_columns.prompt_tokens), 0),
            func.coalesce(total(_columns.completion_tokens), 0),
            func.coalesce(total(_columns.cached_tokens), 0),
            func.coalesce(total(_columns.cost), 0.0),
            func.count(_columns.ttft),
        ).where(_columns.started_at >= since)
        with self.engine.connect() as connection:
            row = connection.execute(statement).one()
            timed = int(row[8])
            p50, p95 = (
                connection.execute(_ranked_ttft(since, timed, quantile)).scalar()
                for quantile in (0.5, 0.95)
            )
        counts = [int(value) for value in row[:7]]
        return Summary(
            calls=counts[0],
            errors=counts[1],
            cancelled=counts[2],
            cache_hits=counts[3],
            prompt_tokens=counts[4],
            completion_tokens=counts[5],
            cached_tokens=counts[6],
            cost=float(row[7]),
            ttft_p50=p50,
            ttft_p95=p95,
        )

    def close(self) -> None:
        """Close the database's connections."""
        self.engine.dispose()

    def _records(self, statement: Select[str]) -> list[CallRecord]:
        with self.engine.connect() as connection:
            return [_decode(text) for text in connection.execute(statement).scalars()]


def _row(record: CallRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "started_at": record.started_at,
        "tenant": record.tenant,
        "model": record.served_model or record.model,
        "provider": record.provider,
        "route": record.route,
        "status": record.status,
        "cache": record.cache,
        "duration": record.duration,
        "ttft": record.ttft,
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "cached_tokens": record.cached_tokens,
        "cost": record.cost or 0.0,  # the record itself says where it is not known
        "record": _encode(record).decode(),
    }


def _matching(which: CallFilter) -> Select[str]:
    statement = select(_columns.record)
    equal: tuple[Literal["model", "provider", "status", "route", "cache"], ...]
    equal = ("model", "provider", "status", "route", "cache")
    for name in equal:
        value = getattr(which, name)
        if value is not None:
            statement = statement.where(_columns[name] == value)
    if which.since is not None:
        statement = statement.where(_columns.started_at >= which.since)
    if which.until is not None:
        statement = statement.where(_columns.started_at < which.until)
    return statement


def _sequence_of(call_id: str) -> Any:
    return select(func.max(_columns.sequence)).where(_columns.id == call_id).scalar_subquery()


def _count(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)


def _ranked_ttft(since: float, timed: int, quantile: float) -> Select[float | None]:
    """The TTFT at the nearest rank of `quantile` among `timed` values."""
    rank = max(0, -int(-quantile * timed // 1) - 1)
    return (
        select(_columns.ttft)
        .where(_columns.started_at >= since, _columns.ttft.is_not(None))
        .order_by(_columns.ttft)
        .offset(rank)
        .limit(1)
    )
