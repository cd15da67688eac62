"""A weight as it lies in its file: bytes, a format, a shape."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

# Formats by name: (values a block, bytes a block). The layouts are GGML's own.
FORMATS: dict[str, tuple[int, int]] = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q8_0": (32, 34),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "MXFP4": (32, 17),
}
# And E4M3 (OCP FP8), which GGML has not: a float32 scale, then 128 values that it multiplies.
BLOCKS: dict[str, tuple[int, int]] = {**FORMATS, "E4M3": (128, 132)}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A matrix [rows, columns] in `format`; a vector is one row.

    `data` is uint8 [rows, bytes a row], usually a view of a memory-mapped file: the bytes of a row
    lie together, and rows one after the other, but for a part of a weight that has fewer columns.
    `origin` says what made it, where it does not lie in a file as it is.
    """

    format: str
    rows: int
    columns: int
    data: NDArray[np.uint8]
    origin: str = ""

    def float32(self) -> NDArray[np.float32]:
        """The values, float32 [rows, columns]; a copy."""
        if self.format == "F32":
            return np.array(self.data.view(np.float32))
        if self.format == "F16":
            return self.data.view(np.float16).astype(np.float32)
        if self.format == "BF16":
            values: NDArray[np.float32] = self.data.view(ml_dtypes.bfloat16).astype(np.float32)
        elif self.format == "E4M3":
            values = e4m3_values(self.data)
        else:
            values = dequantize(self.data, GGMLQuantizationType[self.format])
        return values


def e4m3_values(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The values of rows of E4M3 blocks, float32 [rows, columns]."""
    blocks = data.reshape(len(data), -1, BLOCKS["E4M3"][1])
    found: NDArray[np.float32] = blocks[..., 4:].view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    found *= np.ascontiguousarray(blocks[..., :4]).view(np.float32)
    return found.reshape(len(data), -1)
