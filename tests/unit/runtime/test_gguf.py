"""GGUF files: what is read is what the reference reader reads; damage is named, never crashes."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.runtime.models.checkpoint import load_checkpoint
from headrace.runtime.weights.gguf import WeightsError, read_gguf


def test_metadata_and_tensors_are_those_of_the_reference_reader(tiny: Path) -> None:
    ours, theirs = read_gguf(tiny), GGUFReader(tiny)
    expected = {
        key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")
    }
    assert ours.metadata == expected
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert found.format == tensor.tensor_type.name
        np.testing.assert_array_equal(
            np.asarray(found.data).ravel(), tensor.data.view(np.uint8).ravel()
        )


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused(tiny: Path, tmp_path: Path, share: float) -> None:
    whole = tiny.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(WeightsError, match=r"cut\.gguf"):
        read_gguf(cut)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(4, 9000), value=st.binary(min_size=1, max_size=8))
def test_a_damaged_header_is_refused_or_read(
    tiny: Path, tmp_path: Path, at: int, value: bytes
) -> None:
    damaged = bytearray(tiny.read_bytes())
    damaged[at : at + len(value)] = value
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged)
    with contextlib.suppress(WeightsError):
        load_checkpoint(path)


def test_a_huge_count_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "huge.gguf"
    key = b"general.name"
    array = struct.pack("<IIQ", 9, 4, 2**60)
    entry = struct.pack("<Q", len(key)) + key + array
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry)
    with pytest.raises(WeightsError, match="more than the file has"):
        read_gguf(path)


def test_what_is_no_gguf_file_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("<html>Not found</html>")
    with pytest.raises(WeightsError, match="letters GGUF"):
        read_gguf(path)
    path.write_bytes(b"")
    with pytest.raises(WeightsError, match="empty"):
        read_gguf(path)
