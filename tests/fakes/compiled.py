"""Compile every kernel of the CUDA backend for a chip that need not be there: `python FILE 90`.

The interpreter runs kernels as Python and lets pass what Triton's compiler refuses; ptxas comes
with Triton, so no GPU is needed to find out. Runs in a process of its own, not interpreted.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from headrace.runtime.backends.cuda.kernels import attention, experts, float8, linear, rows

BF16, F16, F32, I32 = "*bf16", "*fp16", "*fp32", "*i32"
TYPES = {  # of parameters that are the same wherever they occur
    **dict.fromkeys(["out", "qkv", "keys", "values", "rows_in", "source", "add"], BF16),
    "highs": "*u8",
    **dict.fromkeys(["scales", "minima"], F16),
    **dict.fromkeys(
        [
            "key_scales",
            "value_scales",
            "sinks",
            "partial_sums",
            "partial_stats",
            "bias",
            "residual",
            "sums",
        ],
        F32,
    ),
    **dict.fromkeys(["far", "near", "query_weight", "key_weight"], F32),
    **dict.fromkeys(["tiles", "merges", "members", "bases", "counts", "tables"], I32),
    **dict.fromkeys(["positions", "slots", "tokens"], I32),
    **dict.fromkeys(["order", "tile_starts", "tile_ends", "tile_experts"], I32),
    **dict.fromkeys(["scale", "cap", "epsilon", "add_scale", "factor"], "fp32"),
}
WEIGHTS = {"dense": BF16, "int8": "*i8", "fp8": "*u8", "int4": "*u8", "mxfp4": "*u8"}
GROUPS = {"dense": 32, "int8": 32, "fp8": 128, "int4": 16, "mxfp4": 32}
TILE = {"GROUP": 4, "SINKS": True, "BLOCK_D": 128}
SEEN = {"WINDOW": 100, "CAUSAL": True, "CAPPED": True, "PAGE": 32, "SPLIT": 256, "BLOCK_N": 64}
CACHES = {  # parameters that hold KV, by the form of its entries
    "float": {"keys": BF16, "values": BF16},
    "int8": {"keys": "*i8", "values": "*i8"},
    "fp8": {"keys": "*u8", "values": "*u8"},
}
HEADS = {"NORM": True, "INTERLEAVED": False, "NEAR": 1024, "BLOCK": 128}
NORM = {"ADD": True, "LAYER": True, "BIAS": True, "ACCUMULATE": True}
CODES = {"weight": "*u8", "scales": F32, "row_scales": F32, "codes": "*u8"}


def compile_kernel(
    chip: int, kernel: Any, constants: Mapping[str, Any], types: Mapping[str, str] = {}
) -> None:
    """Compile to machine code. Raises what Triton raises.

    Raises AssertionError where the kernel is to be launched before those before it are over, but
    does not wait for them before it writes; or the other way about.
    """
    names = kernel.arg_names
    if "CHAINED" in names:
        constants = {**constants, "CHAINED": chip >= 90}
    known = {**TYPES, **types}
    source = ASTSource(
        kernel,
        {name: "constexpr" if name in constants else known.get(name, "i32") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
    )
    found = triton.compile(source, target=GPUTarget("cuda", chip, 32)).asm["ptx"]
    wait, first = found.find("griddepcontrol.wait"), found.find("st.global")
    chained = bool(constants.get("CHAINED"))
    assert (0 <= wait < first) == chained, f"{kernel.__name__} waits at {wait}, writes at {first}"
    assert ("griddepcontrol" in found) == chained, kernel.__name__


def compile_all(chip: int) -> None:
    """Every kernel, in the forms that differ."""
    for kv, cache in CACHES.items():
        constants = {**TILE, **SEEN, "BLOCK_M": 16 if kv == "int8" else 64, "KV": kv}
        compile_kernel(chip, attention.attend_tiles, constants, cache)
        compile_kernel(chip, rows.rotate_and_write, {**HEADS, "KV": kv}, cache)
    compile_kernel(chip, attention.merge_splits, {"SINKS": True, "BLOCK_D": 128})
    for kind, weight in WEIGHTS.items():
        form = {"KIND": kind, "GROUP": GROUPS[kind], "HIGH": 2 if kind == "int4" else 0}
        form |= {"MINIMA": kind == "int4", "BIAS": True}
        blocks = {"ROWS": 16, "BLOCK_N": 32, "BLOCK_K": 128}
        compile_kernel(chip, linear.project_rows, {**form, **blocks}, {"weight": weight})
        compile_kernel(chip, experts.project_pairs, {**form, **blocks}, {"weight": weight})
        del form["BIAS"]
        compile_kernel(chip, linear.embed_rows, {**form, "BLOCK": 1024}, {"table": weight})
    compile_kernel(chip, linear.add_splits, {"BIAS": True, "SPLITS": 3, "BLOCK": 1024})
    norm = {"weight": F32, "codes": "*u8", "scales": F32}
    compile_kernel(chip, rows.norm_rows, {**NORM, "CODES": chip >= 89, "BLOCK": 4096}, norm)
    if chip >= 89:  # from there on E4M3 is multiplied
        compile_kernel(chip, float8.encode_rows, {"BLOCK": 4096}, CODES)
        blocks = {"BIAS": True, "ROWS": 64, "BLOCK_N": 64, "BLOCK_K": 128}
        compile_kernel(chip, float8.project_codes, blocks, CODES)
    compile_kernel(chip, rows.norm_parts, {"BLOCK": 1024}, {"weight": F32})
    for kind in ("silu", "gelu", "gelu_tanh", "clamped_silu"):
        compile_kernel(chip, rows.gate_rows, {"KIND": kind, "BLOCK": 1024})
    for kind in ("relu", "tanh"):
        compile_kernel(chip, rows.activate_rows, {"KIND": kind, "BLOCK": 1024})


if __name__ == "__main__":
    compile_all(int(sys.argv[1]))
