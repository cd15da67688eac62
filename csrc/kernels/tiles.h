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

}  // namespace headrace::HEADRACE_LEVEL

#endif
