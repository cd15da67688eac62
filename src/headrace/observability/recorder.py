"""Recording calls: one append to a journal on the hot path, the store behind it.

What is promised is in docs/records.md: a recorded call survives the end of the process, whatever
ended it; a call that could not be written is counted in `Recorder.lost`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from headrace.observability.journal import MAX_ENTRY_BYTES, Journal, Segment
from headrace.observability.record import CallRecord
from headrace.observability.store import CallStore, store_url

BATCH = 128  # records in one transaction; more would hold the interpreter from the event loop
SEGMENT_BYTES = 4 * 1024 * 1024
MAX_BYTES = 256 * 1024 * 1024
GATHER_SECONDS = 0.5  # how long records are let gather before they are moved
SYNC_SECONDS = 1.0  # how much a power cut may take
ADOPT_SECONDS = 10.0  # how often the segments of dead processes are looked for
RETRY_SECONDS = 1.0  # after the store or the disk failed

log = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(CallRecord).decode


class Recorder:
    """Takes the record of each call; a thread moves them from the journal to the store."""

    def __init__(self, journal: Journal, store: CallStore, *, owns_store: bool) -> None:
        self.store = store
        self._journal = journal
        self._owns_store = owns_store
        self._counts = threading.Lock()
        self._lost = 0
        self._losing = False
        self._fault = ""  # why the last move failed
        self._wake = threading.Event()  # there is something to move
        self._hurry = threading.Event()  # do not let more gather
        self._turn = threading.Condition()
        self._asked = 0  # flushes asked for, and the last that was done
        self._done = 0
        self._stopping = False
        self._adopt_at = self._sync_at = 0.0
        self._thread = threading.Thread(target=self._run, name="call-recorder", daemon=True)

    @classmethod
    def open(
        cls,
        directory: Path,
        store: CallStore | None = None,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        max_bytes: int = MAX_BYTES,
    ) -> Recorder:
        """Open the journal in `directory` and replay what an earlier process left there.

        `store` is the embedded one in the same directory unless given (and then left open by
        `close`). Raises OSError or sqlalchemy.exc.SQLAlchemyError if either cannot be opened.
        """
        journal = Journal(directory / "journal", segment_bytes=segment_bytes, max_bytes=max_bytes)
        opened = store or CallStore(store_url(directory))
        recorder = cls(journal, opened, owns_store=store is None)
        recorder._wake.set()
        recorder._thread.start()
        return recorder

    @property
    def lost(self) -> int:
        """Calls that were not recorded, and journal entries that could not be read back."""
        return self._lost

    @property
    def losing(self) -> bool:
        """Whether the last call could not be recorded."""
        return self._losing

    def record(self, record: CallRecord) -> None:
        """Write one call to the journal. Never raises: a call that cannot be written is lost."""
        try:
            self._journal.append(_payload(record))
        except Exception as error:  # a full disk, or a record that cannot be encoded
            self._lose(f"The call log cannot be written: {error}")
            return
        if self._losing:
            self._losing = False
            log.warning("The call log is being written again; %d calls were lost.", self._lost)
        if not self._wake.is_set():
            self._wake.set()

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until everything recorded so far is in the store; False if `timeout` passed."""
        with self._turn:
            self._asked += 1
            mine = self._asked
            self._hurry.set()
            self._wake.set()
            return self._turn.wait_for(lambda: self._done >= mine, timeout)

    def close(self, timeout: float = 10.0) -> None:
        """Flush and stop. What could not be stored stays in the journal for the next start."""
        if self._stopping:
            return
        self.flush(timeout)
        self._stopping = True
        self._hurry.set()
        self._wake.set()
        self._thread.join()
        self._journal.close()
        if self._owns_store:
            self.store.close()

    def _lose(self, why: str) -> None:
        with self._counts:
            self._lost += 1
            first, self._losing = not self._losing, True
        if first:
            log.error("%s Calls are answered, but not logged.", why)

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(ADOPT_SECONDS)
            self._hurry.wait(GATHER_SECONDS)
            with self._turn:
                asked = self._asked
                self._wake.clear()
                self._hurry.clear()
            if self._move():
                self._fault = ""
                with self._turn:
                    self._done = asked
                    self._turn.notify_all()
            else:
                self._wake.set()
                self._hurry.wait(RETRY_SECONDS)

    def _move(self) -> bool:
        """Move all that is in the journal now to the store; whether that worked."""
        if time.monotonic() >= self._adopt_at or self._asked > self._done:
            self._adopt_at = time.monotonic() + ADOPT_SECONDS
            self._try(self._journal.adopt)
        synced = self._try(self._sync)
        segments = self._journal.segments()
        # all of them are tried: one that cannot be moved stops no other
        moved = [self._try(partial(self._move_segment, segment)) for segment in segments]
        return synced and all(moved)

    def _sync(self) -> None:
        if time.monotonic() >= self._sync_at:
            self._sync_at = time.monotonic() + SYNC_SECONDS
            self._journal.sync()

    def _try(self, step: Callable[[], None]) -> bool:
        try:
            step()
        except Exception as error:
            if str(error) != self._fault:  # once, not at every try
                log.error("The call log cannot be moved to its store: %s", error)
            self._fault = str(error)
            return False
        return True

    def _move_segment(self, segment: Segment) -> None:
        sealed = segment.sealed  # read before `end`, which is final if this is set
        end = segment.end
        while segment.moved < end:
            self._move_batch(segment)
            self._sync()
        if sealed and segment.stored:
            self._journal.retire(segment)

    def _move_batch(self, segment: Segment) -> None:
        found = segment.read(BATCH)
        records = []
        unreadable = found.corrupt
        for entry in found.entries:
            try:
                records.append(_decode(entry))
            except msgspec.DecodeError:
                unreadable += 1
        refused = self._store(records)
        segment.moved += found.consumed
        if unreadable or refused:
            with self._counts:
                self._lost += unreadable + refused
            log.error(
                "%s: %d entries could not be read, %d were refused by the store.",
                segment.path.name,
                unreadable,
                refused,
            )

    def _store(self, records: list[CallRecord]) -> int:
        """Insert the records; the number of those that the store cannot hold.

        One bad record must not hold up the others. Raises DBAPIError if the store itself does not
        work now: then the records stay in the journal.
        """
        try:
            self.store.insert(records)
        except Exception as error:
            if isinstance(error, DBAPIError) and not isinstance(error, DataError | IntegrityError):
                raise
            if len(records) == 1:
                log.exception("The store refused the record of call %s.", records[0].id)
                return 1
            return sum(self._store([record]) for record in records)
        return 0


def _payload(record: CallRecord) -> bytes:
    """The record as journal bytes; without its content if that cannot be written."""
    try:
        payload = _encode(record)
        if len(payload) <= MAX_ENTRY_BYTES:
            return payload
    except (TypeError, ValueError, OverflowError, RecursionError):
        log.exception("The content of call %s cannot be encoded.", record.id)
    return _encode(msgspec.structs.replace(record, input=None, output=None))
