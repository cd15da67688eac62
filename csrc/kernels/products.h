// Integer products of sixteen rows of codes with one panel of the cache: by AMX tiles or by VNNI. Both
// sum exactly, so they are equal; which rows stand beside a row changes nothing either.
#pragma once

#include "level.h"
#include "tiles.h"

#if defined(__AVX512F__)

namespace headrace::HEADRACE_LEVEL {

constexpr int kRows = 16;

// Left sides are two planes of [pieces, kRows, piece] bytes.
struct Left {
  const std::uint8_t* upper;
  const std::uint8_t* lower;
};

// Panels of one block: the planes' first bytes, `pieces` of which follow one another.
struct Panel {
  const std::uint8_t* upper;
  const std::uint8_t* lower;  // where the cache has two planes
};

// upper: upper · upper. middle: lower · upper, and upper · lower where there are two planes; what
// lower · lower would add is below the rounding of the codes.
struct alignas(64) Sums {
  IntVector upper[kRows], middle[kRows];
};

// Which of the two sums is meant.
template <int PARITY>
struct Parity {
  static constexpr int value = PARITY;
};

#if defined(__AMX_INT8__)

constexpr std::uint8_t kQueryBias = 0;

// Of the eight tiles, 0..3 are sums, 4 and 5 the two sides of scores, 6 and 7 those of values.
inline void configure(const CacheShape& cache, std::size_t rows) {
  TileShapes tiles;
  for (int tile = 0; tile < 8; ++tile) {
    const std::size_t piece = tile < 6 ? cache.width.size : cache.lanes.size;
    const bool left = tile == 4 || tile == 6, right = tile == 5 || tile == 7;
    tiles.row_bytes[tile] = static_cast<std::uint16_t>(left ? piece : 64);
    tiles.rows[tile] = static_cast<std::uint8_t>(right ? piece / 4 : rows);
  }
  shape_tiles(tiles);
}

inline void release() { _tile_release(); }

// Sums of even and odd calls are in tiles of their own, so that one call's are stored and read
// while the next call's are computed. Compilers want the tiles' numbers as literals.
template <int PARITY>
inline void clear(Sums*) {
  if constexpr (PARITY) {
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_zero(0);
    _tile_zero(1);
  }
}

template <int PARITY>
inline void multiply_upper_query() {
  if constexpr (PARITY) _tile_dpbssd(2, 4, 5); else _tile_dpbssd(0, 4, 5);
}

template <int PARITY>
inline void multiply_middle_query() {
  if constexpr (PARITY) _tile_dpbssd(3, 4, 5); else _tile_dpbssd(1, 4, 5);
}

template <int PARITY>
inline void multiply_upper_weight() {
  if constexpr (PARITY) _tile_dpbusd(2, 6, 7); else _tile_dpbusd(0, 6, 7);
}

template <int PARITY>
inline void multiply_middle_weight() {
  if constexpr (PARITY) _tile_dpbusd(3, 6, 7); else _tile_dpbusd(1, 6, 7);
}

template <int PLANES, int PARITY>
inline void start_queries(const Left& left, const Panel& right, const Pieces& pieces, std::size_t, Sums*) {
  clear<PARITY>(nullptr);
  for (std::size_t i = 0; i < pieces.count; ++i) {
    const std::size_t from = i * kRows * pieces.size, with = i * kCodeLanes * pieces.size;
    _tile_loadd(4, left.upper + from, pieces.size);
    if constexpr (PLANES == 2) {
      _tile_loadd(5, right.lower + with, 64);
      multiply_middle_query<PARITY>();
    }
    _tile_loadd(5, right.upper + with, 64);
    multiply_upper_query<PARITY>();
    _tile_loadd(4, left.lower + from, pieces.size);
    multiply_middle_query<PARITY>();
  }
}

template <int PLANES, int PARITY>
inline void add_weights(const Left& left, const Panel& right, const Pieces& pieces, std::size_t, Sums*) {
  for (std::size_t i = 0; i < pieces.count; ++i) {
    const std::size_t from = i * kRows * pieces.size, with = i * kCodeLanes * pieces.size;
    _tile_loadd(6, left.upper + from, pieces.size);
    if constexpr (PLANES == 2) {
      _tile_loadd(7, right.lower + with, 64);
      multiply_middle_weight<PARITY>();
    }
    _tile_loadd(7, right.upper + with, 64);
    multiply_upper_weight<PARITY>();
    _tile_loadd(6, left.lower + from, pieces.size);
    multiply_middle_weight<PARITY>();
  }
}

template <int PARITY>
inline void finish(Sums* out) {
  if constexpr (PARITY) {
    _tile_stored(2, out[PARITY].upper, 64);
    _tile_stored(3, out[PARITY].middle, 64);
  } else {
    _tile_stored(0, out[PARITY].upper, 64);
    _tile_stored(1, out[PARITY].middle, 64);
  }
}

#else

// VNNI multiplies unsigned bytes by signed ones: queries lie as code + 128, and what that adds is taken away.
constexpr std::uint8_t kQueryBias = 0x80;

inline void settle() {}
inline void configure(const CacheShape&, std::size_t) {}
inline void release() {}

template <int PARITY>
inline void finish(Sums*) {}

template <int PARITY>
inline void clear(Sums* sums) {
  sums[PARITY] = {};
}

inline __m512i broadcast(const std::uint8_t* from) {
  std::int32_t four;
  __builtin_memcpy(&four, from, 4);
  return _mm512_set1_epi32(four);
}

template <int PLANES, int ROWS>
inline void multiply(const Left& left, const Panel& right, const Pieces& pieces, std::size_t row, Sums* sums) {
  __m512i upper[ROWS], middle[ROWS];
  for (int r = 0; r < ROWS; ++r) upper[r] = (__m512i)sums->upper[row + r], middle[r] = (__m512i)sums->middle[row + r];
  for (std::size_t piece = 0; piece < pieces.count; ++piece) {
    const std::size_t from = (piece * kRows + row) * pieces.size, with = piece * kCodeLanes * pieces.size;
    for (std::size_t i = 0; i < pieces.size; i += 4) {
      const __m512i high = _mm512_loadu_si512(right.upper + with + i * kCodeLanes);
      const __m512i low = PLANES == 2 ? _mm512_loadu_si512(right.lower + with + i * kCodeLanes) : __m512i{};
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) {
        const std::size_t at = from + static_cast<std::size_t>(r) * pieces.size + i;
        const __m512i first = broadcast(left.upper + at), second = broadcast(left.lower + at);
        upper[r] = _mm512_dpbusd_epi32(upper[r], first, high);
        middle[r] = _mm512_dpbusd_epi32(middle[r], second, high);
        if constexpr (PLANES == 2) middle[r] = _mm512_dpbusd_epi32(middle[r], first, low);
      }
    }
  }
  for (int r = 0; r < ROWS; ++r) sums->upper[row + r] = (IntVector)upper[r], sums->middle[row + r] = (IntVector)middle[r];
}

template <int PLANES, int PARITY>
inline void add_weights(const Left& left, const Panel& right, const Pieces& pieces, std::size_t rows, Sums* sums) {
  std::size_t row = 0;
  for (; row + 4 <= rows; row += 4) multiply<PLANES, 4>(left, right, pieces, row, sums + PARITY);
  for (; row < rows; ++row) multiply<PLANES, 1>(left, right, pieces, row, sums + PARITY);
}

template <int PLANES, int PARITY>
inline void start_queries(const Left& left, const Panel& right, const Pieces& pieces, std::size_t rows, Sums* sums) {
  const __m512i bias = _mm512_set1_epi8(static_cast<char>(kQueryBias));
  __m512i high{}, low{};
  for (std::size_t i = 0; i < pieces.total(); i += 4) {
    high = _mm512_dpbusd_epi32(high, bias, _mm512_loadu_si512(right.upper + i * kCodeLanes));
    if constexpr (PLANES == 2) low = _mm512_dpbusd_epi32(low, bias, _mm512_loadu_si512(right.lower + i * kCodeLanes));
  }
  for (std::size_t r = 0; r < rows; ++r) {
    sums[PARITY].upper[r] = -(IntVector)high;
    sums[PARITY].middle[r] = -(IntVector)high - (IntVector)low;
  }
  add_weights<PLANES, PARITY>(left, right, pieces, rows, sums);
}

#endif

// begin and end for every index, an index's begin before the end of the one before it.
template <typename Begin, typename End>
inline void in_turn(std::size_t first, std::size_t last, Begin begin, End end) {
  if (first < last) begin(Parity<0>{}, first);
  for (std::size_t i = first; i < last; i += 2) {
    if (i + 1 < last) begin(Parity<1>{}, i + 1);
    end(Parity<0>{}, i);
    if (i + 1 == last) return;
    if (i + 2 < last) begin(Parity<0>{}, i + 2);
    end(Parity<1>{}, i + 1);
  }
}

}  // namespace headrace::HEADRACE_LEVEL

#endif
