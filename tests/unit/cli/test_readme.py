"""What the README and the first page of the documentation say is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from headrace.cli.main import COMMANDS
from headrace.config.load import load
from headrace.registry.catalogue import CATALOGUE

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_configuration_in_the_readme_is_in_order(tmp_path: Path) -> None:
    (content,) = blocks(ROOT / "README.md", "yaml")
    (tmp_path / "headrace.yaml").write_text(content)
    configuration = load(tmp_path / "headrace.yaml").configuration
    assert [route.attempts for route in configuration.routes] == [("small", "large")]


def test_the_python_in_the_readme_compiles() -> None:
    for content in blocks(ROOT / "README.md", "python"):
        compile(content, "README.md", "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    inner = [link for link in links if "://" not in link]
    missing = [link for link in inner if not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_shown_exists(page: Path) -> None:
    shown = set(re.findall(r"^(?:\.venv/bin/)?headrace ([a-z]+)", page.read_text(), re.MULTILINE))
    assert shown <= set(COMMANDS)


def test_the_size_of_the_first_download_is_told_as_it_is() -> None:
    megabytes = CATALOGUE["smollm2-135m"].megabytes
    for name in ("README.md", "docs/getting-started.md"):
        assert f"{megabytes} MB" in (ROOT / name).read_text()
