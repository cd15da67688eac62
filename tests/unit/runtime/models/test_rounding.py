"""Quantisation at load: which weights are rounded, to what, and that the report says so."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from hypothesis.strategies import floats as floats32
from hypothesis.strategies import sampled_from
from numpy.typing import NDArray

from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.models.checkpoint import load_checkpoint
from headrace.runtime.models.rounding import rounded_natively
from headrace.runtime.native import native_code
from headrace.runtime.weights.blocks import plain, rounded
from headrace.runtime.weights.float8 import rounded_fp8
from tests.fakes.model import write_tiny_gguf


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("floats") / "tiny.gguf")


def test_int4_keeps_norms_and_gives_8_bits_to_what_needs_them(floats: Path) -> None:
    found = load_checkpoint(floats, quantization="int4")
    formats = {name: tensor.format for name, tensor in found.weights.items()}
    assert formats["layers.0.attention.query"] == formats["layers.1.mlp.down"] == "Q4_1"
    assert formats["embedding"] == formats["layers.1.attention.value"] == "Q8_0"
    assert {f for name, f in formats.items() if name.endswith("norm")} == {"F32"}


def test_the_report_says_what_became_of_each_kind_of_weight_and_why(floats: Path) -> None:
    kinds = load_checkpoint(floats, quantization="int8").kinds
    assert kinds["mlp.gate"] == "Q8_0, int8 from F32"
    assert kinds["attention.norm"] == "F32, as in its file"


def test_what_a_file_has_quantised_is_not_rounded_again(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", format="Q4_0")
    before, after = load_checkpoint(path), load_checkpoint(path, quantization="int8")
    assert before.kinds == after.kinds
    assert after.kinds["attention.query"] == "Q4_0, as in its file"


LEVELS = native_code().levels()  # type: ignore[union-attr]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("format", ["Q8_0", "Q4_1"])
@pytest.mark.parametrize("source", [np.float32, np.float16, ml_dtypes.bfloat16])
@given(
    values=arrays(np.float32, (3, 64), elements=floats32(-6e4, 6e4, width=32)),
    scale=sampled_from([1.0, 1e-3, 1e-9]),
)
@settings(max_examples=20, deadline=None)
def test_native_code_rounds_to_the_same_bytes(
    level: str, format: str, source: type, values: NDArray[np.float32], scale: float
) -> None:
    kinds = {np.float32: "F32", np.float16: "F16", ml_dtypes.bfloat16: "BF16"}
    tensor = plain((values * np.float32(scale)).astype(source), kinds[source])
    expected = rounded(tensor, format)
    found = rounded_natively(native_code(), tensor, format, level)
    np.testing.assert_array_equal(found.data, expected.data)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e9])
@pytest.mark.parametrize("format", ["Q8_0", "Q4_1"])
def test_native_code_refuses_what_no_scale_can_reach(format: str, bad: float) -> None:
    values = np.ones((2, 64), np.float32)
    values[1, 40] = bad
    with pytest.raises(ValueError, match="no number"):
        rounded_natively(native_code(), plain(values, "F32"), format)


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("to", ["int8", "int4", "fp8"])
def test_a_rounded_model_answers(floats: Path, to: str, backend: str) -> None:
    options = EngineOptions(backend=backend, kv_tokens=256, quantization=to)  # type: ignore[arg-type]
    with Engine.load(floats, options) as engine:
        assert engine.generate("abc").finish.completion_tokens


def test_a_quantisation_that_there_is_not_is_refused_by_name(floats: Path) -> None:
    with pytest.raises(ValueError, match="'int2'; there are: int8, int4"):
        load_checkpoint(floats, quantization="int2")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("format", "columns", "kept"), [("F32", 200, "F16"), ("BF16", 256, "E4M3")]
)
def test_fp8_is_e4m3_with_a_scale_a_row(format: str, columns: int, kept: str) -> None:
    random = np.random.default_rng(2)
    values = (random.standard_normal((700, columns)) * np.logspace(-6, 2, 700)[:, None]).astype(
        "f4"
    )
    values[5] = 0
    source = plain(values if format == "F32" else values.astype(ml_dtypes.bfloat16), format)
    values = source.float32()
    scales = np.abs(values).max(axis=1, keepdims=True) / np.float32(448)
    codes = np.divide(values, scales, out=np.zeros_like(values), where=scales > 0)
    expected = codes.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scales
    found = rounded_fp8(source)
    assert found.format == kept
    # F16 keeps 11 bits of the product, and steps of 6e-8 where it is tiny
    np.testing.assert_allclose(found.float32(), expected, rtol=2.0**-11, atol=6e-8)


def test_fp8_leaves_the_vocabulary_and_refuses_what_is_no_number(floats: Path) -> None:
    found = load_checkpoint(floats, quantization="fp8")
    assert found.weights["embedding"].format == "F32"
    assert found.kinds["mlp.down"] == "F16, fp8 from F32"
    with pytest.raises(ValueError, match="no number"):
        rounded_fp8(plain(np.full((2, 2), np.nan, np.float32), "F32"))
