from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from headrace.observability.store import (
    HEAD,
    VERSIONS,
    CallFilter,
    CallStore,
    calls_table,
    store_url,
)
from headrace.observability.upgrade import ENVIRONMENT
from headrace.protocol.errors import ServiceError

from .calls import call


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CallStore]:
    opened = CallStore(store_url(tmp_path))
    yield opened
    opened.close()


def ids(store: CallStore, **which: object) -> list[str]:
    return [record.id for record in store.calls(CallFilter(**which))]  # type: ignore[arg-type]


def test_calls_come_newest_first_and_the_same_call_only_once(store: CallStore) -> None:
    store.insert([call("a"), call("b")])
    store.insert([call("b", status="error"), call("c")])
    assert ids(store) == ["c", "b", "a"]
    stored = store.call("b")
    assert stored is not None
    assert stored.status == "ok"


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ({"since": 110.0}, ["d", "c", "b"]),
        ({"until": 110.0}, ["a"]),
        ({"since": 110.0, "until": 120.0}, ["b"]),
        ({"model": "big"}, ["b"]),
        ({"model": "ghost"}, ["c"]),
        ({"provider": "cloud"}, ["b"]),
        ({"status": "error"}, ["c"]),
        ({"route": "rule"}, ["b"]),
        ({"cache": "hit"}, ["d"]),
        ({"status": "ok", "cache": "off"}, ["b", "a"]),
        ({"limit": 2}, ["d", "c"]),
        ({"before": "c"}, ["b", "a"]),
        ({"before": "unknown"}, []),
    ],
)
def test_filters(store: CallStore, which: dict[str, object], expected: list[str]) -> None:
    store.insert(
        [
            call("a", started_at=100.0),
            call("b", started_at=110.0, served_model="big", provider="cloud", route="rule"),
            call(
                "c",
                started_at=120.0,
                model="ghost",
                served_model=None,
                status="error",
                cache="miss",
            ),
            call("d", started_at=130.0, cache="hit"),
        ]
    )
    assert ids(store, **which) == expected


def test_pages_by_cursor_cover_every_call_once_though_new_ones_arrive(store: CallStore) -> None:
    store.insert([call(f"c{number:03}") for number in range(25)])
    seen = ids(store, limit=10)
    store.insert([call("new")])
    while page := ids(store, limit=10, before=seen[-1]):
        seen += page
    assert seen == [f"c{number:03}" for number in reversed(range(25))]


def test_following_gives_what_came_after_a_call_oldest_first(store: CallStore) -> None:
    store.insert([call("a"), call("b"), call("c")])
    after = store.calls_after("a", CallFilter(limit=10))
    assert [record.id for record in after] == ["b", "c"]


def test_all_calls_go_past_one_page(store: CallStore) -> None:
    store.insert([call(f"c{number}") for number in range(1201)])
    assert len(list(store.all_calls(CallFilter(limit=1)))) == 1201


def test_the_summary_sums_the_calls_of_its_time(store: CallStore) -> None:
    store.insert([call("old", started_at=1.0, cost=100.0)])
    store.insert(
        [
            call(f"c{number}", started_at=100.0, ttft=number / 100, cost=0.5)
            for number in range(1, 101)
        ]
    )
    store.insert(
        [
            call("bad", started_at=100.0, status="error", ttft=None, cost=0.0),
            call("gone", started_at=100.0, status="cancelled", ttft=None, cost=0.0),
            call("cached", started_at=100.0, cache="hit", ttft=None, cached_tokens=7, cost=0.0),
        ]
    )
    summary = store.summary(since=50.0)
    assert (summary.calls, summary.errors, summary.cancelled) == (103, 1, 1)
    assert (summary.cache_hits, summary.cached_tokens) == (1, 7)
    assert (summary.prompt_tokens, summary.completion_tokens) == (1030, 515)
    assert summary.cost == pytest.approx(50.0)
    assert (summary.ttft_p50, summary.ttft_p95) == (0.5, 0.95)


def test_the_summary_of_nothing_is_zero(store: CallStore) -> None:
    summary = store.summary(since=0.0)
    assert (summary.calls, summary.cost, summary.ttft_p50) == (0, 0.0, None)


def test_the_migrations_make_the_table_that_the_code_uses(store: CallStore) -> None:
    made = {
        (column["name"], column["nullable"])
        for column in inspect(store.engine).get_columns("calls")
    }
    used = {(column.name, bool(column.nullable)) for column in calls_table.columns}
    assert made == used


def test_the_revision_in_the_code_is_the_newest_migration() -> None:
    scripts = ScriptDirectory(str(ENVIRONMENT), version_locations=[str(VERSIONS)])
    assert scripts.get_current_head() == HEAD


def test_several_processes_may_open_a_new_store_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from headrace.observability.store import CallStore;"
        "print('ready', flush=True); sys.stdin.readline(); CallStore(sys.argv[1]).summary(0)"
    )
    command = [sys.executable, "-c", code, store_url(tmp_path)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        process.communicate()
    assert [process.returncode for process in started] == [0, 0, 0, 0]


def test_a_log_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    store = CallStore(store_url(tmp_path))
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE calls_version SET version_num = 'calls_9999'"))
    store.close()
    with pytest.raises(ServiceError, match=r"newer version .* \(its revision is calls_9999\)"):
        CallStore(store_url(tmp_path))


@pytest.mark.parametrize("url", ["mysql://host/db", "sqlite://", "sqlite:///:memory:"])
def test_a_database_that_cannot_hold_the_log_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="call log needs"):
        CallStore(url)


def test_a_model_or_status_filter_uses_an_index(store: CallStore) -> None:
    with store.engine.connect() as connection:
        for column in ("model", "status"):
            plan = connection.exec_driver_sql(
                f"EXPLAIN QUERY PLAN SELECT record FROM calls WHERE {column} = 'x' "
                "ORDER BY sequence DESC LIMIT 50"
            ).fetchall()
            assert f"calls_{column}" in str(plan)
            assert "TEMP B-TREE" not in str(plan)
