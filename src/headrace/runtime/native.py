"""The native extension, for those that do without it where an installation has none."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def native_code() -> Any | None:
    """The extension's module, or nothing."""
    try:
        return import_module("headrace.runtime.backends.cpu._native")
    except ImportError:
        return None
