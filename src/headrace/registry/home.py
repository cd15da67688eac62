"""Where Headrace keeps what it fetched and what it recorded."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The data directory: `$HEADRACE_HOME`, else `~/.local/share/headrace` (XDG). May not exist."""
    chosen = os.environ.get("HEADRACE_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "headrace"


def models() -> Path:
    """The directory that holds one folder per pulled model."""
    return home() / "models"
