// Linear in float32 over any format: weights are unpacked 256 columns at a time and used by every row.
#include "level.h"
#include "matmul.h"

namespace headrace::HEADRACE_LEVEL {

namespace {

constexpr std::size_t kFewRows = 4;

float inner_product(const float* a, const float* b, std::size_t count) {
  Vector first{}, second{};
  std::size_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    first += load(a + i) * load(b + i);
    second += load(a + i + kLanes) * load(b + i + kLanes);
  }
  float total = sum(first + second);
  for (; i < count; ++i) total += a[i] * b[i];
  return total;
}

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

// Few rows: each weight row is unpacked and multiplied with every source row at once.
void by_rows(const FloatPanel& job) {
  for (int w = 0; w < job.cols; ++w) {
    const std::uint8_t* weight = job.weight + w * job.weight_stride;
    for (std::size_t at = 0; at < job.columns; at += kFloatColumns) {
      const std::size_t count = job.columns - at < kFloatColumns ? job.columns - at : kFloatColumns;
      unpack(job.format, weight + row_bytes(job.format, at), count, job.scratch);
      for (std::size_t row = job.begin; row < job.end; ++row) {
        const float part = inner_product(job.scratch, job.source + row * job.source_stride + at, count);
        float* out = job.out + row * job.stride + w;
        *out = at ? *out + part : part;
      }
    }
  }
}

// Many rows: weights are transposed into a [columns, 32] panel for the register tile.
void by_tiles(const FloatPanel& job) {
  constexpr std::size_t kStep = 8;
  float* panel = job.scratch;
  float* line = job.scratch + kFloatRows * kFloatColumns;
  for (int i = 0; i < kFloatRows * kFloatColumns; ++i) panel[i] = 0;
  for (std::size_t at = 0; at < job.columns; at += kFloatColumns) {
    const std::size_t count = job.columns - at < kFloatColumns ? job.columns - at : kFloatColumns;
    for (int w = 0; w < job.cols; ++w) {
      unpack(job.format, job.weight + w * job.weight_stride + row_bytes(job.format, at), count, line);
      for (std::size_t i = 0; i < count; ++i) panel[i * kFloatRows + w] = line[i];
    }
    for (std::size_t row = job.begin; row < job.end; row += kStep) {
      const std::size_t rows = job.end - row < kStep ? job.end - row : kStep;
      float sums[kStep * kFloatRows];
      for (std::size_t r = 0; r < rows; ++r) {
        for (int w = 0; w < kFloatRows; ++w) {
          sums[r * kFloatRows + w] = at && w < job.cols ? job.out[(row + r) * job.stride + w] : 0;
        }
      }
      matmul(job.source + row * job.source_stride + at, job.source_stride, panel, kFloatRows, sums, kFloatRows, rows,
             count, kFloatRows);
      for (std::size_t r = 0; r < rows; ++r) {
        for (int w = 0; w < job.cols; ++w) job.out[(row + r) * job.stride + w] = sums[r * kFloatRows + w];
      }
    }
  }
}

}  // namespace

void float_panel(const FloatPanel& job) { job.end - job.begin <= kFewRows ? by_rows(job) : by_tiles(job); }

}  // namespace headrace::HEADRACE_LEVEL
