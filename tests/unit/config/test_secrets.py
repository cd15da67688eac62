"""Secrets by reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.config.load import load
from headrace.config.secrets import SecretError, resolve


def test_a_reference_gives_the_value_of_its_variable() -> None:
    assert resolve("env:A_KEY", {"A_KEY": "sk-1"}) == "sk-1"


def test_white_space_around_a_value_is_not_part_of_it() -> None:
    assert resolve("env:A_KEY", {"A_KEY": " sk-1\n"}) == "sk-1"


@pytest.mark.parametrize(
    ("environ", "said"),
    [({}, "not set"), ({"A_KEY": ""}, "empty"), ({"A_KEY": "  "}, "empty")],
)
def test_a_variable_without_a_value_is_named(environ: dict[str, str], said: str) -> None:
    with pytest.raises(SecretError, match=f"A_KEY is {said}"):
        resolve("env:A_KEY", environ)


@pytest.mark.parametrize("value", ["hunter2\r\nX-Evil: 1", "hunter2 b", "hunter2é", "hunter2\x00"])
def test_a_value_that_cannot_stand_in_a_header_is_refused_and_not_repeated(value: str) -> None:
    with pytest.raises(SecretError, match="A_KEY") as caught:
        resolve("env:A_KEY", {"A_KEY": value})
    assert "hunter2" not in str(caught.value)


def test_what_is_no_reference_is_refused_and_not_repeated() -> None:
    with pytest.raises(SecretError) as caught:
        resolve("sk-hunter2", {"sk-hunter2": "x"})
    assert "hunter2" not in str(caught.value)


def test_the_version_of_a_configuration_does_not_depend_on_the_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "headrace.yaml"
    path.write_text("providers: {x: {base_url: 'http://a/v1', key: 'env:A_KEY'}}\n")
    monkeypatch.setenv("A_KEY", "hunter2")
    first = load(path)
    monkeypatch.setenv("A_KEY", "hunter3")
    assert load(path).version == first.version
    assert "hunter" not in repr(first)
