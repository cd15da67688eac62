"""What a model costs: what the file says, else the table, else nobody knows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from headrace.config.load import load
from headrace.config.prices import TABLE
from headrace.config.schema import Model, Price

FILE = """
providers:
  openai: {base_url: https://api.openai.com/v1}
  claude: {dialect: anthropic}
  mine: {base_url: http://127.0.0.1:9/v1}
models:
  listed: {provider: openai, source: gpt-4.1}
  dated: {provider: claude, source: claude-sonnet-4-5-20250929}
  own: {provider: openai, source: gpt-4.1, price: {input: 1, output: 2}}
  elsewhere: {provider: mine, source: gpt-4.1}
  unlisted: {provider: openai, source: gpt-99}
  here: {source: smollm2-135m}
"""


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Model]:
    path = tmp_path / "headrace.yaml"
    path.write_text(FILE)
    return load(path).configuration.models


def test_a_model_at_its_makers_address_costs_what_the_table_says(models: dict[str, Model]) -> None:
    assert models["listed"].rates == Price(input=2, output=8, cached_input=0.5)
    assert models["dated"].rates == TABLE.hosts["api.anthropic.com"].models["claude-sonnet-4-5"]


def test_the_files_price_goes_before_the_table(models: dict[str, Model]) -> None:
    assert models["own"].rates == Price(input=1, output=2)


def test_a_price_that_nobody_told_is_not_known_and_not_nothing(models: dict[str, Model]) -> None:
    assert models["elsewhere"].rates is None
    assert models["unlisted"].rates is None
    assert models["here"].rates == Price(input=0, output=0)


def test_the_table_says_when_and_where_it_was_read() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", TABLE.as_of)
    for listed in TABLE.hosts.values():
        assert listed.source.startswith("https://")
        assert all(price.known for price in listed.models.values())
