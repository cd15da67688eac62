"""Files and batches at rest: one row each in the data directory's database, the bytes of files
beside it in `files/`, each under its id."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Engine,
    Integer,
    MetaData,
    Select,
    Table,
    Text,
    delete,
    func,
    insert,
    select,
    update,
)

from headrace.observability.database import locked, migrate
from headrace.protocol.openai_batches import Batch, File

VERSIONS = Path(__file__).parents[1] / "migrations" / "offline"
HEAD = "offline_0001"
FOLDER = "files"
KEPT = 30 * 86_400  # seconds that a file is kept where nothing else is said, as at OpenAI

_metadata = MetaData()
files_table = Table(
    "files",
    _metadata,
    Column("sequence", Integer, primary_key=True),
    Column("id", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("body", Text, nullable=False),  # the file's object, JSON
)
batches_table = Table(
    "batches",
    _metadata,
    Column("sequence", Integer, primary_key=True),
    Column("id", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("live", Boolean, nullable=False),
    Column("body", Text, nullable=False),  # the batch's object, JSON
)
_files, _batches = files_table.c, batches_table.c
_encode = msgspec.json.Encoder().encode
_file = msgspec.json.Decoder(File).decode
_batch = msgspec.json.Decoder(Batch).decode

Change = Callable[[Batch], Batch]


SWEPT = 1000  # batches that are looked at in one sweep
REMEMBERED = KEPT + 2 * 86_400  # seconds that a batch is known: its window, and its files' time


class Full(Exception):
    """A tenant has as much as it may have."""


class OfflineStore:
    """Files and batches of a data directory. Its methods block, and may be called from any thread;
    they raise sqlalchemy.exc.SQLAlchemyError where the database cannot be used.

    A tenant is given its own and no others. The constructor brings the tables to the newest
    revision. `wall` gives Unix seconds: what has expired is not there.
    """

    def __init__(self, engine: Engine, directory: Path, wall: Callable[[], float]) -> None:
        self.folder = directory / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._engine = engine
        self._wall = wall
        migrate(engine, VERSIONS, "offline_version", HEAD)

    def path(self, file_id: str) -> Path:
        """Where the bytes of a file are."""
        return self.folder / file_id

    def add_file(self, file: File, tenant: str, most: int | None = None) -> None:
        """Store a file whose bytes are in place. Raises Full where all of the tenant's would be
        over `most` bytes."""
        with locked(self._engine) as connection:
            held = select(func.coalesce(func.sum(_files.bytes), 0)).where(_files.tenant == tenant)
            if most is not None and connection.execute(held).scalar_one() + file.bytes > most:
                raise Full
            row = {"id": file.id, "tenant": tenant, "purpose": file.purpose, "bytes": file.bytes}
            connection.execute(
                insert(files_table).values(
                    **row, expires_at=file.expires_at, body=_encode(file).decode()
                )
            )

    def file(self, file_id: str, tenant: str) -> File | None:
        """The tenant's file of this id, or None."""
        statement = self._files_of(tenant).where(_files.id == file_id)
        with self._engine.connect() as connection:
            row = connection.execute(statement).one_or_none()
        return None if row is None else _file(row.body)

    def files(
        self, tenant: str, purpose: str | None, after: str | None, limit: int, oldest: bool
    ) -> list[File]:
        """The tenant's files after the one of id `after`, in the order they came or backwards."""
        statement = self._files_of(tenant)
        if purpose is not None:
            statement = statement.where(_files.purpose == purpose)
        if after is not None:
            place = select(_files.sequence).where(_files.id == after).scalar_subquery()
            statement = statement.where(
                _files.sequence > place if oldest else _files.sequence < place
            )
        order = _files.sequence.asc() if oldest else _files.sequence.desc()
        with self._engine.connect() as connection:
            rows = connection.execute(statement.order_by(order).limit(limit))
            return [_file(row.body) for row in rows]

    def drop_file(self, file_id: str, tenant: str) -> bool:
        """Forget a file, its bytes too; whether there was one."""
        statement = delete(files_table).where(_files.id == file_id, _files.tenant == tenant)
        with locked(self._engine) as connection:
            found = connection.execute(statement).rowcount > 0
        if found:
            self.path(file_id).unlink(missing_ok=True)
        return found

    def sweep(self) -> None:
        """Forget files that have expired, the batches whose files have all expired, and the bytes
        of uploads that never became files."""
        now = self._wall()
        expired = select(_files.id).where(_files.expires_at <= now)
        ended = select(_batches.sequence, _batches.body).where(_batches.live.is_(False))
        oldest = ended.order_by(_batches.sequence).limit(SWEPT)
        with locked(self._engine) as connection:
            gone = [row.id for row in connection.execute(expired)]
            connection.execute(delete(files_table).where(_files.id.in_(gone)))
            over = [
                row.sequence
                for row in connection.execute(oldest)
                if _batch(row.body).created_at <= now - REMEMBERED
            ]
            connection.execute(delete(batches_table).where(_batches.sequence.in_(over)))
        for file_id in gone:
            self.path(file_id).unlink(missing_ok=True)
        for left in self.folder.glob(".upload-*"):
            if left.stat().st_mtime < now - 86_400:
                left.unlink(missing_ok=True)

    def add_batch(self, batch: Batch, tenant: str, most: int) -> None:
        """Store a new batch. Raises Full where the tenant has `most` that are not over."""
        with locked(self._engine) as connection:
            waiting = select(func.count()).where(_batches.tenant == tenant, _batches.live)
            if connection.execute(waiting).scalar_one() >= most:
                raise Full
            row = {"id": batch.id, "tenant": tenant, "live": batch.live}
            connection.execute(insert(batches_table).values(**row, body=_encode(batch).decode()))

    def batch(self, batch_id: str, tenant: str) -> Batch | None:
        """The tenant's batch of this id, or None."""
        statement = select(_batches.body).where(_batches.id == batch_id)
        with self._engine.connect() as connection:
            row = connection.execute(statement.where(_batches.tenant == tenant)).one_or_none()
        return None if row is None else _batch(row.body)

    def batches(self, tenant: str, after: str | None, limit: int) -> list[Batch]:
        """The tenant's batches, the newest first, after the one of id `after`."""
        statement = select(_batches.body).where(_batches.tenant == tenant)
        if after is not None:
            place = select(_batches.sequence).where(_batches.id == after).scalar_subquery()
            statement = statement.where(_batches.sequence < place)
        with self._engine.connect() as connection:
            rows = connection.execute(statement.order_by(_batches.sequence.desc()).limit(limit))
            return [_batch(row.body) for row in rows]

    def live(self) -> list[tuple[str, str]]:
        """Whose, and the ids, of all batches that are not over: every tenant's oldest first, then
        every tenant's second."""
        turn = func.row_number().over(partition_by=_batches.tenant, order_by=_batches.sequence)
        statement = select(_batches.tenant, _batches.id).where(_batches.live)
        with self._engine.connect() as connection:
            rows = connection.execute(statement.order_by(turn, _batches.sequence))
            return [(row.tenant, row.id) for row in rows]

    def change(self, batch_id: str, change: Change) -> Batch:
        """Put `change` of a batch in its place, in one step; the new one."""
        mine = _batches.id == batch_id
        with locked(self._engine) as connection:
            before = select(_batches.body).where(mine).with_for_update()
            batch = change(_batch(connection.execute(before).scalar_one()))
            values = {"live": batch.live, "body": _encode(batch).decode()}
            connection.execute(update(batches_table).where(mine).values(values))
        return batch

    def _files_of(self, tenant: str) -> Select[Any]:
        alive = _files.expires_at.is_(None) | (_files.expires_at > self._wall())
        return select(_files.body).where(_files.tenant == tenant, alive)
