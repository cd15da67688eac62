"""What is done to each row by itself: norms, rotation with the KV write, gates."""

from __future__ import annotations

import triton
import triton.language as tl

from .chain import wait
from .float8 import write_codes
from .numbers import nearest, to_e4m3


@triton.jit
def norm_rows(
    out,
    residual,
    add,
    weight,
    bias,
    codes,
    scales,
    width,
    add_scale,
    epsilon,
    ADD: tl.constexpr,
    LAYER: tl.constexpr,
    BIAS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    CODES: tl.constexpr,
    CHAINED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`program.Norm` of one row: the residual is updated, and its norm goes to `out`.

    With CODES it goes to `codes` and `scales` too, rounded to E4M3 (`float8.write_codes`).
    """
    number = tl.program_id(0).to(tl.int64)
    row = number * width
    offsets = tl.arange(0, BLOCK)
    inside = offsets < width
    gain = tl.load(weight + offsets, mask=inside, other=0.0).to(tl.float32)
    wait(CHAINED)
    values = tl.load(residual + row + offsets, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        added = tl.load(add + row + offsets, mask=inside, other=0.0).to(tl.float32)
        values = values + added * add_scale
        tl.store(residual + row + offsets, values.to(residual.dtype.element_ty), mask=inside)
    if LAYER:
        values = tl.where(inside, values - tl.sum(values, 0) / width, 0.0)
    values = values * tl.rsqrt(tl.sum(values * values, 0) / width + epsilon)
    values = values * gain
    if BIAS:
        values = values + tl.load(bias + offsets, mask=inside, other=0.0).to(tl.float32)
    if ACCUMULATE:
        values = values + tl.load(out + row + offsets, mask=inside, other=0.0).to(tl.float32)
    if CODES:
        write_codes(codes, scales, number, offsets, values, inside, width)
    tl.store(out + row + offsets, values.to(out.dtype.element_ty), mask=inside)


@triton.jit
def norm_parts(
    qkv,
    weight,
    row_width,
    first,
    part_width,
    epsilon,
    CHAINED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """RMSNorm of a row's values [first, first + part_width), in place."""
    place = tl.program_id(0).to(tl.int64) * row_width + first
    offsets = tl.arange(0, BLOCK)
    inside = offsets < part_width
    wait(CHAINED)
    values = tl.load(qkv + place + offsets, mask=inside, other=0.0).to(tl.float32)
    values = values * tl.rsqrt(tl.sum(values * values, 0) / part_width + epsilon)
    values = values * tl.load(weight + offsets, mask=inside, other=0.0).to(tl.float32)
    tl.store(qkv + place + offsets, values.to(qkv.dtype.element_ty), mask=inside)


@triton.jit
def rotate_and_write(
    qkv,
    keys,
    values,
    key_scales,
    value_scales,
    positions,
    slots,
    far,
    near,
    query_weight,
    key_weight,
    epsilon,
    heads,
    kv_heads,
    head_size,
    pairs,
    NORM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NEAR: tl.constexpr,
    KV: tl.constexpr,
    CHAINED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One head of one row: norm, rotation, and of a key or value the copy to its KV slot.

    The angle of position p is that of p // NEAR · NEAR plus that of p % NEAR; `far` and `near`
    hold cosines and sines of each, so that small tables give every position to the last bits of
    float32. A pair is (i, i + pairs), or (2i, 2i + 1) where interleaved. A row whose slot is
    negative writes nothing.
    """
    row = tl.program_id(0)
    head = tl.program_id(1)
    place = (row.to(tl.int64) * (heads + 2 * kv_heads) + head) * head_size
    offsets = tl.arange(0, BLOCK)
    inside = offsets < head_size
    wait(CHAINED)
    found = tl.load(qkv + place + offsets, mask=inside, other=0.0).to(tl.float32)
    if head < heads + kv_heads:
        if INTERLEAVED:
            turned = offsets < 2 * pairs
            pair = offsets // 2
            is_first = offsets % 2 == 0
            partner = tl.where(is_first, offsets + 1, offsets - 1)
        else:
            turned = offsets < 2 * pairs
            pair = tl.where(offsets < pairs, offsets, offsets - pairs)
            is_first = offsets < pairs
            partner = tl.where(is_first, offsets + pairs, offsets - pairs)
        partner = tl.where(turned, partner, offsets)
        other = tl.load(qkv + place + partner, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            share = tl.rsqrt(tl.sum(found * found, 0) / head_size + epsilon)
            weight = query_weight if head < heads else key_weight
            found = found * share * tl.load(weight + offsets, mask=inside, other=0.0).to(tl.float32)
            other = other * share * tl.load(weight + partner, mask=inside, other=0.0).to(tl.float32)
        position = tl.load(positions + row)
        far_at = (position // NEAR * pairs + pair) * 2
        near_at = (position % NEAR * pairs + pair) * 2
        far_cos = tl.load(far + far_at, mask=turned, other=1.0)
        far_sin = tl.load(far + far_at + 1, mask=turned, other=0.0)
        near_cos = tl.load(near + near_at, mask=turned, other=1.0)
        near_sin = tl.load(near + near_at + 1, mask=turned, other=0.0)
        cosine = far_cos * near_cos - far_sin * near_sin
        sine = far_sin * near_cos + far_cos * near_sin
        found = found * cosine + tl.where(is_first, -other, other) * sine
    if head < heads:
        tl.store(qkv + place + offsets, found.to(qkv.dtype.element_ty), mask=inside)
    else:
        slot = tl.load(slots + row).to(tl.int64)
        if slot >= 0:
            if head < heads + kv_heads:
                head_at = slot * kv_heads + head - heads
                write_head(keys, key_scales, head_at, found, head_size, KV)
            else:
                head_at = slot * kv_heads + head - heads - kv_heads
                write_head(values, value_scales, head_at, found, head_size, KV)


@triton.jit
def write_head(entries, scales, head_at, values, head_size, KV: tl.constexpr):
    """One head's key or value to its place in the cache."""
    offsets = tl.arange(0, values.shape[0])
    if KV == "float":
        written = values.to(entries.dtype.element_ty)
    else:
        written, scale = encode(values, KV)
        tl.store(scales + head_at, scale)
    tl.store(entries + head_at * head_size + offsets, written, mask=offsets < head_size)


@triton.jit
def encode(values, KV: tl.constexpr):
    """Float32 values of one head as 8-bit codes, and their scale (`base.KVLayout`)."""
    top = tl.max(tl.abs(values), 0)
    largest: tl.constexpr = 127.0 if KV == "int8" else 448.0
    inverse = tl.where(top > 1e-30, largest / top, 0.0)
    if KV == "int8":
        codes = nearest(values * inverse).to(tl.int8)
    else:
        codes = to_e4m3(values * inverse)
    return codes, top / largest


@triton.jit
def activate(values, KIND: tl.constexpr):
    """An activation function of float32 values, by its name."""
    if KIND == "silu":
        result = values * tl.sigmoid(values)
    elif KIND == "gelu":
        result = values * (0.5 + 0.5 * tl.erf(values * 0.7071067811865476))
    elif KIND == "gelu_tanh":
        inner = 0.7978845608028654 * (values + 0.044715 * values * values * values)
        result = values * tl.sigmoid(2.0 * inner)
    elif KIND == "relu":
        result = tl.maximum(values, 0.0)
    else:
        tl.static_assert(KIND == "tanh")
        result = 2.0 * tl.sigmoid(2.0 * values) - 1.0
    return result


@triton.jit
def gate(left, right, KIND: tl.constexpr):
    """activation(left) · right, as `program.GateMultiply` has it."""
    if KIND == "clamped_silu":
        left = tl.minimum(left, 7.0)
        right = tl.minimum(tl.maximum(right, -7.0), 7.0) + 1.0
        result = left * tl.sigmoid(1.702 * left) * right
    else:
        result = activate(left, KIND) * right
    return result


@triton.jit
def gate_rows(out, source, width, KIND: tl.constexpr, CHAINED: tl.constexpr, BLOCK: tl.constexpr):
    """`program.GateMultiply` of one row's part; `width` is that of `out`."""
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < width
    wait(CHAINED)
    left = tl.load(source + row * 2 * width + offsets, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(source + row * 2 * width + width + offsets, mask=inside, other=0.0)
    result = gate(left, right.to(tl.float32), KIND)
    tl.store(out + row * width + offsets, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def activate_rows(
    out, source, width, KIND: tl.constexpr, CHAINED: tl.constexpr, BLOCK: tl.constexpr
):
    """`program.Activate` of one row's part."""
    row = tl.program_id(0).to(tl.int64) * width
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < width
    wait(CHAINED)
    values = tl.load(source + row + offsets, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row + offsets, activate(values, KIND).to(out.dtype.element_ty), mask=inside)
