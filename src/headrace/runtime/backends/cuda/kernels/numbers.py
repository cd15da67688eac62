"""Numbers of 8 and 4 bits in integer arithmetic: it runs on every chip and in the interpreter.

A code of few bits becomes a binary16 by moving its bits to their places, subnormals included; what
is wrong then is the bias of the exponent, a power of two, which the caller has in its scale.
"""

from __future__ import annotations

import triton
import triton.language as tl

# What a value read by `e4m3` or `e2m1` is to be multiplied by.
E4M3_BIAS = tl.constexpr(256.0)
E2M1_BIAS = tl.constexpr(16384.0)
ROUNDING = tl.constexpr(12582912.0)  # 1.5 · 2^23: adding it leaves no bit below 1


@triton.jit
def nearest(values):
    """Float32 values below 2^22 rounded to integers, halves to even."""
    return (values + ROUNDING) - ROUNDING


@triton.jit
def e4m3(codes):
    """Uint8 codes of E4M3 (OCP FP8) as binary16, 1 / E4M3_BIAS of the value."""
    wide = codes.to(tl.int16)
    bits = (wide & 0x80) << 8 | (wide & 0x7F) << 7
    return bits.to(tl.float16, bitcast=True)


@triton.jit
def e2m1(codes):
    """Codes 0 to 15 of E2M1 (OCP Microscaling) as binary16, 1 / E2M1_BIAS of the value."""
    wide = codes.to(tl.int16)
    bits = (wide & 8) << 12 | (wide & 7) << 9
    return bits.to(tl.float16, bitcast=True)


@triton.jit
def to_e4m3(values):
    """Float32 values of at most 448 rounded to E4M3, halves to even; uint8 codes."""
    size = tl.minimum(tl.abs(values), 448.0)
    # below 2^-6 the steps are 2^-9: what a float32 of 2^14 has for its last bit
    small = (size + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    bits = size.to(tl.int32, bitcast=True)
    normal = (bits + 0x7FFFF + (bits >> 20 & 1) >> 20) - 960  # 120, of 127 - 7, eight times
    codes = tl.where(size < 0.015625, small, normal)
    sign = tl.where(values < 0.0, 0x80, 0)
    return (codes | sign).to(tl.uint8)
