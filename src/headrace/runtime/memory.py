"""How much memory there is."""

from __future__ import annotations

import os
from pathlib import Path

from .processors import group_directories, read

RESERVE = 2**29  # left to everything else, at least; and a tenth
GROUP_FILES = (  # limit, use, and what of it only caches files; of versions 2 and 1
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def usable_memory(root: Path = Path("/")) -> int:
    """Bytes that engines may take together: of the machine, or of its tightest control group.

    `root` is where `proc` and `sys` are looked for. A reserve is left to everything else.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for directory in group_directories(root, "memory"):
        for most, _, _ in GROUP_FILES:
            text = read(directory / most).strip()
            if text.isdigit():
                limits.append(int(text))
    whole = min(limits)
    return max(0, whole - max(RESERVE, whole // 10))


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that are free now, on the machine and in each of its control groups; what only caches
    files counts as free. `root` is as in `usable_memory`."""
    found = [amount(root / "proc/meminfo", "MemAvailable:") * 1024]
    for directory in group_directories(root, "memory"):
        for most, used, cache in GROUP_FILES:
            limit, taken = read(directory / most).strip(), read(directory / used).strip()
            if limit.isdigit() and taken.isdigit():
                cached = amount(directory / "memory.stat", cache)
                found.append(int(limit) - int(taken) + cached)
    return max(0, min(found))


def amount(path: Path, name: str) -> int:
    """The number beside a name in a file of names and numbers; 0 where it is not there."""
    for line in read(path).splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == name:
            return int(words[1])
    return 0
