// Linear over bfloat16 weights that loses nothing of them, by AMX: a float32 activation is the sum of two bfloat16,
// but for its last 8 bits of 24, and each half meets the weights in tiles.
//
// Weights are the left side of a product, as they lie in their file; activations, which are few, are written as
// a right side. Sums are float32, those of each half by themselves, in an order that depends on the number of columns
// alone, so a row's result does not depend on the other rows.
#include "level.h"
#include "tiles.h"

namespace headrace::HEADRACE_LEVEL {

#if defined(__AMX_BF16__)

namespace {

static_assert(kLanes == kPanelRows && kTileRows == 16);

constexpr std::size_t kTileBrains = kTileBytes / sizeof(std::uint16_t);

// The nearest bfloat16 of 16 values, ties to even, in the lower half of each lane.
inline IntVector nearest_brains(Vector value) {
  const IntVector bits = (IntVector)value;
  return (IntVector)_mm512_srli_epi32((__m512i)(bits + 0x7fff + ((bits >> 16) & 1)), 16);
}

inline void store_brains(std::uint16_t* to, IntVector brains) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16((__m512i)brains));
}

// Weights of 16 rows and a block of columns; rows past the last are zeros, in a copy.
struct Left {
  const std::uint8_t* at;
  std::size_t stride;
  int rows;
  std::uint8_t* copy;

  void load(std::size_t block, const std::uint8_t** from, std::size_t* pitch) const {
    const std::uint8_t* first = at + block * 2 * kBlock;
    *from = first;
    *pitch = stride;
    if (rows == kPanelRows) return;
    for (int row = 0; row < rows; ++row) {
      __builtin_memcpy(copy + row * 64, first + static_cast<std::size_t>(row) * stride, 64);
    }
    settle();
    *from = copy;
    *pitch = 64;
  }
};

// Sums of one or two panels with 16 rows, upper halves and lower ones: 4 tiles.
template <int WIDE>
void multiply(const Left (&left)[2], const std::uint16_t* right, std::size_t blocks, bool fetch, float* sums) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (std::size_t b = 0; b < blocks; ++b, right += 2 * kTileBrains) {
    const std::uint8_t* from;
    std::size_t pitch;
    _tile_loadd(6, right, 64);
    _tile_loadd(7, right + kTileBrains, 64);
    left[0].load(b, &from, &pitch);
    _tile_loadd(4, from, pitch);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (WIDE == 2) {
      left[1].load(b, &from, &pitch);
      _tile_loadd(5, from, pitch);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    if (!fetch) continue;
    const std::uint8_t* next = left[0].at + WIDE * kPanelRows * left[0].stride + b * 2 * kBlock;
    for (std::size_t row = 0; row < WIDE * kPanelRows; ++row) __builtin_prefetch(next + row * left[0].stride, 0, 2);
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + kTileFloats, 64);
  _tile_stored(2, sums + 2 * kTileFloats, 64);
  _tile_stored(3, sums + 3 * kTileFloats, 64);
  settle();
}

// From the sums of a panel, a line for each of its weight rows, to rows [begin, end) of the result.
void write(const HalfPanels& job, int panel, std::size_t begin, std::size_t end, float* sums) {
  __m512i lines[kPanelRows];
  for (std::size_t i = 0; i < kPanelRows; ++i) {
    lines[i] = (__m512i)(load(sums + i * kLanes) + load(sums + kTileFloats + i * kLanes));
  }
  transpose(lines, sums);
  const int left = job.cols - panel * kPanelRows;
  const auto mask = static_cast<__mmask16>(left < kLanes ? (1 << left) - 1 : 0xffff);
  for (std::size_t row = begin; row < end; ++row) {
    const __m512 found = _mm512_load_ps(sums + row % kTileRows * kLanes);
    _mm512_mask_storeu_ps(job.out + row * job.stride + panel * kPanelRows, mask, found);
  }
}

template <int WIDE>
void panels(const HalfPanels& job, float* scratch) {
  const std::size_t blocks = job.source.columns / kBlock;
  auto* copies = reinterpret_cast<std::uint8_t*>(scratch + 4 * kTileFloats);
  Left left[2];
  for (int i = 0; i < WIDE; ++i) {
    const int rows = job.cols - i * kPanelRows;
    left[i] = {job.weights + static_cast<std::size_t>(i) * kPanelRows * job.weight_stride, job.weight_stride,
               rows < kPanelRows ? rows : kPanelRows, copies + static_cast<std::size_t>(i) * kTileBytes};
    if (rows < kPanelRows) __builtin_memset(left[i].copy, 0, kTileBytes);
  }
  for (std::size_t tile = job.begin / kTileRows; tile * kTileRows < job.end; ++tile) {
    const std::size_t first = tile * kTileRows, last = first + kTileRows;
    const std::size_t begin = first < job.begin ? job.begin : first, end = last < job.end ? last : job.end;
    multiply<WIDE>(left, job.source.halves + tile * blocks * 2 * kTileBrains, blocks, begin == job.begin, scratch);
    for (int i = 0; i < WIDE; ++i) write(job, i, begin, end, scratch + 2 * i * static_cast<int>(kTileFloats));
  }
}

}  // namespace

void half_panels(const HalfPanels& job, float* scratch) {
  shape_tiles({});
  job.cols > kPanelRows ? panels<2>(job, scratch) : panels<1>(job, scratch);
  _tile_release();
}

void halve(const float* source, std::size_t blocks, const Activations& out, std::size_t row, std::size_t first) {
  const IntVector places = lane_numbers() * kTileRows;
  std::uint16_t* to = out.halves + (row / kTileRows * (out.columns / kBlock) + first) * 2 * kTileBrains + row % kTileRows * 2;
  for (std::size_t b = 0; b < blocks; ++b, source += kBlock, to += 2 * kTileBrains) {
    alignas(64) std::uint16_t upper[kBlock], lower[kBlock];
    for (int i = 0; i < kBlock; i += kLanes) {
      const Vector value = load(source + i);
      const IntVector brains = nearest_brains(value);
      store_brains(upper + i, brains);
      store_brains(lower + i, nearest_brains(value - (Vector)(brains << 16)));
    }
    _mm512_i32scatter_epi32(to, (__m512i)places, _mm512_load_si512(upper), 4);
    _mm512_i32scatter_epi32(to + kTileBrains, (__m512i)places, _mm512_load_si512(lower), 4);
  }
}

#endif

}  // namespace headrace::HEADRACE_LEVEL
