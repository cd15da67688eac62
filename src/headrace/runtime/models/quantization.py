"""Quantised checkpoints: what `quantization_config` says, and the weights that it stands for.

AWQ, GPTQ, FP8 and compressed-tensors keep a matrix as several tensors with the module's name
before them. Each becomes one `.weight` (`weights.integers`, `weights.float8`). Only weights are
read: where the config wants activations rounded too, their scales are dropped, and a backend rounds
them or not as its own kernels do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..weights import integers
from ..weights.float8 import fp8
from ..weights.gguf import WeightsError
from ..weights.tensor import Tensor
from .fields import Fields, UnsupportedModel

KEY = "quantization_config"
Parts = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a checkpoint is quantised: the names of a module's `parts`, and the weight they make.

    Parts among `dropped` say how activations are rounded.
    """

    name: str
    parts: frozenset[str]
    decode: Callable[[Parts], Tensor]
    dropped: frozenset[str] = frozenset()


def read_scheme(config: Mapping[str, Any]) -> Scheme | None:
    """The scheme of a config.json; None where a weight is one tensor. Raises UnsupportedModel."""
    found = config.get(KEY)
    if not found:
        return None
    fields = Fields(found, KEY)
    method = fields.get("quant_method")
    if method not in SCHEMES:
        raise UnsupportedModel(
            f"{KEY} has quant_method {method!r}; supported: {', '.join(SCHEMES)}"
        )
    scheme = SCHEMES[method](fields)
    fields.refuse_unread()
    return scheme


def awq(fields: Fields) -> Scheme:
    """AutoAWQ: Lin et al., arXiv 2306.00978."""
    fields.only("bits", 4)
    fields.only("zero_point", True)
    fields.only("version", "gemm", "GEMM")
    fields.ignore("group_size", "modules_to_not_convert", "backend", "exllama_config")
    fields.ignore("do_fuse", "modules_to_fuse", "fuse_max_seq_len")
    return Scheme("AWQ", frozenset({"qweight", "qzeros", "scales"}), integers.awq)


def gptq(fields: Fields) -> Scheme:
    """AutoGPTQ and its successors: Frantar et al., arXiv 2210.17323."""
    fields.only("bits", 4, 8)
    fields.only("checkpoint_format", "gptq", "gptq_v2")
    fields.only("pack_dtype", "int32")
    fields.only("is_marlin_format", False)
    fields.ignore("group_size", "desc_act", "sym", "lm_head", "meta", "quantizer", "format")
    fields.ignore("damp_percent", "damp_auto_increment", "true_sequential", "static_groups", "mse")
    fields.ignore(
        "model_name_or_path", "model_file_base_name", "dataset", "tokenizer", "batch_size"
    )
    fields.ignore("block_name_to_quantize", "module_name_preceding_first_block", "model_seqlen")
    fields.ignore("modules_in_block_to_quantize", "use_cuda_fp16", "use_exllama", "exllama_config")
    fields.ignore("max_input_length", "cache_block_outputs", "pad_token_id", "disable_exllama")
    fields.ignore("backend")
    less = 0 if fields.get("checkpoint_format") == "gptq_v2" else 1
    decode = partial(integers.gptq, bits=fields.need("bits"), stored_less=less)
    return Scheme("GPTQ", frozenset({"qweight", "qzeros", "scales", "g_idx"}), decode)


def float8(fields: Fields) -> Scheme:
    """E4M3 with one scale a matrix or a tile, as DeepSeek-V3 (arXiv 2412.19437) introduced."""
    fields.only("fmt", "e4m3")
    fields.only("activation_scheme", "dynamic", "static")
    fields.only("scale_fmt", "float", "ue8m0")
    fields.ignore("modules_to_not_convert", "ignored_layers", "dequantize")
    tile = tile_of(fields, "weight_block_size")

    def decode(parts: Parts) -> Tensor:
        scale = parts.get("weight_scale_inv", parts.get("weight_scale"))
        return float_weight(parts["weight"], scale, tile)

    parts = frozenset({"weight", "weight_scale_inv", "weight_scale"})
    return Scheme("FP8", parts, decode, frozenset({"input_scale", "activation_scale"}))


def compressed(fields: Fields) -> Scheme:
    """compressed-tensors (the vLLM project's format), whose groups of modules may differ."""
    fields.only("format", *FORMATS, "mixed-precision", "dense")
    fields.only("quantization_status", "compressed", "frozen")
    fields.ignore("ignore", "global_compression_ratio", "version")
    fields.only("kv_cache_scheme")
    sparsity = fields.get("sparsity_config", {})
    Fields(sparsity, "sparsity_config").only("format", "dense")
    tiles = set()
    for name, group in fields.need("config_groups").items():
        place = f"{KEY}.config_groups.{name}"
        about = Fields(group, place)
        about.only("format", *FORMATS)
        about.only("output_activations")
        about.ignore("targets", "input_activations")
        weights = Fields(about.need("weights"), f"{place}.weights")
        about.refuse_unread()
        tiles.add(compressed_tile(weights))
    if len(tiles) > 1:
        raise UnsupportedModel(f"{KEY} has groups with tiles of different sizes")
    parts = {"weight", "weight_packed", "weight_shape", "weight_scale"}
    parts |= {"weight_zero_point", "weight_g_idx"}
    decode = partial(decode_compressed, tile=tiles.pop() if tiles else None)
    dropped = frozenset({"input_scale", "input_zero_point"})
    return Scheme("compressed-tensors", frozenset(parts), decode, dropped)


def mxfp4(fields: Fields) -> None:
    """gpt-oss's experts, whose tensors say by their names what they are (`unpacking.gpt_oss`)."""
    fields.ignore("modules_to_not_convert", "dequantize")


FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
SCHEMES: Mapping[str, Callable[[Fields], Scheme | None]] = {
    "awq": awq,
    "gptq": gptq,
    "fp8": float8,
    "compressed-tensors": compressed,
    "mxfp4": mxfp4,
}


def compressed_tile(weights: Fields) -> tuple[int, int] | None:
    """Check how a group's weights are quantised; the tile of a scale, where scales have one."""
    kind, bits = weights.need("type"), weights.need("num_bits")
    if (kind, bits) not in {("int", 4), ("int", 8), ("float", 8)}:
        raise UnsupportedModel(
            f"{weights.where} has {kind} of {bits} bits; supported: int 4 and 8, float 8"
        )
    weights.only("strategy", "tensor", "channel", "group", "block")
    weights.only("dynamic", False)
    weights.only("actorder", "group", "weight", "static", "dynamic")
    weights.ignore("symmetric", "group_size", "observer", "observer_kwargs")
    weights.ignore("scale_dtype", "zp_dtype")
    tile = tile_of(weights, "block_structure")
    weights.refuse_unread()
    return tile if weights.get("strategy") == "block" else None


def tile_of(fields: Fields, name: str) -> tuple[int, int] | None:
    """A field [rows, columns], or None. Raises WeightsError where it is neither."""
    match fields.get(name):
        case None:
            return None
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
        case other:
            raise WeightsError(f"{fields.where}: {name} is {other!r}, not [rows, columns]")


def decode_compressed(parts: Parts, tile: tuple[int, int] | None) -> Tensor:
    """A module of a compressed-tensors checkpoint, whose tensors say how it is kept."""
    if "weight_packed" in parts:
        return integers.packed(parts)
    if parts["weight"].format == "I8":
        return integers.int8(parts)
    return float_weight(parts["weight"], parts.get("weight_scale"), tile)


def float_weight(weight: Tensor, scale: Tensor | None, tile: tuple[int, int] | None) -> Tensor:
    """An FP8 weight with its scale."""
    if weight.format != "F8_E4M3" or scale is None:
        raise WeightsError(f"a weight of format {weight.format} with scales is not known")
    return fp8(weight, scale, tile)


def decode(scheme: Scheme, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of a checkpoint, each quantised module's as one `.weight`.

    Raises WeightsError where a module lacks a part or its parts do not fit.
    """
    found: dict[str, Tensor] = {}
    modules: dict[str, Parts] = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if part in scheme.dropped:
            continue
        if part in scheme.parts:
            modules.setdefault(module, {})[part] = tensor
        else:
            found[name] = tensor

    def one(module: str) -> Tensor:
        parts = modules[module]
        weight = parts.get("weight")
        if len(parts) == 1 and weight is not None and weight.format in ("F32", "F16", "BF16"):
            return weight
        try:
            return replace(scheme.decode(parts), origin=scheme.name)
        except KeyError as lacking:
            raise WeightsError(f"{module} lacks {lacking.args[0]}") from lacking
        except ValueError as error:
            raise WeightsError(f"{module}: {error}") from error

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # numpy lets go of the lock
        weights = list(pool.map(one, modules))
    return found | {f"{name}.weight": weight for name, weight in zip(modules, weights, strict=True)}
