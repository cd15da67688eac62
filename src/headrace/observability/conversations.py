"""Stored responses: what a conversation goes on from, and what is read back by its id."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct
from sqlalchemy import (
    Column,
    Connection,
    Double,
    Engine,
    MetaData,
    Table,
    Text,
    delete,
    insert,
    select,
)

from headrace.observability.database import migrate
from headrace.protocol.generation import Message

VERSIONS = Path(__file__).parent / "migrations" / "conversations"
HEAD = "conversations_0001"
KEPT = 30 * 86400.0  # seconds a response is kept, as at OpenAI
SWEEP = 3600.0  # seconds between two looks for those that are older

responses_table = Table(
    "responses",
    MetaData(),
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("body", Text, nullable=False),  # the response, JSON
    Column("messages", Text, nullable=False),  # the conversation up to its answer, JSON
)
_columns = responses_table.c
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[Message, ...]).decode


class StoredResponse(Struct, frozen=True, kw_only=True):
    """One response. `created_at` is Unix time in seconds; `messages` end with its answer."""

    id: str
    tenant: str
    created_at: float
    body: bytes
    messages: tuple[Message, ...]


class Conversations:
    """Stored responses in the log's database. Its methods block, and may be called from any
    thread; they raise sqlalchemy.exc.SQLAlchemyError where the database cannot be used.

    The constructor brings its table to the newest revision. What is over `KEPT` old is not there,
    and dropped now and then. `wall` gives Unix seconds.
    """

    def __init__(self, engine: Engine, wall: Callable[[], float]) -> None:
        self._engine = engine
        self._wall = wall
        migrate(engine, VERSIONS, "conversations_version", HEAD)
        with engine.begin() as connection:
            self._sweep(connection)

    def keep(self, response: StoredResponse) -> None:
        """Store a response, durably."""
        with self._engine.begin() as connection:
            if self._wall() >= self._swept + SWEEP:
                self._sweep(connection)
            connection.execute(
                insert(responses_table).values(
                    id=response.id,
                    tenant=response.tenant,
                    created_at=response.created_at,
                    body=response.body.decode(),
                    messages=_encode(response.messages).decode(),
                )
            )

    def find(self, id: str, tenant: str) -> StoredResponse | None:
        """The tenant's response with this id, or None."""
        oldest = self._wall() - KEPT
        statement = select(responses_table).where(
            _columns.id == id, _columns.tenant == tenant, _columns.created_at >= oldest
        )
        with self._engine.connect() as connection:
            row = connection.execute(statement).one_or_none()
        if row is None:
            return None
        return StoredResponse(
            id=row.id,
            tenant=row.tenant,
            created_at=row.created_at,
            body=row.body.encode(),
            messages=_decode(row.messages),
        )

    def drop(self, id: str, tenant: str) -> bool:
        """Forget the tenant's response with this id; whether there was one."""
        statement = delete(responses_table).where(_columns.id == id, _columns.tenant == tenant)
        with self._engine.begin() as connection:
            return connection.execute(statement).rowcount > 0

    def _sweep(self, connection: Connection) -> None:
        self._swept = self._wall()
        oldest = self._swept - KEPT
        connection.execute(delete(responses_table).where(_columns.created_at < oldest))
