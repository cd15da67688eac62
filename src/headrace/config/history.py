"""The versions of the configuration that were in force, newest last.

Each is kept as two files of its version's name: the configuration itself (JSON, from which a
decision can be made again) and the file's own text, to which it can be set back. `history` is one
line a change: Unix seconds and version.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec
from msgspec import Struct

from headrace.config.load import Loaded
from headrace.config.schema import Configuration

FOLDER = "configurations"
HISTORY = "history"
MOST = 1000  # changes that are listed


class Entry(Struct, frozen=True):
    """One change: since when which version."""

    at: float
    version: str


def keep_version(directory: Path, loaded: Loaded) -> None:
    """Keep a version, so that a decision can be made again by it. Raises OSError."""
    folder = directory / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    content = msgspec.json.encode(loaded.configuration, order="deterministic")
    _write(folder / f"{loaded.version}.json", content)


def keep(directory: Path, loaded: Loaded, at: float) -> None:
    """Keep what is in force from `at` (Unix seconds) on. Raises OSError."""
    keep_version(directory, loaded)
    folder = directory / FOLDER
    if loaded.text is not None:
        _write(folder / f"{loaded.version}.yaml", loaded.text)
    with (folder / HISTORY).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # several processes take up the same change
        entries = history(directory)
        if not entries or entries[-1].version != loaded.version:
            file.write(f"{at:.3f} {loaded.version}\n")


def history(directory: Path) -> list[Entry]:
    """The latest changes, the newest last; a line that was cut off is left out."""
    path = directory / FOLDER / HISTORY
    lines = path.read_text().splitlines() if path.exists() else []
    pairs = [line.split() for line in lines[-MOST:]]
    return [Entry(float(pair[0]), pair[1]) for pair in pairs if len(pair) == 2]


def configuration_of(directory: Path, version: str) -> Configuration | None:
    """The configuration of a version; None where it was not kept."""
    path = directory / FOLDER / f"{version}.json"
    if not version.isalnum() or not path.exists():
        return None
    return msgspec.json.decode(path.read_bytes(), type=Configuration)


def text_of(directory: Path, version: str) -> bytes | None:
    """The file's text of a version; None where there was no file, or it was not kept."""
    path = directory / FOLDER / f"{version}.yaml"
    return path.read_bytes() if version.isalnum() and path.exists() else None


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` to `path` at once: a reader sees the old text or the new."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(content)
    os.replace(beside, path)


def _write(path: Path, content: bytes) -> None:
    if not path.exists() or path.read_bytes() != content:
        replace_file(path, content)
