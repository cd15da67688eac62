"""How many threads the CPU backend starts by itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace.runtime.processors import about_processor, cpu_quota, usable_processors


def tree(root: Path, files: dict[str, str]) -> Path:
    """Write `files` under `root`."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        # the tightest of a group and those above it
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
                "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
            },
            0.5,
        ),
        # a container that sees the host's path, with its own group mounted at the top
        ({"proc/self/cgroup": "0::/gone\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
        (
            {
                "proc/self/cgroup": "4:memory:/\n3:cpu,cpuacct:/job\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "nonsense\n"}, None),
    ],
)
def test_control_group_quotas(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert cpu_quota(tree(tmp_path, files)) == quota


def test_a_quota_rounds_up_and_never_exceeds_the_affinity_mask(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}
    assert usable_processors(tree(tmp_path, files)) == 1
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("100000000 100000\n")
    assert usable_processors(tmp_path) == len(os.sched_getaffinity(0))


def test_the_first_processor_is_described(tmp_path: Path) -> None:
    text = "processor\t: 0\nmodel name\t: One\n\nprocessor\t: 1\nmodel name\t: Other\n"
    tree(tmp_path, {"proc/cpuinfo": text})
    assert about_processor(tmp_path) == {"processor": "0", "model name": "One"}
    assert about_processor(tmp_path / "none") == {}
