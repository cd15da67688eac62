// Linear over packed weights: bytes times bytes, summed in 32-bit integers a block, scaled in float.
//
// Activations are rounded to 8 bits a block of 32 (scale = largest magnitude / 127). That is a
// choice: it costs about 0.4% of a block's largest value and buys four products an instruction and lane.
// A row's result does not depend on the other rows of the step.
#include "level.h"

namespace headrace::HEADRACE_LEVEL {

#if defined(__AVX2__)

namespace {

constexpr int kParts = kPanelRows / kLanes;
constexpr int kTall = kLanes == 16 ? 8 : 4;

inline IntVector load_codes(const std::uint8_t* from) {
  IntVector value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

inline IntVector broadcast(const std::int8_t* from) {
  std::int32_t four;
  __builtin_memcpy(&four, from, 4);
  return four - IntVector{};
}

// sums += four products a lane; weights are 0..63, or any signed byte where SIGNED.
template <bool SIGNED>
inline IntVector dot(IntVector sums, IntVector weights, IntVector activations) {
#if defined(__AVX512F__)
  return (IntVector)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)weights, (__m512i)activations);
#else
  __m256i left = (__m256i)weights, right = (__m256i)activations;
  if constexpr (SIGNED) {
    right = _mm256_sign_epi8(right, left);
    left = _mm256_abs_epi8(left);
  }
  const __m256i pairs = _mm256_maddubs_epi16(left, right);
  return sums + (IntVector)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#endif
}

constexpr bool has_minimum(PanelKind kind) { return kind == PanelKind::Q4Min || kind == PanelKind::Q5Min; }

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

// One block: sums of products of the columns 0..15 and 16..31 (one array where they share a scale).
template <PanelKind KIND, int ROWS>
inline void block_sums(const std::uint8_t* codes, const std::int8_t* activations, IntVector* low, IntVector* high) {
  if constexpr (KIND == PanelKind::Q8) {
    for (int group = 0; group < 8; ++group) {
      IntVector weights = load_codes(codes + 64 * group);
      if constexpr (kLanes == 16) weights ^= static_cast<std::int32_t>(0x80808080);
      for (int r = 0; r < ROWS; ++r) {
        low[r] = dot<true>(low[r], weights, broadcast(activations + r * kBlock + 4 * group));
      }
    }
  } else {
    IntVector extra[2] = {};
    if constexpr (KIND == PanelKind::Q5 || KIND == PanelKind::Q5Min || KIND == PanelKind::Q6) {
      extra[0] = load_codes(codes + 256);
    }
    if constexpr (KIND == PanelKind::Q6) extra[1] = load_codes(codes + 320);
#pragma GCC unroll 4
    for (int group = 0; group < 4; ++group) {
      const IntVector both = load_codes(codes + 64 * group);
      IntVector first = both & 0x0f0f0f0f, second = (both >> 4) & 0x0f0f0f0f;
      if constexpr (KIND != PanelKind::Q4 && KIND != PanelKind::Q4Min) {
        first |= high_bits<KIND>(extra, group, 0);
        second |= high_bits<KIND>(extra, group, 1);
      }
      IntVector* upper = KIND == PanelKind::Q6 ? high : low;
      for (int r = 0; r < ROWS; ++r) {
        const std::int8_t* from = activations + r * kBlock + 4 * group;
        low[r] = dot<false>(low[r], first, broadcast(from));
        upper[r] = dot<false>(upper[r], second, broadcast(from + 16));
      }
    }
  }
}

template <PanelKind KIND, int ROWS>
void rows(const IntegerPanel& job, std::size_t first) {
  constexpr bool kTwoScales = KIND == PanelKind::Q6;
  constexpr int kHeader = has_minimum(KIND) || kTwoScales ? 64 : 32;
  constexpr int kZero = zero_code(KIND);
  const std::size_t blocks = job.source.columns / kBlock, start = job.source.block_index(first, 0);
  for (int part = 0; part < kParts; ++part) {
    Vector sums[ROWS] = {};
    const std::uint8_t* at = job.panel + part * kLanes * 4;
    const std::uint8_t* header = job.panel + part * kLanes * 2;
    const std::int8_t* activations = job.source.codes + start * kBlock;
    const ActivationBlock* scales = job.source.blocks + start;
    for (std::size_t b = 0; b < blocks; ++b) {
      IntVector low[ROWS], high[ROWS];
      for (int r = 0; r < ROWS; ++r) {
        const ActivationBlock& block = scales[r];
        low[r] = IntVector{} - kZero * (kTwoScales ? block.low : block.low + block.high);
        if constexpr (kTwoScales) high[r] = IntVector{} - kZero * block.high;
      }
      block_sums<KIND, ROWS>(at + kHeader, activations, low, high);
      const auto* halves = reinterpret_cast<const std::uint16_t*>(header);
      const Vector scale = load_half(halves);
      const Vector second = kHeader == 64 ? load_half(halves + 16) : Vector{};
      for (int r = 0; r < ROWS; ++r) {
        const ActivationBlock& block = scales[r];
        sums[r] += __builtin_convertvector(low[r], Vector) * (scale * block.scale);
        if constexpr (kTwoScales) sums[r] += __builtin_convertvector(high[r], Vector) * (second * block.scale);
        if constexpr (has_minimum(KIND)) sums[r] += second * block.sum;
      }
      at += panel_block_bytes(KIND);
      header += panel_block_bytes(KIND);
      activations += kTileRows * kBlock;
      scales += kTileRows;
    }
    for (int r = 0; r < ROWS; ++r) {
      float* out = job.out + (first + r) * job.stride + part * kLanes;
      if (job.cols >= (part + 1) * kLanes) {
        store(out, sums[r]);
      } else {
        for (int i = 0; i < job.cols - part * kLanes; ++i) out[i] = sums[r][i];
      }
    }
  }
}

template <PanelKind KIND>
void panel(const IntegerPanel& job) {
  std::size_t row = job.begin;
  for (; row + kTall <= job.end; row += kTall) rows<KIND, kTall>(job, row);
  for (; row + 2 <= job.end; row += 2) rows<KIND, 2>(job, row);
  if (row < job.end) rows<KIND, 1>(job, row);
}

}  // namespace

void integer_panel(const IntegerPanel& job) {
  switch (job.kind) {
    case PanelKind::Q4: return panel<PanelKind::Q4>(job);
    case PanelKind::Q4Min: return panel<PanelKind::Q4Min>(job);
    case PanelKind::Q5: return panel<PanelKind::Q5>(job);
    case PanelKind::Q5Min: return panel<PanelKind::Q5Min>(job);
    case PanelKind::Q6: return panel<PanelKind::Q6>(job);
    case PanelKind::Q8: return panel<PanelKind::Q8>(job);
  }
}

void quantise(const float* source, std::size_t blocks, const Activations& out, std::size_t row, std::size_t first) {
  typedef std::int8_t Bytes __attribute__((vector_size(kLanes)));
  for (std::size_t b = 0; b < blocks; ++b, source += kBlock) {
    const std::size_t index = out.block_index(row, first + b);
    std::int8_t* codes = out.codes + index * kBlock;
    Vector most{};
    for (int i = 0; i < kBlock; i += kLanes) {
      const Vector value = load(source + i);
      most = larger(most, value < 0 ? -value : value);
    }
    const float top = maximum(most);
    const float inverse = top > 0 ? 127.0f / top : 0.0f;
    IntVector halves[2] = {};
    for (int i = 0; i < kBlock; i += kLanes) {
      const IntVector code = __builtin_convertvector(nearest(load(source + i) * inverse), IntVector);
      const Bytes bytes = __builtin_convertvector(code, Bytes);
      __builtin_memcpy(codes + i, &bytes, sizeof bytes);
      halves[i / 16] += code;
    }
    const std::int32_t low = sum(halves[0]), high = sum(halves[1]);
    const float scale = top / 127.0f;
    out.blocks[index] = {scale, scale * static_cast<float>(low + high), low, high};
  }
}

#endif

}  // namespace headrace::HEADRACE_LEVEL
