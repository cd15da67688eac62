// What all kernels over AMX tiles share.
#pragma once

#include "level.h"

#if defined(__AMX_TILE__)

namespace headrace::HEADRACE_LEVEL {

constexpr std::size_t kTileBytes = 1024;  // 16 rows of 64 bytes: 32 bfloat16 or 16 float32
constexpr std::size_t kTileFloats = kTileBytes / sizeof(float);

// The compiler does not know what the tile instructions read: what was written before must be in memory.
inline void settle() { asm volatile("" ::: "memory"); }

// Whole tiles, where nothing else is said.
struct alignas(64) TileShapes {
  std::uint8_t palette = 1;
  std::uint8_t start = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// From here on the tiles have these shapes.
inline void shape_tiles(const TileShapes& shapes) {
  settle();
  _tile_loadconfig(&shapes);
}

// Bits of two vectors of float32 rounded to bfloat16, `first` in the lower half of each lane.
inline IntVector pair(Vector first, Vector second) {
  const IntVector half = IntVector{} + 0x8000;
  const auto low = (__m512i)((IntVector)first + half), high = (__m512i)((IntVector)second + half);
  // The lower halves of `low >> 16`, the upper ones of `high`.
  return (IntVector)_mm512_ternarylogic_epi32(_mm512_set1_epi32(0xffff), _mm512_srli_epi32(low, 16), high, 0xca);
}

// Row n, lane k of 16 vectors to row k, lane n of the tile at `out`.
inline void transpose(const __m512i (&rows)[16], void* to) {
  auto* out = static_cast<std::uint8_t*>(to);
  __m512i pairs[16], fours[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  // Vector 4g + c: lanes c, c + 4, c + 8, c + 12 of rows 4g to 4g + 3.
#pragma GCC unroll 4
  for (int g = 0; g < 16; g += 4) {
    fours[g] = _mm512_unpacklo_epi64(pairs[g], pairs[g + 2]);
    fours[g + 1] = _mm512_unpackhi_epi64(pairs[g], pairs[g + 2]);
    fours[g + 2] = _mm512_unpacklo_epi64(pairs[g + 1], pairs[g + 3]);
    fours[g + 3] = _mm512_unpackhi_epi64(pairs[g + 1], pairs[g + 3]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512i low = _mm512_shuffle_i32x4(fours[c], fours[4 + c], 0x88);  // lanes c and c + 8
    const __m512i high = _mm512_shuffle_i32x4(fours[c], fours[4 + c], 0xdd);
    const __m512i low2 = _mm512_shuffle_i32x4(fours[8 + c], fours[12 + c], 0x88);
    const __m512i high2 = _mm512_shuffle_i32x4(fours[8 + c], fours[12 + c], 0xdd);
    _mm512_store_si512(out + 64 * c, _mm512_shuffle_i32x4(low, low2, 0x88));
    _mm512_store_si512(out + 64 * (c + 8), _mm512_shuffle_i32x4(low, low2, 0xdd));
    _mm512_store_si512(out + 64 * (c + 4), _mm512_shuffle_i32x4(high, high2, 0x88));
    _mm512_store_si512(out + 64 * (c + 12), _mm512_shuffle_i32x4(high, high2, 0xdd));
  }
}

}  // namespace headrace::HEADRACE_LEVEL

#endif
