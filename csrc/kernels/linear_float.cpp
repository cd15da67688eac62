// Linear in float32 over any format: weights are unpacked some columns at a time and used by every row. Floats
// that one row or two alone meet are read where they lie. Sums have one order, however a row's weights are read.
#include "level.h"
#include "vector.h"

namespace headrace::HEADRACE_LEVEL {

namespace {

constexpr std::size_t kFew = 2;  // rows, for which unpacking does not pay
constexpr int kBeside = 4;       // weight rows that are read at once
constexpr std::size_t kAhead = 4096;  // bytes of a weight row: its memory comes that much before it is used
constexpr int kTall = kLanes == 16 ? 6 : 4, kWide = kLanes == 16 ? 4 : 2;  // rows and weight rows whose sums fit the registers

void unpack(Format format, const std::uint8_t* from, std::size_t count, float* out) {
  std::size_t i = 0;
  if (format == Format::BF16) {
    for (; i < count; ++i) {
      std::uint16_t bits;
      __builtin_memcpy(&bits, from + 2 * i, 2);
      const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
      __builtin_memcpy(out + i, &wide, 4);
    }
    return;
  }
#if defined(__AVX2__)
  if (format == Format::F16) {
    for (; i + kLanes <= count; i += kLanes) store(out + i, load_half(reinterpret_cast<const std::uint16_t*>(from) + i));
    from += 2 * i;
  }
#endif
  dequantise(format, from, count - i, out + i);
}

// Memory of later weight rows, to be fetched a little with every product: it answers requests that come steadily
// sooner than as many at once.
struct Ahead {
  const std::uint8_t* at;
  std::size_t stride;  // bytes from one weight row to the next
  int rows;
  std::size_t step;  // bytes of kLanes columns
};

// Products of source rows and unpacked weight rows over `count` columns, added to what `out` has if
// `more`. Each is summed in the same order however many are made together.
template <int ROWS, int WEIGHTS>
void multiply(const float* source, std::size_t stride, const float* weights, std::size_t count, bool more, float* out,
              std::size_t out_stride, Ahead ahead) {
  Vector sums[ROWS][WEIGHTS] = {};
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes, ahead.at += ahead.step) {
    for (int w = 0; w < ahead.rows; ++w) __builtin_prefetch(ahead.at + static_cast<std::size_t>(w) * ahead.stride, 0, 2);
    Vector right[WEIGHTS];
    for (int w = 0; w < WEIGHTS; ++w) right[w] = load(weights + w * kFloatColumns + i);
    for (int r = 0; r < ROWS; ++r) {
      const Vector left = load(source + r * stride + i);
      for (int w = 0; w < WEIGHTS; ++w) sums[r][w] += left * right[w];
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int w = 0; w < WEIGHTS; ++w) {
      float total = sum(sums[r][w]);
      for (std::size_t j = i; j < count; ++j) total += source[r * stride + j] * weights[w * kFloatColumns + j];
      float* to = out + r * out_stride + w;
      *to = more ? *to + total : total;
    }
  }
}

template <Format FORMAT>
inline Vector load_as(const std::uint8_t* weights, std::size_t i) {
  if constexpr (FORMAT == Format::BF16) return load_brains(reinterpret_cast<const std::uint16_t*>(weights) + i);
#if defined(__AVX2__)
  if constexpr (FORMAT == Format::F16) return load_half(reinterpret_cast<const std::uint16_t*>(weights) + i);
#endif
  return load(reinterpret_cast<const float*>(weights) + i);
}

// As `multiply` of one row, of weight rows that are read as they lie.
template <Format FORMAT, int WEIGHTS>
void multiply_there(const FloatPanel& job, const float* source, int w, std::size_t at, std::size_t count, float* out) {
  const std::uint8_t* weights = job.weight + static_cast<std::size_t>(w) * job.weight_stride + row_bytes(FORMAT, at);
  Vector sums[WEIGHTS] = {};
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Vector left = load(source + i);
    for (int v = 0; v < WEIGHTS; ++v) {
      __builtin_prefetch(weights + v * job.weight_stride + row_bytes(FORMAT, i) + kAhead);
      sums[v] += left * load_as<FORMAT>(weights + v * job.weight_stride, i);
    }
  }
  for (int v = 0; v < WEIGHTS; ++v) {
    float rest[kLanes], total = sum(sums[v]);
    unpack(FORMAT, weights + v * job.weight_stride + row_bytes(FORMAT, i), count - i, rest);
    for (std::size_t j = i; j < count; ++j) total += source[j] * rest[j - i];
    out[v] = at ? out[v] + total : total;
  }
}

template <Format FORMAT>
void panel_there(const FloatPanel& job) {
  for (std::size_t at = 0; at < job.columns; at += kFloatColumns) {
    const std::size_t count = job.columns - at < kFloatColumns ? job.columns - at : kFloatColumns;
    for (std::size_t row = job.begin; row < job.end; ++row) {
      const float* source = job.source + row * job.source_stride + at;
      float* out = job.out + row * job.stride;
      int w = 0;
      for (; w + kBeside <= job.cols; w += kBeside) multiply_there<FORMAT, kBeside>(job, source, w, at, count, out + w);
      for (; w < job.cols; ++w) multiply_there<FORMAT, 1>(job, source, w, at, count, out + w);
    }
  }
}

// `rows` rows of a job, kTall at most, with the `WEIGHTS` weight rows in its scratch.
template <int WEIGHTS, int ROWS = kTall>
void multiply_rows(const FloatPanel& job, int rows, const float* source, std::size_t count, bool more, float* out, Ahead ahead) {
  if (rows == ROWS) {
    return multiply<ROWS, WEIGHTS>(source, job.source_stride, job.scratch, count, more, out, job.stride, ahead);
  }
  if constexpr (ROWS > 1) multiply_rows<WEIGHTS, ROWS - 1>(job, rows, source, count, more, out, ahead);
}

// Weight rows from `w` on, and columns from `at` on, with all rows while they lie in the L1 cache; those that come
// after them are fetched meanwhile.
template <int WEIGHTS>
void multiply_unpacked(const FloatPanel& job, int w, std::size_t at, std::size_t count) {
  const std::uint8_t* weights = job.weight + static_cast<std::size_t>(w) * job.weight_stride + row_bytes(job.format, at);
  for (int v = 0; v < WEIGHTS; ++v) {
    unpack(job.format, weights + static_cast<std::size_t>(v) * job.weight_stride, count, job.scratch + v * kFloatColumns);
  }
  const std::size_t step = row_bytes(job.format, count) * kLanes / count;
  const auto all = static_cast<int>(job.end - job.begin), tiles = (all + kTall - 1) / kTall;
  for (int tile = 0; tile < tiles; ++tile) {
    const int begin = all * tile / tiles, rows = all * (tile + 1) / tiles - begin;
    const std::size_t row = job.begin + static_cast<std::size_t>(begin);
    const int first = WEIGHTS * tile / tiles, last = WEIGHTS * (tile + 1) / tiles;
    const Ahead ahead = {weights + static_cast<std::size_t>(WEIGHTS + first) * job.weight_stride, job.weight_stride,
                         last - first, step};
    const float* source = job.source + row * job.source_stride + at;
    multiply_rows<WEIGHTS>(job, rows, source, count, at > 0, job.out + row * job.stride + w, ahead);
  }
}

}  // namespace

void float_panel(const FloatPanel& job) {
  if (job.end - job.begin <= kFew) {
    if (job.format == Format::BF16) return panel_there<Format::BF16>(job);
    if (job.format == Format::F32) return panel_there<Format::F32>(job);
#if defined(__AVX2__)
    if (job.format == Format::F16) return panel_there<Format::F16>(job);
#endif
  }
  for (std::size_t at = 0; at < job.columns; at += kFloatColumns) {
    const std::size_t count = job.columns - at < kFloatColumns ? job.columns - at : kFloatColumns;
    int w = 0;
    for (; w + kWide <= job.cols; w += kWide) multiply_unpacked<kWide>(job, w, at, count);
    for (; w < job.cols; ++w) multiply_unpacked<1>(job, w, at, count);
  }
}

}  // namespace headrace::HEADRACE_LEVEL
