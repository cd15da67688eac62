"""What was measured on this machine, kept for later starts: a file of names and texts a device."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


def folder() -> Path:
    """Where measurements are kept: `$HEADRACE_HOME/kernels`, else in the user's cache (XDG)."""
    chosen = os.environ.get("HEADRACE_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute() / "kernels"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "headrace" / "kernels"


def measured_on(name: str, at: Path) -> Path:
    """The file for what is measured on a device, driver and libraries of this name."""
    return at / (re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-") + ".json")


def read(path: Path) -> dict[str, str]:
    """What a file keeps; nothing where it is damaged or is not there."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: text for name, text in found.items() if isinstance(text, str)}


def keep(path: Path, found: Mapping[str, str]) -> None:
    """Keep what was found, beside what others have kept meanwhile. Raises OSError."""
    content = json.dumps(read(path) | dict(found), indent=1, sort_keys=True)
    partial = path.with_suffix(f".{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.write_text(content)
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise
