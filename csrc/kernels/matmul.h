// c += a · b for small float matrices: the register tile of attention.
#pragma once

#include <cstddef>

#include "vector.h"

namespace headrace::HEADRACE_LEVEL {

template <int ROWS, int VECTORS>
inline void tile(const float* a, std::size_t lda, const float* b, std::size_t ldb, float* c, std::size_t ldc,
                 std::size_t inner) {
  Vector sums[ROWS][VECTORS];
  for (int r = 0; r < ROWS; ++r) {
    for (int v = 0; v < VECTORS; ++v) sums[r][v] = load(c + r * ldc + v * kLanes);
  }
  for (std::size_t i = 0; i < inner; ++i) {
    Vector right[VECTORS];
    for (int v = 0; v < VECTORS; ++v) right[v] = load(b + i * ldb + v * kLanes);
    for (int r = 0; r < ROWS; ++r) {
      const float left = a[r * lda + i];
      for (int v = 0; v < VECTORS; ++v) sums[r][v] += left * right[v];
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int v = 0; v < VECTORS; ++v) store(c + r * ldc + v * kLanes, sums[r][v]);
  }
}

template <int VECTORS>
inline void columns(const float* a, std::size_t lda, const float* b, std::size_t ldb, float* c, std::size_t ldc,
                    std::size_t rows, std::size_t inner) {
  constexpr std::size_t kTall = kLanes == 16 ? 8 : 4;
  std::size_t r = 0;
  for (; r + kTall <= rows; r += kTall) tile<kTall, VECTORS>(a + r * lda, lda, b, ldb, c + r * ldc, ldc, inner);
  for (; r + 3 <= rows; r += 3) tile<3, VECTORS>(a + r * lda, lda, b, ldb, c + r * ldc, ldc, inner);
  for (; r < rows; ++r) tile<1, VECTORS>(a + r * lda, lda, b, ldb, c + r * ldc, ldc, inner);
}

// c [rows, width] += a [rows, inner] · b [inner, width]; width is a multiple of 16.
inline void matmul(const float* a, std::size_t lda, const float* b, std::size_t ldb, float* c, std::size_t ldc,
                   std::size_t rows, std::size_t inner, std::size_t width) {
  std::size_t at = 0;
  for (; at + 2 * kLanes <= width; at += 2 * kLanes) columns<2>(a, lda, b + at, ldb, c + at, ldc, rows, inner);
  for (; at < width; at += kLanes) columns<1>(a, lda, b + at, ldb, c + at, ldc, rows, inner);
}

}  // namespace headrace::HEADRACE_LEVEL
