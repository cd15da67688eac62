"""`headrace route explain`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from headrace.cli.main import app
from headrace.config.load import load
from tests.unit.cli.test_config import GOOD


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "headrace.yaml"
    path.write_text(GOOD)
    return path


def explain(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["route", "explain", *arguments])


def test_the_plan_is_printed_with_reasons_and_version(config: Path) -> None:
    result = explain("--model", "assistant", "--config", str(config))
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "model      assistant",
        "route      cheap-first",
        f"version    {load(config).version}",
        "try 1      small (smollm2-135m at local): "
        "first choice of route 'cheap-first', which matches model 'assistant'",
        "try 2      gpt (gpt-4.1 at openai): "
        "fallback 1 of route 'cheap-first', if those before it fail",
        "skip       none",
    ]


def test_a_body_says_which_model(config: Path, tmp_path: Path) -> None:
    body = tmp_path / "request.json"
    body.write_text(json.dumps({"model": "gpt", "messages": [{"role": "user", "content": "hi"}]}))
    result = explain("--body", str(body), "--config", str(config))
    assert "route      model:gpt" in result.stdout
    result = explain("--body", str(body), "--config", str(config), "--model", "small")
    assert "route      model:small" in result.stdout
    body.write_text(json.dumps({"model": "small", "prompt": "hi"}))
    assert "route      model:small" in explain("--body", str(body), "--config", str(config)).stdout


def test_a_model_that_cannot_is_skipped_and_said_why(config: Path, tmp_path: Path) -> None:
    body = tmp_path / "request.json"
    body.write_text(json.dumps({"model": "assistant", "prompt": "hi"}))
    result = explain("--body", str(body), "--config", str(config))
    assert "skip       gpt (at openai): it has no completions endpoint" in result.stdout


def test_the_file_in_the_working_directory_is_used(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config.parent)
    assert "cheap-first" in explain("--model", "assistant").stdout


def test_without_any_file_the_small_model_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "model:smollm2-135m" in explain("--model", "smollm2-135m").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "nope"], "The model 'nope' does not exist. Available: small, gpt, assistant."),
        ([], "--model NAME, or --body FILE"),
        (["--body", "none.json"], "none.json: cannot be read"),
    ],
)
def test_what_cannot_be_explained_is_one_line_and_status_1(
    config: Path, arguments: list[str], said: str
) -> None:
    result = explain("--config", str(config), *arguments)
    assert result.exit_code == 1
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("body", ["", "[]", "{nonsense", '{"model": "gpt"}', '{"messages": 3}'])
def test_a_bad_body_is_one_line(config: Path, tmp_path: Path, body: str) -> None:
    path = tmp_path / "request.json"
    path.write_text(body)
    result = explain("--body", str(path), "--config", str(config))
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1


def test_the_help_shows_an_example() -> None:
    result = CliRunner().invoke(app, ["route", "explain", "--help"])
    assert "headrace route explain --model smollm2-135m" in result.stdout
