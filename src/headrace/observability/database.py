"""Opening a database: what is particular to SQLite or PostgreSQL, and the migrations."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from sqlite3 import Connection as SQLiteConnection
from sqlite3 import Cursor, OperationalError
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, inspect, make_url, text
from sqlalchemy.dialects import postgresql, sqlite

from headrace.protocol.errors import ServiceError

# Imported where tables are made or changed: Alembic takes 8 MB that nobody needs after that.
UPGRADE = "headrace.observability.upgrade"
MIGRATION_LOCK = 0x48656164  # any constant: the key of PostgreSQL's advisory lock
BUSY_SECONDS = 10

_INSERTS: dict[str, Callable[[Table], sqlite.Insert | postgresql.Insert]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}


def open_engine(url: str) -> Engine:
    """An engine for `url`; SQLite is set to WAL, and a commit survives a power cut.

    Raises ValueError for a database that is neither SQLite (in a file) nor PostgreSQL.
    """
    parsed = make_url(url)
    dialect = parsed.get_backend_name()
    if dialect not in _INSERTS:
        raise ValueError(f"The call log needs a sqlite or postgresql URL, not '{dialect}'.")
    if dialect == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise ValueError("The call log needs a SQLite file, not a database in memory.")
        Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, hide_parameters=True)  # no content in error messages
    if dialect == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
    return engine


def _prepare_sqlite(connection: SQLiteConnection, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    _enter_wal(cursor)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _enter_wal(cursor: Cursor) -> None:
    """Set the journal to WAL. The change needs the file for itself for a moment, and SQLite does
    not always wait its busy time-out for that: where others open the file too, it is tried again.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def insert_new(
    connection: Connection, table: Table, key: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Insert the rows whose unique columns `key` are not in the table yet; no other changes."""
    statement = _INSERTS[connection.dialect.name](table)
    connection.execute(statement.on_conflict_do_nothing(index_elements=key), rows)


@contextmanager
def locked(engine: Engine) -> Iterator[Connection]:
    """A transaction in which nobody else writes what it has read: PostgreSQL's by `FOR UPDATE`,
    SQLite's as a whole, since that takes its lock at the first write unless told to do so at once.
    """
    with engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection
        connection.commit()


def migrate(engine: Engine, versions: Path, version_table: str, head: str) -> None:
    """Bring the tables that `versions` describes to revision `head`.

    `version_table` holds the revision reached. Of several processes that start at once, one
    migrates and the others wait for it. Raises ServiceError if the tables are at a revision that
    this version does not know.
    """
    with engine.connect() as connection:
        if _revision(connection, version_table) == head:
            return
    with engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
        if _revision(connection, version_table) != head:
            upgrade = import_module(UPGRADE).upgrade
            if not upgrade(connection, versions, version_table, head):
                raise ServiceError(
                    "The call log was written by a newer version of Headrace "
                    f"(its revision is {_revision(connection, version_table)})."
                )
        connection.commit()


def _revision(connection: Connection, version_table: str) -> str | None:
    if not inspect(connection).has_table(version_table):
        return None
    return connection.execute(text(f"SELECT version_num FROM {version_table}")).scalar()
