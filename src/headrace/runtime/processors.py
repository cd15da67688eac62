"""How many processors this process may use, and what they are."""

from __future__ import annotations

import math
import os
from itertools import takewhile
from pathlib import Path


def usable_processors(root: Path = Path("/")) -> int:
    """Processors of the affinity mask, or fewer where a control group's quota allows fewer.

    `root` is where `proc` and `sys` are looked for.
    """
    allowed = len(os.sched_getaffinity(0))
    quota = cpu_quota(root)
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def about_processor(root: Path = Path("/")) -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; none where there is no such file."""
    try:
        with (root / "proc/cpuinfo").open() as file:
            lines = list(takewhile(str.strip, file))
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def cpu_quota(root: Path) -> float | None:
    """The tightest CPU quota of this process's control groups, in processors; None: no limit.

    Reads version 2 (cpu.max) and version 1 (cpu.cfs_quota_us) hierarchies, each group and those
    above it. Files that are missing or unreadable set no limit.
    """
    quotas = [
        quota
        for directory in group_directories(root)
        if (quota := version2_quota(directory) or version1_quota(directory)) is not None
    ]
    return min(quotas, default=None)


def group_directories(root: Path, controller: str = "cpu") -> list[Path]:
    """The directories of this process's control groups, up to the top of each hierarchy."""
    found = []
    for line in read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / controller
        else:
            continue
        # inside a container the path may name the group as the host sees it; the top is the group
        group = top / path.lstrip("/")
        found += [group, *(above for above in group.parents if above.is_relative_to(top))]
    return found


def version2_quota(directory: Path) -> float | None:
    """`cpu.max`: "quota period" in microseconds, or "max period"."""
    match read(directory / "cpu.max").split():
        case [quota, period] if quota.isdigit() and period.isdigit() and int(period):
            return int(quota) / int(period)
    return None


def version1_quota(directory: Path) -> float | None:
    """`cpu.cfs_quota_us` over `cpu.cfs_period_us`; a quota of -1 is none."""
    quota = read(directory / "cpu.cfs_quota_us").strip()
    period = read(directory / "cpu.cfs_period_us").strip()
    if quota.isdigit() and period.isdigit() and int(period):
        return int(quota) / int(period)
    return None


def read(path: Path) -> str:
    """The file's text; empty where it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
