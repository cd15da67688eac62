"""Real models that several tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.registry.pull import pull


@pytest.fixture(scope="session")
def gemma3_270m() -> Path:
    """Gemma 3 270M, Q4_K_M; kept between runs."""
    return pull("gemma3-270m")
