"""How much memory there is, and what a model takes of it."""

from __future__ import annotations

from pathlib import Path

from headrace.runtime.engine import EngineOptions
from headrace.runtime.footprint import PROCESS, footprint
from headrace.runtime.memory import RESERVE, free_memory, usable_memory


def test_a_control_group_bounds_the_memory(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/work/mine\n")
    group = tmp_path / "sys/fs/cgroup/work/mine"
    group.mkdir(parents=True)
    free = usable_memory(tmp_path)
    (group / "memory.max").write_text("max\n")
    assert usable_memory(tmp_path) == free
    (group.parent / "memory.max").write_text(f"{2**30}\n")
    assert usable_memory(tmp_path) == 2**30 - RESERVE
    (group / "memory.max").write_text("4096\n")
    assert usable_memory(tmp_path) == 0


def test_a_longer_cache_takes_its_bytes(tiny: Path) -> None:
    sizes = [
        footprint(tiny, EngineOptions(backend="cpu", kv_tokens=tokens)).whole
        for tokens in (1000, 3000)
    ]
    # keys and values, layers, KV heads, head size of 16 bits, scale
    per_token = 2 * 2 * 2 * (16 * 2 + 4)
    assert sizes[1] - sizes[0] == 2000 * per_token
    assert sizes[0] > PROCESS + tiny.stat().st_size


def test_what_is_free_is_what_the_tightest_group_leaves(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/mine\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 4000 kB\n")
    group = tmp_path / "sys/fs/cgroup/mine"
    group.mkdir(parents=True)
    assert free_memory(tmp_path) == 4000 * 1024
    (group / "memory.max").write_text("1000000\n")
    (group / "memory.current").write_text("900000\n")
    (group / "memory.stat").write_text("anon 500000\ninactive_file 300000\n")
    assert free_memory(tmp_path) == 400000
