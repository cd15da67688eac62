"""Quantised checkpoints: what is not known is refused by name, damage names its module."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headrace.runtime.models.fields import UnsupportedModel
from headrace.runtime.models.quantization import Scheme, decode, read_scheme
from headrace.runtime.weights.blocks import plain
from headrace.runtime.weights.gguf import WeightsError
from headrace.runtime.weights.tensor import Tensor

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq"}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
INT4 = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 32}


def compressed(weights: dict[str, Any], **changes: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    return {**config, "config_groups": groups, **changes}


def scheme(config: dict[str, Any]) -> Scheme:
    found = read_scheme({"quantization_config": config})
    assert found is not None
    return found


def words(rows: int, columns: int) -> Tensor:
    return plain(np.zeros((rows, columns), np.int32), "I32")


def halves(rows: int, columns: int) -> Tensor:
    return plain(np.ones((rows, columns), np.float16), "F16")


def test_a_model_that_is_not_quantised_has_no_scheme() -> None:
    assert read_scheme({}) is None
    assert read_scheme({"quantization_config": None}) is None


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "bitsandbytes"}, "quant_method 'bitsandbytes'"),
        ({}, "quantization_config"),
        ({**AWQ, "bits": 3}, "bits 3"),
        ({**AWQ, "version": "gemv"}, "version 'gemv'"),
        ({**AWQ, "zero_point": False}, "zero_point False"),
        ({**AWQ, "twist": 1}, "twist"),
        ({**GPTQ, "bits": 2}, "bits 2"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        ({**GPTQ, "dynamic": {"-:.*": {}}}, "dynamic"),
        ({**FP8, "fmt": "e5m2"}, "fmt 'e5m2'"),
        (compressed({**INT4, "type": "float"}), "float of 4 bits"),
        (compressed({**INT4, "strategy": "tensor_group"}), "strategy 'tensor_group'"),
        (compressed(INT4, format="nvfp4-pack-quantized"), "format 'nvfp4-pack-quantized'"),
        (compressed(INT4, transform_config={"config_groups": {"R1": {}}}), "transform_config"),
        (compressed(INT4, sparsity_config={"format": "sparse-bitmask"}), "sparse-bitmask"),
        (compressed(INT4, kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"),
    ],
)
def test_what_is_not_known_is_refused_by_name(config: dict[str, Any], words: str) -> None:
    if not config:
        config = {"bits": 4}
    with pytest.raises(UnsupportedModel, match=words):
        scheme(config)


def test_a_module_that_lacks_a_part_is_named() -> None:
    tensors = {"a.q_proj.qweight": words(32, 4), "a.q_proj.scales": halves(1, 32)}
    with pytest.raises(WeightsError, match=r"a\.q_proj lacks qzeros"):
        decode(scheme(AWQ), tensors)


@pytest.mark.parametrize(
    "parts",
    [
        {"qweight": words(32, 4), "qzeros": words(3, 4), "scales": halves(3, 32)},
        {"qweight": words(32, 4), "qzeros": words(1, 5), "scales": halves(1, 32)},
        {"qweight": words(32, 4), "qzeros": words(1, 4), "scales": halves(1, 31)},
        {"qweight": halves(32, 4), "qzeros": words(1, 4), "scales": halves(1, 32)},
    ],
)
def test_parts_that_do_not_fit_are_refused_with_their_module(parts: dict[str, Tensor]) -> None:
    with pytest.raises(WeightsError, match=r"a\.q_proj"):
        decode(scheme(AWQ), {f"a.q_proj.{part}": one for part, one in parts.items()})


@pytest.mark.parametrize("group", [-1, 1])
def test_a_column_in_a_group_that_is_not_there_is_refused(group: int) -> None:
    order = plain(np.full((1, 32), group, np.int32), "I32")
    parts = {"qweight": words(4, 32), "qzeros": words(1, 4), "scales": halves(1, 32)}
    tensors = {f"a.q_proj.{part}": one for part, one in (parts | {"g_idx": order}).items()}
    with pytest.raises(WeightsError, match="group is out of range"):
        decode(scheme(GPTQ), tensors)


def test_scales_of_tiles_must_cover_the_weight() -> None:
    weight = plain(np.zeros((200, 64), np.uint8), "F8_E4M3")
    tensors = {"a.weight": weight, "a.weight_scale_inv": halves(1, 1)}
    with pytest.raises(WeightsError, match="scales of tiles"):
        decode(scheme(FP8), tensors)


def test_scales_too_small_for_blocks_are_not_lost() -> None:
    scales = plain(np.full((1, 8), 1e-9, np.float32), "F32")
    codes = plain(np.full((32, 1), 0x33333333, np.int32), "I32")
    parts = {"qweight": codes, "qzeros": words(1, 1), "scales": scales}
    found = decode(scheme(AWQ), {f"a.{part}": one for part, one in parts.items()})["a.weight"]
    np.testing.assert_allclose(found.float32(), np.full((8, 32), 3e-9), rtol=1e-6)


def test_what_is_not_quantised_stays_as_it_is() -> None:
    tensors = {"norm.weight": halves(1, 32), "a.bias": halves(1, 8)}
    assert decode(scheme(FP8), tensors) == tensors
