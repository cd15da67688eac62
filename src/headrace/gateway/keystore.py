"""Keys at rest: who may call, within what, and what each has spent.

Only a digest of a key is stored: it is random and long, so SHA-256 alone keeps it. Money is held by
leases: a server takes a part of a key's budget, spends from it in memory, and tells the store once
a second. What is spent and what is leased never exceed the budget together, however many servers
there are; a server that dies keeps its lease until `LEASE_SECONDS` are over.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import (
    Column,
    Connection,
    Double,
    Integer,
    MetaData,
    Row,
    Table,
    Text,
    delete,
    func,
    insert,
    select,
    update,
)

from headrace.observability.database import locked, migrate, open_engine

VERSIONS = Path(__file__).parent / "migrations" / "versions"
HEAD = "keys_0001"
PREFIX = "hr-"
LEASE_SECONDS = 60.0
FILE = "keys.db"

_metadata = MetaData()
keys_table = Table(
    "keys",
    _metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("hint", Text, nullable=False),
    Column("budget", Double),
    Column("spent", Double, nullable=False),
    Column("rpm", Integer),
    Column("tpm", Integer),
    Column("concurrent", Integer),
    Column("models", Text, nullable=False),  # JSON list; empty: all
    Column("created", Double, nullable=False),
    Column("expires", Double),
    Column("revoked", Double),
)
leases_table = Table(
    "leases",
    _metadata,
    Column("key_id", Text, primary_key=True),
    Column("holder", Text, primary_key=True),
    Column("amount", Double, nullable=False),
    Column("until", Double, nullable=False),
)
_keys, _leases = keys_table.c, leases_table.c


class Key(Struct, frozen=True, kw_only=True):
    """One key; None is no limit. Money in dollars, times in Unix seconds.

    `name` is also the tenant of its calls. `hint` shows which secret it is, without telling it.
    """

    id: str
    name: str
    digest: str
    hint: str
    budget: float | None = None
    spent: float = 0.0
    rpm: int | None = None
    tpm: int | None = None
    concurrent: int | None = None
    models: tuple[str, ...] = ()
    created: float = 0.0
    expires: float | None = None
    revoked: float | None = None


class KeyExists(Exception):
    """The name is taken; a name is never used twice, since it is a tenant."""


def digest_of(secret: str) -> str:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def has_keys(directory: Path) -> bool:
    """Whether a data directory holds a key that is good."""
    if not (directory / FILE).exists():
        return False
    store = KeyStore.within(directory)
    try:
        return any(key.revoked is None for key in store.every())
    finally:
        store.close()


class KeyStore:
    """Keys in a database. Its methods block, and may be called from any thread.

    `clock` gives Unix seconds.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.time) -> None:
        self._engine = open_engine(url)
        self._clock = clock
        migrate(self._engine, VERSIONS, "keys_version", HEAD)

    @classmethod
    def within(cls, directory: Path) -> KeyStore:
        """The embedded store of a data directory."""
        return cls(f"sqlite:///{directory / FILE}")

    def create(self, key: Key) -> tuple[Key, str]:
        """Store a new key with the limits of `key`; it and its secret, which is told only now.

        Raises KeyExists.
        """
        secret = PREFIX + secrets.token_urlsafe(32)
        made = msgspec.structs.replace(
            key,
            id=f"key_{secrets.token_hex(8)}",
            digest=digest_of(secret),
            hint=f"{secret[:7]}...{secret[-4:]}",
            created=self._clock(),
        )
        row = {**msgspec.to_builtins(made), "models": msgspec.json.encode(made.models).decode()}
        with locked(self._engine) as connection:
            taken = select(_keys.id).where(_keys.name == key.name)
            if connection.execute(taken).first() is not None:
                raise KeyExists(key.name)
            connection.execute(insert(keys_table).values(row))
        return made, secret

    def every(self) -> list[Key]:
        """Every key, the oldest first."""
        with self._engine.connect() as connection:
            rows = connection.execute(select(keys_table).order_by(_keys.created))
            return [_key(row) for row in rows]

    def revoke(self, name: str) -> bool:
        """Revoke the key of this name or id; whether there was one to revoke."""
        named = (_keys.name == name) | (_keys.id == name)
        change = update(keys_table).where(named, _keys.revoked.is_(None))
        with self._engine.begin() as connection:
            return connection.execute(change.values(revoked=self._clock())).rowcount > 0

    def changed(self) -> tuple[int, float]:
        """A mark that differs when a key was made or revoked."""
        marks = select(func.count(), func.coalesce(func.sum(_keys.revoked), 0.0))
        with self._engine.connect() as connection:
            row = connection.execute(marks.select_from(keys_table)).one()
            return int(row[0]), float(row[1])

    def lease(self, key_id: str, holder: str, least: float, wanted: float) -> float:
        """Hold more of a budget for `holder`: `wanted` dollars, or what is left if that is at
        least `least`, else 0."""
        now = self._clock()
        with locked(self._engine) as connection:
            connection.execute(delete(leases_table).where(_leases.until < now))
            key = select(_keys.budget, _keys.spent).where(_keys.id == key_id).with_for_update()
            row = connection.execute(key).one()
            held = select(func.coalesce(func.sum(_leases.amount), 0.0))
            leased = connection.execute(held.where(_leases.key_id == key_id)).scalar_one()
            left = row.budget - row.spent - leased
            granted = min(wanted, left)
            if granted < least:
                return 0.0
            self._hold(connection, key_id, holder, granted, now)
            return float(granted)

    def settle(self, key_id: str, holder: str, spent: float, returned: float) -> None:
        """Tell what `holder` spent of its lease and what it gives back; the rest is held on."""
        now = self._clock()
        with locked(self._engine) as connection:
            spending = update(keys_table).where(_keys.id == key_id)
            connection.execute(spending.values(spent=_keys.spent + spent))
            self._hold(connection, key_id, holder, -(spent + returned), now)

    def close(self) -> None:
        """Close the database's connections."""
        self._engine.dispose()

    @staticmethod
    def _hold(connection: Connection, key_id: str, holder: str, more: float, now: float) -> None:
        mine = (_leases.key_id == key_id) & (_leases.holder == holder)
        values = {"amount": _leases.amount + more, "until": now + LEASE_SECONDS}
        changed = connection.execute(update(leases_table).where(mine).values(values))
        if changed.rowcount == 0 and more > 0:
            row = {"key_id": key_id, "holder": holder, "amount": more}
            connection.execute(insert(leases_table).values(until=now + LEASE_SECONDS, **row))


def _key(row: Row[Any]) -> Key:
    fields = dict(zip(Key.__struct_fields__, row, strict=True))  # the columns are its fields
    return msgspec.convert({**fields, "models": msgspec.json.decode(fields["models"])}, Key)
