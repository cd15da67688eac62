// From a packed block to vectors of weights, one byte each.
#pragma once

#include "../panels.h"
#include "vector.h"

#if defined(__AVX2__)

namespace headrace::HEADRACE_LEVEL {

inline IntVector load_codes(const std::uint8_t* from) {
  IntVector value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

// A float times a power of two by its bits; 0 stays none, so no weight is packed with a scale of 0.
template <typename Exponent>
inline Vector scaled(Vector value, Exponent exponent) {
  return (Vector)((IntVector)value + exponent);
}

constexpr bool has_minimum(PanelKind kind) { return kind == PanelKind::Q4Min || kind == PanelKind::Q5Min; }

constexpr bool two_scales(PanelKind kind) { return kind == PanelKind::Q6; }

// Bytes of a block's scales, before its codes.
constexpr int header_bytes(PanelKind kind) { return has_minimum(kind) || two_scales(kind) ? 64 : 32; }

// The code that stands for zero. The wide dot product takes unsigned bytes, so Q8 is moved by 128.
constexpr int zero_code(PanelKind kind) {
  switch (kind) {
    case PanelKind::Q4: return 8;
    case PanelKind::Q5: return 16;
    case PanelKind::Q6: return 32;
    case PanelKind::Q8: return kLanes == 16 ? 128 : 0;
    default: return 0;
  }
}

// Bits of `high` for group `group`, half `half`, moved to bit 4 and on of each byte.
template <PanelKind KIND>
inline IntVector high_bits(const IntVector* high, int group, int half) {
  if constexpr (KIND == PanelKind::Q6) {
    const IntVector bits = high[half];
    const int shift = 4 - 2 * group;
    return (shift >= 0 ? bits << shift : bits >> -shift) & 0x30303030;
  } else {
    const int shift = 4 - 2 * group - half;
    return (shift >= 0 ? high[0] << shift : high[0] >> -shift) & 0x10101010;
  }
}

// Weights of the columns 16 · half + 4g, g = 0..3, of a block.
template <PanelKind KIND>
inline void unpack(const std::uint8_t* codes, IntVector (&out)[8]) {
  if constexpr (KIND == PanelKind::Q8) {
    for (int group = 0; group < 8; ++group) {
      out[group] = load_codes(codes + 64 * group);
      if constexpr (kLanes == 16) out[group] ^= static_cast<std::int32_t>(0x80808080);
    }
    return;
  }
  IntVector extra[2] = {};
  if constexpr (KIND == PanelKind::Q5 || KIND == PanelKind::Q5Min || KIND == PanelKind::Q6) {
    extra[0] = load_codes(codes + 256);
  }
  if constexpr (KIND == PanelKind::Q6) extra[1] = load_codes(codes + 320);
#pragma GCC unroll 4
  for (int group = 0; group < 4; ++group) {
    const IntVector both = load_codes(codes + 64 * group);
    out[group] = both & 0x0f0f0f0f;
    out[group + 4] = (both >> 4) & 0x0f0f0f0f;
    if constexpr (KIND != PanelKind::Q4 && KIND != PanelKind::Q4Min) {
      out[group] |= high_bits<KIND>(extra, group, 0);
      out[group + 4] |= high_bits<KIND>(extra, group, 1);
    }
  }
}

}  // namespace headrace::HEADRACE_LEVEL

#endif
