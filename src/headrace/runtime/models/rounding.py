"""Quantisation at load: the matrices of a float checkpoint in fewer bits.

What is rounded: attention, MLP and expert matrices, and both sides of the vocabulary. "int8" makes
all of them Q8_0 (8.5 bits a value). "int4" makes them Q4_1 (5 bits), but Q8_0 the vocabulary (the
output matrix decides the token directly, and where it is the embedding too an error enters twice)
and the value matrix, which is small and the most sensitive of a layer: of SmolLM2-135M's perplexity
that 4 bits cost, 8 bits there take away half, for 1% more bytes. "fp8" rounds the matrices of the
layers to E4M3 with a scale a row and leaves the vocabulary: the values that FP8 hardware computes
with. A GPU keeps them in 8 bits; on a CPU they are widened to F16, which saves nothing over
bfloat16, as they are where blocks of 128 do not divide a row.
Norms, biases and routers are small and stay; so do matrices that blocks of 32 do not divide, and
all that the file has quantised already, since a second rounding only loses.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from ..native import native_code
from ..options import Quantization
from ..weights.blocks import BLOCK, UNREACHABLE, rounded
from ..weights.float8 import rounded_fp8
from ..weights.tensor import FORMATS, Tensor

QUANTIZATIONS: tuple[Quantization, ...] = ("int8", "int4", "fp8")
VOCABULARY = frozenset({"embedding", "output"})
SENSITIVE = re.compile(r"embedding|output|layers\.\d+\.attention\.value")
MATRIX = re.compile(
    r"layers\.\d+\.(attention\.(query|key|value|output)|mlp\.(experts\.\d+\.)?(gate|up|down))"
)
LAYER = re.compile(r"layers\.\d+\.|(?<=experts)\.\d+")
FLOATS = frozenset({"F32", "F16", "BF16"})


def quantize(
    weights: Mapping[str, Tensor], to: Quantization, threads: int = 0
) -> dict[str, Tensor]:
    """Weights by canonical name, those above rounded; `threads` 0: as many as are allowed.

    Raises ValueError on an unknown `to`, and on weights that are no numbers.
    """
    if to not in QUANTIZATIONS:
        raise ValueError(f"quantization '{to}'; there are: {', '.join(QUANTIZATIONS)}")

    native = native_code()

    def one(name: str) -> Tensor:
        tensor = weights[name]
        if name not in VOCABULARY and not MATRIX.fullmatch(name):
            return tensor
        if tensor.format not in FLOATS or (to == "fp8" and name in VOCABULARY):
            return tensor
        if to != "fp8" and tensor.columns % BLOCK:
            return tensor
        format = "Q8_0" if to == "int8" or SENSITIVE.fullmatch(name) else "Q4_1"
        try:
            if to == "fp8":
                found = rounded_fp8(tensor)
            elif native is None:
                found = rounded(tensor, format)
            else:
                found = rounded_natively(native, tensor, format)
        except ValueError as error:
            raise ValueError(f"the weight {name} cannot be {to}: {error}") from error
        return replace(found, origin=f"{to} from {tensor.origin or tensor.format}")

    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        return dict(zip(weights, pool.map(one, weights), strict=True))


def rounded_natively(native: Any, tensor: Tensor, format: str, level: str = "") -> Tensor:
    """As `blocks.rounded`, to the same bytes, as fast as a core can read."""
    values, size = FORMATS[format]
    out = np.empty((tensor.rows, tensor.columns // values * size), np.uint8)
    if not native.round_blocks(level, tensor.format, tensor.data, format, out):
        raise ValueError(UNREACHABLE)
    return Tensor(format, tensor.rows, tensor.columns, out)


def kinds(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """The format of each kind of weight, and why, as "attention.query" -> "Q8_0, int8 from BF16".

    Layers and experts are counted together; kinds that differ between layers have several.
    """
    found: dict[str, dict[str, None]] = {}
    for name, tensor in weights.items():
        why = f"{tensor.origin}" if tensor.origin else "as in its file"
        found.setdefault(LAYER.sub("", name), {})[f"{tensor.format}, {why}"] = None
    return {kind: " or ".join(texts) for kind, texts in found.items()}
