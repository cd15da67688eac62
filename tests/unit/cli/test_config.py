"""`headrace config check`."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from headrace.cli.main import app

GOOD = """\
providers:
  openai: {base_url: https://api.openai.com/v1, key: env:TEST_HEADRACE_KEY}
models:
  small: {source: smollm2-135m}
  gpt: {source: gpt-4.1, provider: openai}
routes:
- {name: cheap-first, when: {model: assistant}, try: [small, gpt]}
"""


def check(path: Path) -> Result:
    return CliRunner().invoke(app, ["config", "check", str(path)])


def test_a_good_file_gives_its_version_and_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_HEADRACE_KEY", "hunter2")
    path = tmp_path / "headrace.yaml"
    path.write_text(GOOD)
    result = check(path)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == f"{path} is in order."
    assert lines[1].split()[0] == "version"
    assert lines[2:] == [
        "providers  openai: https://api.openai.com/v1, key from TEST_HEADRACE_KEY",
        "models     small: smollm2-135m at local",
        "           gpt: gpt-4.1 at openai",
        "routes     cheap-first: assistant -> small, then gpt",
    ]
    assert "hunter2" not in result.output


def test_a_secret_that_is_not_set_is_mentioned_but_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEST_HEADRACE_KEY", raising=False)
    path = tmp_path / "headrace.yaml"
    path.write_text(GOOD)
    result = check(path)
    assert result.exit_code == 0
    assert "TEST_HEADRACE_KEY is not set" in result.stdout


def test_a_bad_file_gives_one_line_per_problem_and_status_1(tmp_path: Path) -> None:
    path = tmp_path / "headrace.yaml"
    path.write_text(GOOD.replace("source: gpt-4.1, ", "sorce: gpt-4.1, ") + "server: {port: x}\n")
    result = check(path)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"{path}:5: models.gpt.sorce: unknown field; did you mean 'source'?",
        f"{path}:5: models.gpt.source: missing; expected a string",
        f"{path}:8: server.port: expected an integer >= 0 and <= 65535, got a string",
    ]


def test_a_local_model_that_no_reference_names_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "headrace.yaml"
    path.write_text(GOOD.replace("source: smollm2-135m", "source: smolm2-135m"))
    result = check(path)
    assert result.exit_code == 1
    assert result.stderr.startswith(
        f"{path}:4: models.small.source: 'smolm2-135m' is no model. Did you mean smollm2-135m?"
    )


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    result = check(tmp_path / "none.yaml")
    assert result.exit_code == 1
    assert (
        result.stderr == f"{tmp_path / 'none.yaml'}:1: cannot be read: No such file or directory\n"
    )


def test_the_help_shows_an_example() -> None:
    result = CliRunner().invoke(app, ["config", "check", "--help"])
    assert "headrace config check headrace.yaml" in result.stdout
