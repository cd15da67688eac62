"""How much memory a model will take."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from .embedding import is_encoder
from .models.architecture import Architecture
from .models.checkpoint import Description, describe_directory, describe_file
from .options import EngineOptions
from .weights.gguf import read_gguf

PROCESS = 128 * 2**20  # an engine without a model: interpreter, libraries, tokenizer
WORKING = 1.1  # of the weights, with what a step needs beside them


class Footprint(NamedTuple):
    """Bytes that an engine takes, its whole KV cache included, and those of its weights alone."""

    whole: int
    weights: int


def footprint(path: Path, options: EngineOptions) -> Footprint:
    """What an engine of the model at `path` takes: an estimate from the model's description,
    without its weights being read.

    Raises WeightsError, OSError.
    """
    encodes = is_encoder(path)
    if path.is_dir():
        described = describe_directory(path, options.planned_tokens, embeds=encodes)
    else:
        described = describe_file(read_gguf(path), options.planned_tokens)
    kv = 0 if encodes else kv_bytes(described.architecture, options)
    processes = PROCESS * (1 if encodes else options.tensor_parallel)
    weights = weight_bytes(described, options)
    return Footprint(processes + int(weights * WORKING) + kv, weights)


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
    heads = max(model.kv_heads, options.tensor_parallel)  # each rank has one, or more
    entries = 2 * len(model.layers) * heads * options.planned_tokens
    return entries * (model.head_size * size + scale)
