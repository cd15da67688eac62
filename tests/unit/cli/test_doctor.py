"""The doctor finds what is wrong, and says what to do."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.cli.main import app
from headrace.runtime.backends.choice import gpus

runner = CliRunner()


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: int) -> Path:
    """A working directory whose configuration names a free port."""
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "headrace.yaml").write_text(f"server: {{port: {free_port}}}\n")
    return tmp_path


def test_a_sound_machine_is_described() -> None:
    done = runner.invoke(app, ["doctor"])
    assert done.exit_code == 0, done.output
    for name in ("python", "machine", "processors", "features", "backend", "port", "data"):
        assert f"\n  {name} " in done.stdout, name
    assert "is not here yet" in done.stdout


def test_a_taken_port_is_found(place: Path, free_port: int) -> None:
    with socket.create_server(("127.0.0.1", free_port)):
        done = runner.invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert f"! port           127.0.0.1:{free_port} is taken" in done.stdout
    assert "-> Stop what uses it" in done.stdout


def test_a_broken_configuration_is_found(place: Path) -> None:
    (place / "headrace.yaml").write_text("servr: {}\n")
    done = runner.invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "headrace.yaml:1" in done.stdout
    assert "headrace config check" in done.stdout


def test_a_model_s_ops_have_their_formats_and_kernels(tiny: Path) -> None:
    done = runner.invoke(app, ["doctor", str(tiny), "--quantization", "int8"])
    assert done.exit_code == 0, done.output
    linear = next(line.split() for line in done.stdout.splitlines() if " Linear " in line)
    assert "attention.query," in linear
    assert {"0-1", "Q8_0", "int8"} <= set(linear)


@pytest.mark.skipif(gpus() > 0, reason="there is a GPU: it is asked itself")
def test_without_a_gpu_it_says_what_one_would_run(tiny: Path) -> None:
    done = runner.invoke(app, ["doctor", str(tiny)])
    for capability in ("8.0", "9.0"):
        assert (
            f"gpus           none; one of capability {capability} would run linear F32: "
            "Triton tiles to 16 rows, cuBLAS above" in done.stdout
        )


def test_a_model_that_is_not_here_is_not_fetched(place: Path) -> None:
    done = runner.invoke(app, ["doctor", "smollm2-135m"])
    assert done.exit_code == 1
    assert "headrace pull smollm2-135m" in done.stdout
