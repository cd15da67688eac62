"""Points in time as people write them."""

from __future__ import annotations

import re
from datetime import datetime

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_AGO = re.compile(r"(\d{1,9})([smhdw])")

FORM = "a time such as 30m, 24h, 7d (ago), 2026-01-31 or 2026-01-31T12:00 (local time)"


def parse_moment(text: str, now: float) -> float:
    """Unix seconds of `24h` (before `now`) or of an ISO 8601 date or time.

    A time without a zone is local. Raises ValueError that says what was expected.
    """
    ago = _AGO.fullmatch(text.strip())
    if ago is not None:
        return now - int(ago[1]) * _UNITS[ago[2]]
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"expected {FORM}, got '{text[:40]}'") from None
