"""From how many rows on tiles work is measured once a processor, and no file can upset a start."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.runtime.backends.cpu._native import levels
from headrace.runtime.backends.cpu.crossover import NEVER, TILED, processor, tile_crossover
from headrace.runtime.backends.measured import keep, read

tiles = pytest.mark.skipif(TILED not in levels(), reason="this processor has no tiles")


@tiles
def test_what_was_measured_is_read_at_the_next_start(tmp_path: Path) -> None:
    rows = tile_crossover(TILED, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    ((name, kept),) = read(path).items()
    assert kept == str(rows)
    keep(path, {name: str(rows % 16 + 1)})
    assert tile_crossover(TILED, tmp_path / "cache") == rows % 16 + 1


@tiles
@pytest.mark.parametrize("kept", ["0", "18", "-1", "many", ""])
def test_what_cannot_be_is_measured_again(tmp_path: Path, kept: str) -> None:
    tile_crossover(TILED, tmp_path)
    (path,) = tmp_path.iterdir()
    keep(path, dict.fromkeys(read(path), kept))
    rows = tile_crossover(TILED, tmp_path)
    assert list(read(path).values()) == [str(rows)]
    assert 1 <= rows <= NEVER


@tiles
def test_another_processor_is_measured_anew_and_a_folder_that_is_none_stops_nothing(
    tmp_path: Path,
) -> None:
    other = tmp_path / "other"
    (other / "proc").mkdir(parents=True)
    (other / "proc" / "cpuinfo").write_text(
        "processor\t: 0\nmodel\t\t: 7\nmodel name\t: Another\nstepping\t: 3\n"
    )
    assert processor(other).split() == ["Another", "7", "3"]
    for root in (other, Path("/"), tmp_path):
        tile_crossover(TILED, tmp_path / "cache", root)
    assert len(list((tmp_path / "cache").iterdir())) == 3
    assert 1 <= tile_crossover(TILED, other / "proc" / "cpuinfo") <= NEVER


def test_a_level_without_tiles_measures_nothing(tmp_path: Path) -> None:
    assert tile_crossover("portable", tmp_path) == NEVER
    assert not list(tmp_path.iterdir())
