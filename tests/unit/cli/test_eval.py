from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from headrace.cli.eval import eval_app

FILE = """\
name: sums
dataset: {{file: sums.jsonl}}
target: {{model: m, base_url: "{url}"}}
graders:
  - {{type: numeric}}
  - {{type: regex, pattern: "^4"}}
bars: {{numeric: {bar}}}
"""


class Four(BaseHTTPRequestHandler):
    """Whatever is asked, the answer is 4."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = msgspec.json.encode({"choices": [{"message": {"content": "4"}}]})
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.send_header("x-request-id", "req-four")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Four) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def ran(place: Path, text: str) -> Result:
    file = place / "sums.yaml"
    file.write_text(text)
    questions = [f'{{"input": "2+2?", "expected": {4 if n else 5}}}\n' for n in range(20)]
    (place / "sums.jsonl").write_text("".join(questions))
    arguments = ["run", str(file), "--directory", str(place)]
    return CliRunner().invoke(eval_app, arguments, env={"COLUMNS": "100"})


def test_a_run_that_meets_its_bars_ends_well_and_is_kept(tmp_path: Path, url: str) -> None:
    result = ran(tmp_path, FILE.format(url=url, bar=0.7))
    assert result.exit_code == 0, result.output
    assert "0.950" in result.stdout
    assert "0.7 met" in result.stdout
    database = sqlite3.connect(tmp_path / "calls.db")
    (passed,) = database.execute("SELECT sum(passed) FROM experiment_grades").fetchone()
    (linked,) = database.execute("SELECT DISTINCT call_id FROM experiment_items").fetchone()
    database.close()
    assert (passed, linked) == (39, "req-four")


def test_a_missed_bar_is_exit_status_1_and_the_run_is_kept_all_the_same(
    tmp_path: Path, url: str
) -> None:
    result = ran(tmp_path, FILE.format(url=url, bar=0.9))
    assert result.exit_code == 1
    assert "0.9 MISSED" in result.stdout
    assert "Kept as experiment" in result.stderr


def test_a_bad_file_is_exit_status_2_with_line_and_field(tmp_path: Path) -> None:
    result = ran(tmp_path, FILE.format(url="ftp://nowhere", bar=0.9))
    assert result.exit_code == 2
    assert f"{tmp_path / 'sums.yaml'}:3: target.base_url: expected an address" in result.stderr


def test_a_key_that_is_not_set_is_exit_status_2(tmp_path: Path, url: str) -> None:
    text = FILE.format(url=url, bar=0.9).replace("model: m", "model: m, key: env:NO_SUCH_KEY")
    result = ran(tmp_path, text)
    assert result.exit_code == 2
    assert "target.key: the environment variable NO_SUCH_KEY is not set" in result.stderr


def test_when_every_call_fails_the_report_says_why_and_the_status_is_1(
    tmp_path: Path, free_port: int
) -> None:
    text = FILE.format(url=f"http://127.0.0.1:{free_port}/v1", bar=0)
    result = ran(tmp_path, text)
    assert result.exit_code == 1
    assert "20 of 20 calls failed." in result.stdout
    assert "ClientConnectorError" in result.stdout
