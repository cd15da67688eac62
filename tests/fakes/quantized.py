"""Random Llamas as quantised checkpoints: the tensors of each format, and the floats they mean.

Packing and dequantisation are written from the formats' definitions, in torch, one value at a time
where that is plainest; nothing here is the code under test.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Parts = dict[str, torch.Tensor]
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Form:
    """A way to quantise: `config` for config.json, `make(weight) -> (parts, floats)`."""

    config: dict[str, Any]
    make: Callable[[torch.Tensor], tuple[Parts, torch.Tensor]]
    formats: set[str]  # in which our tensors may hold it


def pack(codes: torch.Tensor, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """[rows, columns] codes as int32 words along the columns, nibble i of column order[i]."""
    count = 32 // bits
    words = torch.zeros(codes.shape[0], -(-codes.shape[1] // count), dtype=torch.int64)
    for row in range(codes.shape[0]):
        for word in range(words.shape[1]):
            for place in range(count):
                column = word * count + (order[place] if order else place)
                if column < codes.shape[1]:
                    words[row, word] |= int(codes[row, column]) << (bits * place)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def grouped(
    weight: torch.Tensor, size: int, bits: int, *, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [rows, columns], zeros and float16 scales [rows, groups] of a weight."""
    rows, columns = weight.shape
    parts = weight.reshape(rows, columns // size, size)
    top = 2**bits - 1
    if symmetric:
        scales = (parts.abs().amax(-1) / (2 ** (bits - 1) - 1)).half()
        zeros = torch.full(scales.shape, 2 ** (bits - 1))
    else:
        low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
        scales = ((high - low) / top).half()
        zeros = (-low / scales.float()).round().long().clamp(0, top)
    codes = (parts / scales.float()[..., None]).round() + zeros[..., None]
    return codes.long().clamp(0, top).reshape(rows, columns), zeros, scales


def floats(
    codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, group: torch.Tensor
) -> torch.Tensor:
    """(code - zero) · scale, of each column's group; float64."""
    return (codes - zeros[:, group]).double() * scales.double()[:, group]


def in_order(columns: int, size: int) -> torch.Tensor:
    return torch.arange(columns) // size


def awq(size: int) -> Form:
    def make(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        codes, zeros, scales = grouped(weight, size, 4, symmetric=False)
        order = (0, 2, 4, 6, 1, 3, 5, 7)
        parts = {
            "qweight": pack(codes.T, 4, order),
            "qzeros": pack(zeros.T, 4, order),
            "scales": scales.T.contiguous(),
        }
        return parts, floats(codes, zeros, scales, in_order(weight.shape[1], size))

    config = {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True}
    return Form({**config, "version": "gemm", "modules_to_not_convert": None}, make, {"Q4_1"})


def gptq(
    size: int, bits: int = 4, *, symmetric: bool, acts: bool = False, version: int = 1
) -> Form:
    def make(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        codes, zeros, scales = grouped(weight, size, bits, symmetric=symmetric)
        group = in_order(weight.shape[1], size)
        if acts:
            order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(4))
            codes, group = codes[:, order], group[order]
        stored = (zeros - 1) % 2**bits if version == 1 else zeros
        parts = {
            "qweight": pack(codes, bits).T.contiguous(),
            "qzeros": pack(stored.T, bits),
            "scales": scales.T.contiguous(),
            "g_idx": group.to(torch.int32),
        }
        return parts, floats(codes, zeros, scales, group)

    config: dict[str, Any] = {"quant_method": "gptq", "bits": bits, "group_size": size}
    config |= {
        "desc_act": acts,
        "sym": symmetric,
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
    }
    exact = {"Q8_0"} if bits == 8 else {"Q4_0"} if symmetric else {"Q4_1"}
    return Form(config, make, {"F16"} if acts or (bits == 8 and not symmetric) else exact)


def fp8(tile: tuple[int, int] | None) -> Form:
    def make(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        rows, columns = tile or tuple(weight.shape)
        values = torch.zeros_like(weight, dtype=torch.float8_e4m3fn)
        meant = torch.zeros_like(weight, dtype=torch.float64)
        scales = torch.zeros(-(-weight.shape[0] // rows), -(-weight.shape[1] // columns))
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                here = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
                scales[i, j] = weight[here].abs().max() / 448
                values[here] = (weight[here] / scales[i, j]).to(torch.float8_e4m3fn)
                meant[here] = values[here].double() * scales[i, j].double()
        scale = scales if tile else scales.reshape(())
        return {"weight": values, "weight_scale_inv": scale}, meant

    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
    made = {"F16"} if tile else {"F16", "E4M3"}  # by whether 128 divides a row
    return Form({**config, "weight_block_size": list(tile) if tile else None}, make, made)


def compressed(format: str, weights: dict[str, Any], make: Any, ours: set[str]) -> Form:
    group = {"targets": ["Linear"], "weights": {"dynamic": False, "symmetric": True, **weights}}
    config = {"quant_method": "compressed-tensors", "format": format, "ignore": ["lm_head"]}
    status = {"quantization_status": "compressed", "config_groups": {"group_0": group}}
    return Form({**config, **status, "kv_cache_scheme": None, "version": "0.9"}, make, ours)


def packed(size: int, bits: int = 4, *, symmetric: bool, acts: bool = False) -> Form:
    def make(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        codes, zeros, scales = grouped(weight, size, bits, symmetric=symmetric)
        group = in_order(weight.shape[1], size)
        parts = {"weight_shape": torch.tensor(weight.shape), "weight_scale": scales}
        if acts:
            order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(4))
            codes, group = codes[:, order], group[order]
            parts["weight_g_idx"] = group.to(torch.int32)
        parts["weight_packed"] = pack(codes, bits)
        if not symmetric:
            parts["weight_zero_point"] = pack(zeros.T, bits).T.contiguous()
        return parts, floats(codes, zeros, scales, group)

    about = {"type": "int", "num_bits": bits, "strategy": "group", "group_size": size}
    about |= {"symmetric": symmetric, "actorder": "group" if acts else None}
    exact = {"Q8_0"} if bits == 8 else {"Q4_0"} if symmetric else {"Q4_1"}
    return compressed("pack-quantized", about, make, {"F16"} if acts else exact)


def int8(*, symmetric: bool = True) -> Form:
    def make(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        codes, zeros, scales = grouped(weight, weight.shape[1], 8, symmetric=symmetric)
        parts = {"weight": (codes - 128).to(torch.int8), "weight_scale": scales.bfloat16()}
        if not symmetric:
            parts["weight_zero_point"] = (zeros - 128).to(torch.int8)
        group = torch.zeros(weight.shape[1], dtype=torch.int64)
        return parts, floats(codes, zeros, scales.bfloat16(), group)

    about = {"type": "int", "num_bits": 8, "strategy": "channel", "symmetric": symmetric}
    return compressed("int-quantized", about, make, {"Q8_0"} if symmetric else {"F16"})


def float8(strategy: str) -> Form:
    def make(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        largest = weight.abs().amax(1, keepdim=True)
        scale = (largest if strategy == "channel" else largest.max().reshape(1)) / 448
        values = (weight / scale).to(torch.float8_e4m3fn)
        parts = {"weight": values, "weight_scale": scale, "input_scale": torch.ones(1)}
        return parts, values.double() * scale.double()

    about = {"type": "float", "num_bits": 8, "strategy": strategy}
    return compressed("float-quantized", about, make, {"F16", "E4M3"})


FORMS: dict[str, Form] = {
    "awq, groups of 32": awq(32),
    "awq, groups of 64": awq(64),
    "gptq": gptq(32, symmetric=True),
    "gptq, asymmetric": gptq(32, symmetric=False),
    "gptq version 2": gptq(64, symmetric=False, version=2),
    "gptq, columns in the order of activations": gptq(32, symmetric=False, acts=True),
    "gptq, 8 bits": gptq(32, 8, symmetric=True),
    "gptq, 8 bits, asymmetric": gptq(32, 8, symmetric=False),
    "fp8, one scale": fp8(None),
    "fp8, tiles": fp8((48, 40)),
    "compressed int4": packed(32, symmetric=True),
    "compressed int4, asymmetric": packed(64, symmetric=False),
    "compressed int4, columns in the order of activations": packed(32, symmetric=False, acts=True),
    "compressed packed int8": packed(32, 8, symmetric=True),
    "compressed int8": int8(),
    "compressed int8, asymmetric": int8(symmetric=False),
    "compressed fp8, one scale": float8("tensor"),
    "compressed fp8, a scale a row": float8("channel"),
}


def quantize_directory(path: Path, form: Form) -> dict[str, torch.Tensor]:
    """Quantise a saved Llama where it lies; the floats that its matrices mean now, by name."""
    file, meant = path / "model.safetensors", {}
    tensors = load_file(file)
    for name in [n for n in tensors if n.split(".")[-2] in MATRICES]:
        weight = tensors.pop(name)
        parts, meant[name] = form.make(weight)
        module = name.removesuffix(".weight")
        tensors |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
    save_file(tensors, file)
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = form.config
    (path / "config.json").write_text(json.dumps(config))
    return meant
