"""How much memory there is, and how much a model will take of it."""

from __future__ import annotations

import os
from pathlib import Path

from .embedding import is_encoder
from .engine import EngineOptions
from .models.architecture import Architecture
from .models.checkpoint import Description, describe_directory, describe_file
from .processors import group_directories, read
from .weights.gguf import read_gguf

PROCESS = 128 * 2**20  # an engine without a model: interpreter, libraries, tokenizer
RESERVE = 2**29  # left to everything else, at least; and a tenth
GROUP_FILES = (  # limit, use, and what of it only caches files; of versions 2 and 1
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
WORKING = 1.1  # of the weights, with what a step needs beside them


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


def footprint(path: Path, options: EngineOptions) -> int:
    """Bytes that an engine of the model at `path` takes, its whole KV cache included: an estimate
    from the model's description, without its weights being read.

    Raises WeightsError, OSError.
    """
    encodes = is_encoder(path)
    if path.is_dir():
        described = describe_directory(path, options.kv_tokens, embeds=encodes)
    else:
        described = describe_file(read_gguf(path), options.kv_tokens)
    kv = 0 if encodes else kv_bytes(described.architecture, options)
    return PROCESS + int(weight_bytes(described, options) * WORKING) + kv


def weight_bytes(described: Description, options: EngineOptions) -> int:
    """The weights, as the backend keeps them."""
    tensors = described.weights.values()
    if options.backend == "reference":
        return sum(4 * one.rows * one.columns for one in tensors)
    return sum(
        2 * one.rows * one.columns
        if one.format == "E4M3" and options.backend != "cuda"
        else one.data.nbytes
        for one in tensors
    )


def kv_bytes(model: Architecture, options: EngineOptions) -> int:
    """The KV cache: keys and values of all layers, of 2 bytes or 1, or 4 on the reference."""
    rounded = options.kv_dtype in ("int8", "fp8")
    if options.backend == "reference":
        size, scale = 4, 0
    else:
        size = 1 if rounded else 2
        scale = 4 if rounded or options.backend != "cuda" else 0  # of a head's key or value
    entries = 2 * len(model.layers) * model.kv_heads * options.kv_tokens
    return entries * (model.head_size * size + scale)
