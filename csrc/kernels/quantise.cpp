// Rows of activations to codes, as the integer kernels read them.
//
// They are rounded to 12 bits a block of 32 (scale = least power of two for which they fit), in two planes of
// bytes: code = 16 · upper + lower, upper -127..127, lower -8..7. 16, so that a weight of four bits times 16 is
// a byte, which the tiles make use of. As many blocks as a vector has lanes are rounded together, so that what
// is found for each of them, scale and sums, is found for all by the same few instructions.
#include <utility>

#include "level.h"
#include "unpack.h"

namespace headrace::HEADRACE_LEVEL {

#if defined(__AVX2__)

namespace {

typedef std::int8_t Bytes __attribute__((vector_size(kLanes)));
constexpr std::size_t kTogether = kLanes;

template <typename V, typename Join, int... LANE>
inline V join_neighbours(V a, V b, Join join, std::integer_sequence<int, LANE...>) {
  return join(__builtin_shufflevector(a, b, 2 * LANE...), __builtin_shufflevector(a, b, 2 * LANE + 1 ...));
}

// Lane i: all lanes of vector i, joined.
template <typename V, typename Join>
inline V join_lanes(V (&of)[kTogether], Join join) {
#pragma GCC unroll 4
  for (std::size_t count = kTogether / 2; count; count /= 2) {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < count; ++i) {
      of[i] = join_neighbours(of[2 * i], of[2 * i + 1], join, std::make_integer_sequence<int, kLanes>());
    }
  }
  return of[0];
}

// The exponents of the least scales, where a float32 has them.
inline IntVector exponents(Vector most) {
  // Within these bounds the scale times a weight's, which is a binary16, is a normal float.
  const Vector wanted = most / static_cast<float>(kLargestCode12), bottom = splat(0x1p-100f), top = splat(0x1p100f);
  const Vector least = wanted < top ? (wanted > bottom ? wanted : bottom) : top;  // where it is NaN too
  constexpr std::int32_t kOne = 1 << 23;
  return (((IntVector)least + (kOne - 1)) & ~(kOne - 1)) - 127 * kOne;
}

// Writes both planes of a vector's codes, and returns the codes.
inline IntVector encode(Vector value, std::int8_t* planes) {
  const Vector bound = splat(static_cast<float>(kLargestCode12)), whole = nearest(value);
  const Vector bounded = whole < bound ? (whole > -bound ? whole : -bound) : bound;  // NaN too
  const IntVector code = __builtin_convertvector(bounded, IntVector);
  const IntVector upper = (code + (1 << (kPlaneBits - 1))) >> kPlaneBits;
  const Bytes bytes[2] = {__builtin_convertvector(upper, Bytes),
                          __builtin_convertvector(code - (upper << kPlaneBits), Bytes)};
  __builtin_memcpy(planes, &bytes[0], sizeof(Bytes));
  __builtin_memcpy(planes + kBlock, &bytes[1], sizeof(Bytes));
  return code;
}

// COUNT blocks, kTogether at most; `index` is the place of the first.
template <std::size_t COUNT>
void round_blocks(const float* source, const Activations& out, std::size_t index) {
  Vector most[kTogether] = {};
#pragma GCC unroll 16
  for (std::size_t b = 0; b < COUNT; ++b) {
    for (int i = 0; i < kBlock; i += kLanes) {
      const Vector value = load(source + b * kBlock + i);
      most[b] = larger(most[b], value < 0 ? -value : value);
    }
  }
  const IntVector exponent = exponents(join_lanes(most, [](Vector a, Vector b) { return larger(a, b); }));
  alignas(64) float inverse[kTogether], sum[kTogether];
  alignas(64) std::int32_t scale[kTogether], low[kTogether], high[kTogether];
  store(inverse, scaled(splat(1), -exponent));
  IntVector sums[2][kTogether] = {};
  for (std::size_t b = 0; b < COUNT; ++b) {
    const Vector factor = splat(inverse[b]);
    std::int8_t* codes = out.codes + (index + b * kTileRows) * kPlanes * kBlock;
    for (int i = 0; i < kBlock; i += kLanes) {
      sums[i / 16][b] += encode(load(source + b * kBlock + i) * factor, codes + i);
    }
  }
  const auto add = [](IntVector a, IntVector b) { return a + b; };
  const IntVector lows = join_lanes(sums[0], add), highs = join_lanes(sums[1], add);
  store(sum, scaled(splat(1), exponent) * __builtin_convertvector(lows + highs, Vector));
  store(scale, exponent), store(low, lows), store(high, highs);
  for (std::size_t b = 0; b < COUNT; ++b) out.blocks[index + b * kTileRows] = {scale[b], sum[b], low[b], high[b]};
}

}  // namespace

void quantise(const float* source, std::size_t blocks, const Activations& out, std::size_t row, std::size_t first) {
  std::size_t index = out.block_index(row, first);
  const auto round = [&](auto count) {
    for (; blocks >= count; blocks -= count, source += count * kBlock, index += count * kTileRows) {
      round_blocks<count>(source, out, index);
    }
  };
  round(std::integral_constant<std::size_t, kTogether>());
  round(std::integral_constant<std::size_t, 6>());
  round(std::integral_constant<std::size_t, 2>());
  round(std::integral_constant<std::size_t, 1>());
}

#endif

}  // namespace headrace::HEADRACE_LEVEL
