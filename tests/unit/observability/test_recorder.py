from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.observability.journal import header
from headrace.observability.recorder import Recorder
from headrace.observability.store import CallStore, store_url

from .calls import call

CHILD = """
import os, resource, sys
from pathlib import Path
from headrace.observability.recorder import Recorder
sys.path.insert(0, {tests!r})
from calls import call
recorder = Recorder.open(Path({directory!r}), segment_bytes=20_000)
"""
RECORD_FOREVER = """
number = 0
while True:
    recorder.record(call(f"c{number}"))
    os.write(1, f"c{number}\\n".encode())
    number += 1
"""
OUTGROW_THE_FILE_LIMIT = """
assert recorder.flush()
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
number = 0
while recorder.lost < 5:
    recorder.record(call(f"c{number}", output={"text": os.urandom(500).hex()}))
    number += 1
assert number > 5
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
recorder.record(call("last"))
assert recorder.flush()
stored = len(list(recorder.store.all_calls()))
assert stored == number + 1 - recorder.lost, (stored, number, recorder.lost)
assert recorder.store.call("last")
recorder.close()
"""


def child(script: str, directory: Path) -> subprocess.Popen[bytes]:
    head = CHILD.format(tests=str(Path(__file__).parent), directory=str(directory))
    return subprocess.Popen([sys.executable, "-c", head + script], stdout=subprocess.PIPE)


def stored_ids(directory: Path) -> list[str]:
    store = CallStore(store_url(directory))
    try:
        return [record.id for record in store.all_calls()]
    finally:
        store.close()


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    opened = Recorder.open(tmp_path)
    yield opened
    opened.close()


@pytest.mark.parametrize("acknowledged", [1, 40, 700])
def test_every_call_acknowledged_before_kill_9_is_in_the_log_after_a_restart(
    tmp_path: Path, acknowledged: int
) -> None:
    process = child(RECORD_FOREVER, tmp_path)
    assert process.stdout is not None
    seen = [process.stdout.readline().decode().strip() for _ in range(acknowledged)]
    os.kill(process.pid, signal.SIGKILL)
    rest = process.stdout.read().decode()
    seen += rest[: rest.rfind("\n") + 1].split()
    process.wait()
    process.stdout.close()

    reopened = Recorder.open(tmp_path)
    assert reopened.flush()
    stored = {record.id for record in reopened.store.all_calls()}
    assert reopened.lost == 0
    reopened.close()
    assert set(seen) <= stored
    assert list((tmp_path / "journal").iterdir()) == []


def test_a_limit_on_file_size_loses_calls_by_count_and_recovers(tmp_path: Path) -> None:
    process = child(OUTGROW_THE_FILE_LIMIT, tmp_path)
    process.communicate()
    assert process.returncode == 0


def test_on_a_full_disk_calls_are_counted_as_lost_and_logged_again_once_there_is_room(
    small_disk: Path,
) -> None:
    recorder = Recorder.open(small_disk)
    recorder.record(call("before"))
    assert recorder.flush()
    ballast = small_disk / "ballast"
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    ballast.write_bytes(b"\0" * (free - 20_000))
    number = 0
    while recorder.lost < 5:
        recorder.record(call(f"c{number}", output={"text": "z" * 1001}))
        number += 1
    ballast.unlink()
    recorder.record(call("after"))
    assert recorder.flush()
    stored = [record.id for record in recorder.store.all_calls()]
    assert stored[0] == "before"
    assert stored[-1] == "after"
    assert len(stored) == number + 2 - recorder.lost
    recorder.close()


def test_a_recorded_call_comes_back_as_it_was(recorder: Recorder) -> None:
    record = call("one", error="bad \ud7ff", engine={"queued": 0.1})
    recorder.record(record)
    assert recorder.flush()
    assert recorder.store.call("one") == record


def test_calls_keep_their_order(recorder: Recorder) -> None:
    ids = [f"c{number}" for number in range(1000)]
    for call_id in ids:
        recorder.record(call(call_id))
    assert recorder.flush()
    assert [record.id for record in recorder.store.all_calls()] == ids


def test_a_recorded_call_reaches_the_store_by_itself_and_soon(recorder: Recorder) -> None:
    assert recorder.flush()
    recorder.record(call("by-itself"))
    deadline = time.monotonic() + 5.0
    while recorder.store.call("by-itself") is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_threads_may_record_at_once(recorder: Recorder) -> None:
    def record(worker: int) -> None:
        for number in range(200):
            recorder.record(call(f"{worker}-{number}"))

    threads = [threading.Thread(target=record, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorder.flush()
    assert len({record.id for record in recorder.store.all_calls()}) == 1600
    assert recorder.lost == 0


def test_content_that_cannot_be_written_does_not_lose_the_call(recorder: Recorder) -> None:
    recorder.record(call("lone-surrogate", input={"text": "\ud800"}))
    recorder.record(call("too-large", output={"text": "x" * (65 * 1024 * 1024)}))
    assert recorder.flush()
    for call_id in ("lone-surrogate", "too-large"):
        stored = recorder.store.call(call_id)
        assert stored is not None
        assert stored.input is None
        assert stored.output is None
    assert recorder.lost == 0


def test_a_record_that_cannot_be_written_at_all_is_lost_by_count(recorder: Recorder) -> None:
    recorder.record(call("\udc80"))
    assert recorder.lost == 1


def test_a_file_of_another_users_in_the_journal_stops_nothing(tmp_path: Path) -> None:
    recorder = Recorder.open(tmp_path)
    (tmp_path / "journal" / "odd.journal").mkdir()
    (tmp_path / "journal" / "dangling.journal").symlink_to("nowhere")
    recorder.record(call("one"))
    assert recorder.flush()
    assert recorder.store.call("one") is not None
    recorder.close()


def test_an_id_that_a_caller_uses_again_names_two_calls(recorder: Recorder) -> None:
    recorder.record(call("mine", started_at=1.0))
    recorder.record(call("other"))
    recorder.record(call("mine", started_at=2.0))
    assert recorder.flush()
    assert [record.id for record in recorder.store.all_calls()] == ["mine", "other", "mine"]
    newest = recorder.store.call("mine")
    assert newest is not None
    assert newest.started_at == 2.0


def test_a_record_that_the_store_cannot_hold_is_lost_alone_and_not_repeated_in_the_log(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.record(call("good"))
    recorder.record(call("not-a-time", duration=float("nan"), tenant="secret"))
    recorder.record(call("also-good"))
    assert recorder.flush()
    assert [record.id for record in recorder.store.all_calls()] == ["good", "also-good"]
    assert recorder.lost == 1
    assert "refused the record of call not-a-time" in caplog.text
    assert "secret" not in caplog.text


def test_two_servers_share_a_directory(tmp_path: Path) -> None:
    first, second = Recorder.open(tmp_path), Recorder.open(tmp_path)
    for number in range(50):
        first.record(call(f"first-{number}"))
        second.record(call(f"second-{number}"))
    first.close()
    second.close()
    assert len(stored_ids(tmp_path)) == 100
    assert list((tmp_path / "journal").iterdir()) == []


def test_a_journal_left_half_stored_is_replayed_without_doubles(tmp_path: Path) -> None:
    first = Recorder.open(tmp_path)
    for number in range(10):
        first.record(call(f"c{number}"))
    assert first.flush()
    (segment,) = (tmp_path / "journal").iterdir()
    left = segment.read_bytes()
    first.close()
    (tmp_path / "journal" / "left.journal").write_bytes(left + left[:50])
    second = Recorder.open(tmp_path)
    assert second.flush()
    assert second.lost == 0
    second.close()
    assert len(stored_ids(tmp_path)) == 10


def test_an_unreadable_entry_is_counted_and_the_others_are_kept(tmp_path: Path) -> None:
    first = Recorder.open(tmp_path)
    first.record(call("a"))
    first.record(call("b"))
    assert first.flush()
    (segment,) = (tmp_path / "journal").iterdir()
    content = segment.read_bytes()
    first.close()
    alien = header(b"\xc1 no record") + b"\xc1 no record"
    damaged = bytearray(content.replace(b"world", b"w0rld", 1))
    other = tmp_path / "other"
    (other / "journal").mkdir(parents=True)
    (other / "journal" / "left.journal").write_bytes(bytes(damaged) + alien)
    second = Recorder.open(other)
    assert second.flush()
    assert second.lost == 2
    assert [record.id for record in second.store.all_calls()] == ["b"]
    second.close()


def test_a_locked_store_delays_calls_and_loses_none(tmp_path: Path) -> None:
    recorder = Recorder.open(tmp_path)
    blocker = sqlite3.connect(tmp_path / "calls.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    recorder.record(call("waits"))
    assert not recorder.flush(timeout=0.3)
    blocker.execute("ROLLBACK")
    blocker.close()
    assert recorder.flush()
    assert recorder.store.call("waits") is not None
    recorder.close()


def test_a_damaged_database_keeps_calls_in_the_journal_for_a_sound_one(tmp_path: Path) -> None:
    recorder = Recorder.open(tmp_path)
    recorder.store.engine.dispose()
    for leftover in tmp_path.glob("calls.db*"):
        leftover.unlink()
    (tmp_path / "calls.db").write_bytes(b"no database " * 1000)
    recorder.record(call("kept"))
    assert not recorder.flush(timeout=0.5)
    (tmp_path / "calls.db").unlink()
    recorder.close(timeout=0.1)
    assert recorder.lost == 0
    again = Recorder.open(tmp_path)
    assert again.flush()
    assert again.store.call("kept") is not None
    again.close()


def test_when_the_journal_is_full_calls_are_lost_by_count(tmp_path: Path) -> None:
    blocker_store = CallStore(store_url(tmp_path))
    with blocker_store.engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        recorder = Recorder.open(tmp_path, segment_bytes=2000, max_bytes=10_000)
        for number in range(200):
            recorder.record(call(f"c{number}"))
        assert recorder.lost > 0
        connection.rollback()
    blocker_store.close()
    assert recorder.flush()
    recorder.record(call("after"))
    assert recorder.flush()
    assert len(list(recorder.store.all_calls())) == 201 - recorder.lost
    recorder.close()


def test_a_closed_recorder_counts_what_it_is_given_as_lost(tmp_path: Path) -> None:
    recorder = Recorder.open(tmp_path)
    recorder.close()
    recorder.close()
    recorder.record(call("late"))
    assert recorder.lost == 1


def test_readers_see_whole_calls_while_calls_are_stored(recorder: Recorder) -> None:
    finished = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not finished.is_set():
            seen.append(len(recorder.store.calls()))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(500):
        recorder.record(call(f"c{number}"))
    assert recorder.flush()
    finished.set()
    reader.join()
    assert seen == sorted(seen)
    assert recorder.lost == 0
