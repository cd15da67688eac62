"""`headrace serve` as a user starts it: what it prints works, and it stops when told."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SERVE = [sys.executable, "-m", "headrace.cli.main", "serve"]


@contextmanager
def serving(home: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A server process, and the lines that it printed until it was ready."""
    environment = {**os.environ, "HEADRACE_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*SERVE, *arguments],
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if "Ctrl-C" in line:
                break
        yield process, lines
        if process.poll() is None:
            process.kill()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_line_that_it_prints_works_when_pasted(tmp_path: Path, tiny: Path) -> None:
    with serving(tmp_path, "--model", str(tiny), "--port", "0") as (process, lines):
        assert "is ready after" in lines[0]
        assert any("model    tiny" in line for line in lines)
        assert any("kernel" in line for line in lines)
        (command,) = [line for line in lines if line.startswith("curl ")]
        done = subprocess.run(
            [*shlex.split(command), "-s"], capture_output=True, text=True, check=True
        )
        answer = json.loads(done.stdout)
        assert answer["choices"][0]["message"]["role"] == "assistant"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_quietly_with_all_its_children_when_its_group_is_told(
    tmp_path: Path, tiny: Path, number: signal.Signals
) -> None:
    with serving(tmp_path, "--model", str(tiny), "--port", "0") as (process, _):
        os.killpg(process.pid, number)  # as a terminal and a service manager do
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_taken_port_is_said_before_a_model_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with serving(tmp_path, "--model", "./absent.gguf", "--port", port) as (process, lines):
            assert lines == []
            assert process.wait(20) == 1
            assert process.stderr is not None
            assert process.stderr.read() == (
                f"headrace: Port {port} on 127.0.0.1 is taken. Stop what uses it, "
                "or choose another: --port.\n"
            )


def test_a_model_that_does_not_load_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_text("not a model")
    with serving(tmp_path, "--model", "./bad.gguf", "--port", "0") as (process, lines):
        assert lines == []
        assert process.wait(20) == 1
        assert process.stderr is not None
        assert "could not be loaded" in process.stderr.read()


def test_a_missing_secret_is_named_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "headrace.yaml").write_text(
        "providers: {p: {base_url: 'http://127.0.0.1:9/v1', key: 'env:ABSENT_KEY'}}\n"
        "models: {m: {source: x, provider: p}}\n"
    )
    with serving(tmp_path, "--port", "0") as (process, lines):
        assert lines == []
        assert process.wait(20) == 1
        assert process.stderr is not None
        assert "ABSENT_KEY is not set" in process.stderr.read()


def test_a_server_without_local_models_carries_no_engine(tmp_path: Path) -> None:
    configuration = tmp_path / "headrace.yaml"
    configuration.write_text(
        json.dumps(
            {
                "providers": {"up": {"base_url": "http://127.0.0.1:9/v1"}},
                "models": {"m": {"provider": "up", "source": "m"}},
                "log": {"directory": str(tmp_path)},
            }
        )
    )
    code = f"""
import asyncio, json, sys
from pathlib import Path
import headrace.cli.serve
from headrace.app import App
from headrace.config.load import load

async def begin():
    app = App.build(load(Path({str(configuration)!r})), {{}})
    await app.start()
    print(json.dumps(sorted(sys.modules)))
    await app.close()

asyncio.run(begin())
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    heavy = {"numpy", "tokenizers", "jinja2", "llguidance", "rich", "headrace.runtime.engine"}
    assert heavy.isdisjoint(json.loads(told.stdout))
