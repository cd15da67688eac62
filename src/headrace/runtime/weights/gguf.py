"""GGUF files: metadata and memory-mapped tensors.

The layout is the GGUF specification, version 3 (ggml-org/ggml, docs/gguf.md); version 2 differs
only in what this reader does not use. The `gguf` package reads the same files, but builds an
array per value: 1.8 s for a 135M model, all of it vocabulary, against 0.1 s here; its constants
and its dequantisation are what `weights.tensor` uses.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from .tensor import FORMATS, Tensor

MAGIC = b"GGUF"
STRING, ARRAY = 8, 9
SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
UINT32, UINT64 = SCALARS[4], SCALARS[10]


class WeightsError(ValueError):
    """The file is not what it should be: damaged, cut short, or of a kind not supported."""


@dataclass(frozen=True, slots=True)
class GGUF:
    """One file: `metadata` by key (arrays as lists), tensors by the file's own names."""

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


class Cursor:
    """A place in a buffer; every read is checked against its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def scalar(self, kind: struct.Struct) -> Any:
        (value,) = kind.unpack_from(self.data, self.at)
        self.at += kind.size
        return value

    def string(self) -> str:
        return self.strings(1)[0]

    def strings(self, count: int) -> list[str]:
        """One loop, no calls: a vocabulary is hundreds of thousands of them."""
        data, at, size, length_at = self.data, self.at, len(self.data), UINT64.unpack_from
        found = []
        for _ in range(count):
            begin = at + UINT64.size
            at = begin + length_at(data, at)[0]
            if at > size:
                raise WeightsError("a string runs past the end of the file")
            found.append(data[begin:at].decode("utf-8", "replace"))
        self.at = at
        return found

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind in SCALARS:
            return self.scalar(SCALARS[kind])
        if kind == ARRAY:
            return self.array()
        raise WeightsError(f"unknown metadata type {kind}")

    def array(self) -> list[Any]:
        kind = self.scalar(UINT32)
        count = self.scalar(UINT64)
        if count > len(self.data):
            raise WeightsError(f"an array claims {count} values, more than the file has bytes")
        if kind == STRING:
            return self.strings(count)
        if kind not in SCALARS:
            return [self.value(kind) for _ in range(count)]
        values = struct.Struct(f"<{count}{SCALARS[kind].format[1:]}")
        found = values.unpack_from(self.data, self.at)
        self.at += values.size
        return list(found)


def read_gguf(path: Path) -> GGUF:
    """Map a GGUF file. Raises WeightsError where it is damaged, OSError where it cannot be read."""
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise WeightsError(f"{path} is empty") from error
    try:
        return parse(data)
    except (struct.error, WeightsError) as error:
        raise WeightsError(f"{path} is not a sound GGUF file: {error}") from error


def parse(data: mmap.mmap) -> GGUF:
    """Read header, metadata and tensor table of a mapped file."""
    if data[:4] != MAGIC:
        raise WeightsError("it does not begin with the letters GGUF")
    cursor = Cursor(data)
    cursor.at = 4
    version = cursor.scalar(UINT32)
    if version not in (2, 3):
        raise WeightsError(f"version {version}; 2 and 3 are supported")
    tensor_count, metadata_count = cursor.scalar(UINT64), cursor.scalar(UINT64)
    metadata = {}
    for _ in range(metadata_count):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalar(UINT32))
    table = [read_entry(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise WeightsError(f"alignment {alignment}")
    start = -(-cursor.at // alignment) * alignment
    view = np.frombuffer(data, np.uint8)
    return GGUF(metadata, {entry.name: map_tensor(entry, view[start:]) for entry in table})


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the tensor table. `shape` is innermost first, as in the file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def read_entry(cursor: Cursor) -> Entry:
    """Read one line of the tensor table."""
    name = cursor.string()
    dimensions = cursor.scalar(UINT32)
    if dimensions > 4:
        raise WeightsError(f"tensor {name} has {dimensions} dimensions")
    shape = tuple(cursor.scalar(UINT64) for _ in range(dimensions))
    return Entry(name, shape, cursor.scalar(UINT32), cursor.scalar(UINT64))


def map_tensor(entry: Entry, view: NDArray[np.uint8]) -> Tensor:
    """View a tensor's bytes in the file's data section."""
    try:
        format = GGMLQuantizationType(entry.kind).name
        values, size = FORMATS[format]
    except (ValueError, KeyError) as error:
        raise WeightsError(
            f"tensor {entry.name} has format {entry.kind}; supported: {', '.join(FORMATS)}"
        ) from error
    columns = entry.shape[0] if entry.shape else 1
    rows = int(np.prod(entry.shape[1:], dtype=object)) if len(entry.shape) > 1 else 1
    if columns % values:
        raise WeightsError(f"tensor {entry.name}: {columns} columns, not a multiple of {values}")
    row_bytes = columns // values * size
    end = entry.offset + rows * row_bytes
    if end > len(view):
        raise WeightsError(f"tensor {entry.name} ends at byte {end} of {len(view)}")
    data = view[entry.offset : end].reshape(rows, row_bytes)
    return Tensor(format, rows, columns, data)
