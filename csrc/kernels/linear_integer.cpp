// Linear over packed weights: bytes times bytes, summed in 32-bit integers a block, scaled in float.
//
// Each unpacked weight meets both planes of the activations' codes (quantise.cpp), and the sums are joined in
// 32 bits, exactly. A row's result does not depend on the other rows of the step.
#include "level.h"
#include "unpack.h"

namespace headrace::HEADRACE_LEVEL {

#if defined(__AVX2__)

namespace {

constexpr int kParts = kPanelRows / kLanes;
constexpr int kTall = kLanes == 16 ? 8 : 4;
// Bytes of weights that are fetched in advance: panels follow one another, and the many instructions
// a block takes leave the processor little room to run ahead to the next loads by itself.
constexpr std::ptrdiff_t kAhead = 4096;

inline IntVector broadcast(const std::int8_t* from) {
  std::int32_t four;
  __builtin_memcpy(&four, from, 4);
  return four - IntVector{};
}

#if defined(__AVX512F__)

// `from` plus the products of COUNT groups of weights with an activation block's codes, both planes.
template <PanelKind, int COUNT>
inline IntVector products(IntVector from, const IntVector* weights, const std::int8_t* codes) {
  __m512i upper{}, lower = (__m512i)from;
#pragma GCC unroll 8
  for (int g = 0; g < COUNT; ++g) {
    const auto weight = (__m512i)weights[g];
    upper = _mm512_dpbusd_epi32(upper, weight, (__m512i)broadcast(codes + 4 * g));
    lower = _mm512_dpbusd_epi32(lower, weight, (__m512i)broadcast(codes + kBlock + 4 * g));
  }
  return ((IntVector)upper << kPlaneBits) + (IntVector)lower;
}

#else

// Groups whose products, two of at most 127 · the largest code, can be summed in 16 bits.
constexpr int safe_groups(PanelKind kind) {
  switch (kind) {
    case PanelKind::Q4:
    case PanelKind::Q4Min: return 8;
    case PanelKind::Q5:
    case PanelKind::Q5Min: return 4;
    case PanelKind::Q6: return 2;
    case PanelKind::Q8: return 1;
  }
}

template <PanelKind KIND, int COUNT>
inline IntVector products(IntVector from, const IntVector* weights, const std::int8_t* codes) {
  constexpr int kSafe = safe_groups(KIND) < COUNT ? safe_groups(KIND) : COUNT;
#pragma GCC unroll 8
  for (int first = 0; first < COUNT; first += kSafe) {
    __m256i sums[2] = {};
#pragma GCC unroll 8
    for (int g = first; g < first + kSafe; ++g) {
#pragma GCC unroll 2
      for (int plane = 0; plane < 2; ++plane) {
        auto left = (__m256i)weights[g], right = (__m256i)broadcast(codes + plane * kBlock + 4 * g);
        if constexpr (KIND == PanelKind::Q8) {
          right = _mm256_sign_epi8(right, left);
          left = _mm256_abs_epi8(left);
        }
        sums[plane] = _mm256_add_epi16(sums[plane], _mm256_maddubs_epi16(left, right));
      }
    }
    from += (IntVector)_mm256_madd_epi16(sums[0], _mm256_set1_epi16(1 << kPlaneBits)) +
            (IntVector)_mm256_madd_epi16(sums[1], _mm256_set1_epi16(1));
  }
  return from;
}

#endif

template <PanelKind KIND, int ROWS>
void rows(const IntegerPanels& job, std::size_t panel, std::size_t first) {
  constexpr bool kTwoScales = two_scales(KIND);
  constexpr int kHeader = header_bytes(KIND);
  constexpr int kZero = zero_code(KIND);
  const std::size_t blocks = job.source.columns / kBlock, start = job.source.block_index(first, 0);
  const std::uint8_t* packed = job.panel + panel * job.panel_bytes();
  const int cols = static_cast<int>(job.cols - panel * kPanelRows);
  for (int part = 0; part < kParts; ++part) {
    Vector sums[ROWS] = {};
    const std::uint8_t* at = packed + part * kLanes * 4;
    const std::uint8_t* header = packed + part * kLanes * 2;
    const std::int8_t* activations = job.source.codes + start * kPlanes * kBlock;
    const ActivationBlock* scales = job.source.blocks + start;
    for (std::size_t b = 0; b < blocks; ++b) {
      for (int line = 0; line < panel_block_bytes(KIND); line += 64) __builtin_prefetch(at + kAhead + line);
      IntVector weights[8];
      unpack<KIND>(at + kHeader, weights);
      const auto* halves = reinterpret_cast<const std::uint16_t*>(header);
      const Vector scale = load_half(halves);
      const Vector second = kHeader == 64 ? load_half(halves + 16) : Vector{};
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) {
        const ActivationBlock& block = scales[r];
        const std::int8_t* codes = activations + r * kPlanes * kBlock;
        const IntVector none{};
        if constexpr (kTwoScales) {
          const IntVector low = products<KIND, 4>(none - kZero * block.low, weights, codes);
          const IntVector high = products<KIND, 4>(none - kZero * block.high, weights + 4, codes + 16);
          sums[r] += __builtin_convertvector(low, Vector) * scaled(scale, block.exponent);
          sums[r] += __builtin_convertvector(high, Vector) * scaled(second, block.exponent);
        } else {
          const IntVector all = products<KIND, 8>(none - kZero * (block.low + block.high), weights, codes);
          sums[r] += __builtin_convertvector(all, Vector) * scaled(scale, block.exponent);
        }
        if constexpr (has_minimum(KIND)) sums[r] += second * block.sum;
      }
      at += panel_block_bytes(KIND);
      header += panel_block_bytes(KIND);
      activations += kTileRows * kPlanes * kBlock;
      scales += kTileRows;
    }
    for (int r = 0; r < ROWS; ++r) {
      float* out = job.out + (first + r) * job.stride + panel * kPanelRows + part * kLanes;
      if (cols >= (part + 1) * kLanes) {
        store(out, sums[r]);
      } else {
        for (int i = 0; i < cols - part * kLanes; ++i) out[i] = sums[r][i];
      }
    }
  }
}

// Rows [begin, end) of one tile of rows.
template <PanelKind KIND>
void panel(const IntegerPanels& job, std::size_t panel, std::size_t begin, std::size_t end) {
  std::size_t row = begin;
  for (; row + kTall <= end; row += kTall) rows<KIND, kTall>(job, panel, row);
  if constexpr (kTall > 4) {
    for (; row + 4 <= end; row += 4) rows<KIND, 4>(job, panel, row);
  }
  for (; row + 2 <= end; row += 2) rows<KIND, 2>(job, panel, row);
  if (row < end) rows<KIND, 1>(job, panel, row);
}

template <PanelKind KIND>
void panels(const IntegerPanels& job) {
  for (std::size_t row = job.begin; row < job.end;) {
    const std::size_t tile = (row / kTileRows + 1) * kTileRows, end = tile < job.end ? tile : job.end;
    for (std::size_t i = 0; i < job.count(); ++i) panel<KIND>(job, i, row, end);
    row = end;
  }
}

}  // namespace

void integer_panels(const IntegerPanels& job) {
  switch (job.kind) {
    case PanelKind::Q4: return panels<PanelKind::Q4>(job);
    case PanelKind::Q4Min: return panels<PanelKind::Q4Min>(job);
    case PanelKind::Q5: return panels<PanelKind::Q5>(job);
    case PanelKind::Q5Min: return panels<PanelKind::Q5Min>(job);
    case PanelKind::Q6: return panels<PanelKind::Q6>(job);
    case PanelKind::Q8: return panels<PanelKind::Q8>(job);
  }
}

#endif

}  // namespace headrace::HEADRACE_LEVEL
