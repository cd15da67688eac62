"""From how many rows on tiles are quicker than vectors here: measured once, kept, read later."""

from __future__ import annotations

import logging
import platform
import re
from pathlib import Path

from ...processors import about_processor
from ..measured import keep, measured_on, read
from ._native import SOURCES, measure_crossover

TILED = "amx"  # the level that has tiles
NEVER = 17

log = logging.getLogger(__name__)


def tile_crossover(level: str, at: Path, root: Path = Path("/")) -> int:
    """Rows of a tile, 1 to 16, from which on it is quicker; 17: never, or `level` has no tiles.

    Kept in the folder `at`, in a file of this processor and this build of the kernels. One thread
    is measured: their number is of no account. `root` is where `proc` is looked for. Raises
    ValueError where the processor does not run `level`.
    """
    if level != TILED:
        return NEVER
    path = measured_on(f"{processor(root)} {SOURCES[:12]}", at)
    name = f"rows of {level} tiles"
    kept = read(path).get(name, "")
    if re.fullmatch(r"[1-9]|1[0-7]", kept):
        return int(kept)
    rows = measure_crossover(level)
    try:
        keep(path, {name: str(rows)})
    except OSError as error:
        log.info("what was measured is not kept: %s", error)
    return rows


def processor(root: Path) -> str:
    """What the first processor is, by the system's list of them."""
    lines = about_processor(root)
    found = (lines.get(key, "") for key in ("model name", "cpu family", "model", "stepping"))
    return " ".join(found).strip() or platform.machine()
