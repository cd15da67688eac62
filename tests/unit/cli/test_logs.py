from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.cli.errors import CommandError
from headrace.cli.logs import logs_app
from headrace.observability.record import CallRecord
from headrace.observability.store import CallStore, store_url


def call(call_id: str, **fields: object) -> CallRecord:
    values = {
        "started_at": time.time(),
        "tenant": "t",
        "endpoint": "chat",
        "model": "small",
        "stream": False,
        "status": "ok",
        "http_status": 200,
        "duration": 1.0,
        **fields,
    }
    return CallRecord(id=call_id, **values)  # type: ignore[arg-type]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    store = CallStore(store_url(tmp_path))
    store.insert(
        [
            call("old", started_at=time.time() - 7200),
            call("bad", status="error", error="it\x1b[31m broke\tdown", model="\x1b]0;evil\x07"),
            call("new", output={"text": "hello"}),
        ]
    )
    store.close()
    return tmp_path


def output(*arguments: str) -> str:
    result = CliRunner().invoke(logs_app, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_tail_shows_the_last_calls_one_a_line_the_newest_last(place: Path) -> None:
    rows = [line.split("\t") for line in output("tail", "-n", "2").splitlines()]
    assert rows[0][:3] == ["time", "id", "status"]
    assert [row[1] for row in rows[1:]] == ["bad", "new"]
    assert len({len(row) for row in rows}) == 1


def test_tail_filters(place: Path) -> None:
    rows = output("tail", "--status", "error").splitlines()[1:]
    assert [row.split("\t")[1] for row in rows] == ["bad"]
    assert output("tail", "--model", "nobody").splitlines()[1:] == []


def test_nothing_a_caller_wrote_reaches_the_terminal_as_a_command(place: Path) -> None:
    assert "\x1b" not in output("tail")
    assert "\x07" not in output("tail")


def test_show_prints_one_call_as_json_in_a_pipe(place: Path) -> None:
    assert json.loads(output("show", "new"))["output"] == {"text": "hello"}
    with pytest.raises(CommandError, match="No call has the id 'none'"):
        output("show", "none")


def test_export_gives_one_json_object_a_line_oldest_first(place: Path, tmp_path: Path) -> None:
    lines = output("export").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["old", "bad", "new"]
    out = tmp_path / "calls.jsonl"
    assert output("export", "--since", "1h", "--out", str(out)) == ""
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["bad", "new"]
    assert [path.name for path in tmp_path.glob("*.partial")] == []


def test_a_time_that_is_none_is_refused_with_what_was_expected(place: Path) -> None:
    with pytest.raises(CommandError, match="--since: expected a time such as 30m"):
        output("export", "--since", "yesterday")


def test_without_a_log_it_is_said_and_none_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "none"))
    with pytest.raises(CommandError, match="No calls are recorded in"):
        output("tail")
    assert not (tmp_path / "none").exists()


def test_a_file_that_is_no_call_log_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    (tmp_path / "calls.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(CommandError, match="file is not a database"):
        output("tail")


def test_following_shows_calls_as_they_are_stored(place: Path) -> None:
    command = [sys.executable, "-m", "headrace.cli.main", "logs", "tail", "-f", "-n", "1"]
    environment = {**os.environ, "HEADRACE_HOME": str(place)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("time\t")
        assert process.stdout.readline().split("\t")[1] == "new"
        store = CallStore(store_url(place))
        store.insert([call("newer"), call("newest")])
        store.close()
        assert process.stdout.readline().split("\t")[1] == "newer"
        assert process.stdout.readline().split("\t")[1] == "newest"
    finally:
        process.kill()
        process.communicate()
