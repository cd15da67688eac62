// Integer products of up to four rows of codes with the panels of a span: by VNNI, sums in registers all
// the while. Sums are exact, so they are equal to those of products.h; tiles take many rows in the time of
// one, but their results are long in coming.
#pragma once

#include "attention.h"
#include "level.h"

#if defined(__AVX512F__)

namespace headrace::HEADRACE_LEVEL {

constexpr std::size_t kFewRows = 4;

// VNNI multiplies unsigned bytes by signed ones: queries lie as code + 128, and what that adds is taken away.
constexpr std::uint8_t kFewBias = 0x80;

// Left sides are rows of bytes in two planes, `stride` bytes apart.
struct FewRows {
  const std::uint8_t* upper;
  const std::uint8_t* lower;
  std::size_t stride;
};

// Sums of ROWS rows with one panel. `crossed` is upper · lower, apart from lower · upper so that neither waits for the
// other; what lower · lower would add is below the rounding of the codes.
template <int PLANES, int ROWS, bool BIASED>
struct FewSums {
  __m512i upper[ROWS], middle[ROWS], crossed[ROWS], upper_bias, lower_bias;

  FewSums() : upper{}, middle{}, crossed{}, upper_bias{}, lower_bias{} {}

  static __m512i broadcast(const std::uint8_t* from) {
    std::int32_t four;
    __builtin_memcpy(&four, from, 4);
    return _mm512_set1_epi32(four);
  }

  // Adds `length` steps along the sum, a multiple of 16, from `at` on.
  [[gnu::always_inline]] void add(const FewRows& left, std::size_t at, const std::uint8_t* right, std::size_t plane,
                                  std::size_t length) {
    const __m512i bias = _mm512_set1_epi8(static_cast<char>(kFewBias));
    const std::uint8_t *first = left.upper + at, *second = left.lower + at, *end = right + length * kCodeLanes;
    for (; right < end; first += 16, second += 16, right += 16 * kCodeLanes) {
#pragma GCC unroll 4
      for (int four = 0; four < 4; ++four) {
        const __m512i high = _mm512_loadu_si512(right + four * 64);
        const __m512i low = PLANES == 2 ? _mm512_loadu_si512(right + plane + four * 64) : __m512i{};
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) {
          const __m512i top = broadcast(first + static_cast<std::size_t>(r) * left.stride + four * 4);
          const __m512i bottom = broadcast(second + static_cast<std::size_t>(r) * left.stride + four * 4);
          upper[r] = _mm512_dpbusd_epi32(upper[r], top, high);
          middle[r] = _mm512_dpbusd_epi32(middle[r], bottom, high);
          if constexpr (PLANES == 2) crossed[r] = _mm512_dpbusd_epi32(crossed[r], top, low);
        }
        if constexpr (BIASED) upper_bias = _mm512_dpbusd_epi32(upper_bias, bias, high);
        if constexpr (BIASED && PLANES == 2) lower_bias = _mm512_dpbusd_epi32(lower_bias, bias, low);
      }
    }
  }

  // 256 · upper + middle
  Vector join(int row) const {
    const IntVector top = (IntVector)upper[row] - (IntVector)upper_bias;
    const IntVector rest = (IntVector)middle[row] + (IntVector)crossed[row] - (IntVector)upper_bias - (IntVector)lower_bias;
    return __builtin_convertvector(top, Vector) * 256.0f + __builtin_convertvector(rest, Vector);
  }
};

// Scores [ROWS, stride] of a span's blocks; `each` is called once a panel.
template <int PLANES, int ROWS, typename Each>
void score_few(const AttentionTile& job, std::size_t begin, Blocks blocks, const FewRows& left, const float* row_scales,
               float* scores, std::size_t stride, Each each) {
  const CacheShape& cache = job.cache;
  const std::size_t width = cache.head_stride(), lanes = cache.lane_stride(), plane = width * kCodeLanes;
  for (std::size_t b = blocks.first; b < blocks.last; ++b) {
    const std::uint8_t* block = block_of(job, begin + b * cache.block_size);
    const std::uint8_t* keys = block + cache.key_offset(job.kv_head);
    const auto* key_scales = reinterpret_cast<const float*>(block + cache.key_scale_offset(job.kv_head));
    float* out = scores + b * lanes;
    for (std::size_t i = 0; i < lanes; i += kCodeLanes, keys += PLANES * plane) {
      each();
      FewSums<PLANES, ROWS, true> sums;
      sums.add(left, 0, keys, plane, width);
      const Vector scale = load(key_scales + i);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) {
        store(out + static_cast<std::size_t>(r) * stride + i, sums.join(r) * (scale * row_scales[r]));
      }
    }
  }
}

// out [ROWS, width] = units · weights · values of a span's blocks; `each` is called once a panel of a block.
template <int PLANES, int ROWS, typename Each>
void weigh_few(const AttentionTile& job, std::size_t begin, Blocks blocks, const FewRows& left, const float* units,
               float* out, Each each) {
  const CacheShape& cache = job.cache;
  const std::size_t width = cache.head_stride(), lanes = cache.lane_stride(), plane = lanes * kCodeLanes;
  const std::size_t values = cache.value_offset(job.kv_head);
  for (std::size_t i = 0; i < width; i += kCodeLanes) {
    const std::size_t panel = values + i / kCodeLanes * PLANES * plane;
    FewSums<PLANES, ROWS, false> sums;
    for (std::size_t b = blocks.first; b < blocks.last; ++b) {
      each();
      sums.add(left, b * lanes, block_of(job, begin + b * cache.block_size) + panel, plane, lanes);
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) store(out + static_cast<std::size_t>(r) * width + i, sums.join(r) * units[r]);
  }
}

}  // namespace headrace::HEADRACE_LEVEL

#endif
