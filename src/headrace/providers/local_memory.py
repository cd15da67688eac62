"""Which memory local models share, and what each takes of it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from headrace.config.schema import Engine
from headrace.providers.residency import Loadable, Residency
from headrace.runtime.backends.devices import gpu_memory
from headrace.runtime.memory import usable_memory
from headrace.runtime.options import EngineOptions

# Imported where a model is looked at: a server without local models has no use for what reads
# weights, which takes more memory than the server itself.
FOOTPRINT = "headrace.runtime.footprint"


def residency_of(
    engines: Mapping[str, Loadable],
    models: Mapping[str, Path],
    settings: Engine,
    options: EngineOptions,
) -> Residency:
    """The budget of these engines: of the GPU's memory where they run on one, else of the host's.

    Models that sleep share the host's, less what offloaded KV takes there.
    """
    gpu = gpu_memory() if settings.backend in ("auto", "cuda") else None
    if gpu is not None and options.kv_tokens is None:  # what is left is for the KV cache
        options = replace(options, kv_tokens=options.limits.batch_tokens)
    sizes = {source: size_of(path, options) for source, path in models.items()}
    usable = usable_memory()
    budget = settings.memory_bytes
    if budget is None:
        budget = usable if gpu is None else gpu * options.tensor_parallel
    return Residency(
        engines,
        {source: whole for source, (whole, _) in sizes.items()},
        budget,
        weights={source: weights for source, (_, weights) in sizes.items()},
        host_budget=max(0, usable - options.kv_offload * len(models)),
    )


def size_of(path: Path, options: EngineOptions) -> tuple[int, int]:
    """Bytes that a model will take, and those of its weights; 0 of one whose files are not sound,
    which its load will say."""
    try:
        whole, weights = importlib.import_module(FOOTPRINT).footprint(path, options)
    except (ValueError, OSError):
        return 0, 0
    return whole, weights
