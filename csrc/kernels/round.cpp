// Floats rounded to blocks of 32 when a model is loaded. weights/blocks.py is the reference: every level
// gives its bytes, so sums run over lanes i and i + 16, then i + 8, and so on, and products are not fused
// into them (the build says so for this file).
#include <cstring>

#include "level.h"

namespace headrace::HEADRACE_LEVEL {

namespace {

constexpr int kParts = kBlock / kLanes;
constexpr float kLargest = 65504.0f;  // of binary16
constexpr float kTiny = 1e-30f;

struct Values {
  Vector part[kParts];
};

std::uint16_t to_half(float value) {
#if defined(__AVX2__)
  return static_cast<std::uint16_t>(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT));
#else
  return float_to_half(value);
#endif
}

float from_half(std::uint16_t bits) {
#if defined(__AVX2__)
  return _cvtsh_ss(bits);
#else
  return half_to_float(bits);
#endif
}

void read(Format format, const std::uint8_t* from, Values* out) {
  if (format == Format::F32) {
    std::memcpy(out, from, sizeof *out);
    return;
  }
  const auto* words = reinterpret_cast<const std::uint16_t*>(from);
  for (int p = 0; p < kParts; ++p, words += kLanes) {
    if (format == Format::BF16) {
      out->part[p] = load_brains(words);
      continue;
    }
    for (int i = 0; i < kLanes; ++i) out->part[p][i] = from_half(words[i]);
  }
}

// In the order of sixteen lanes, whatever the level's are.
float total(const Values& values) {
  Values sums = values;
  for (int count = kParts / 2; count; count /= 2) {
    for (int p = 0; p < count; ++p) sums.part[p] += sums.part[p + count];
  }
  return sum(sums.part[0]);
}

float top(const Values& values) {
  Vector most = values.part[0];
  for (int p = 1; p < kParts; ++p) most = larger(most, values.part[p]);
  return maximum(most);
}

float bottom(const Values& values) {
  Vector most = -values.part[0];
  for (int p = 1; p < kParts; ++p) most = larger(most, -values.part[p]);
  return -maximum(most);
}

bool numbers(const Values& values) {
  IntVector bad{};
  for (int p = 0; p < kParts; ++p) bad |= values.part[p] != values.part[p];
  return sum(bad) == 0;
}

float inverse(float scale) { return scale > kTiny || scale < -kTiny ? 1.0f / scale : 0.0f; }

// A value as binary16 has it, its bits at `to`; false where it is out of reach.
bool fit(float* value, std::uint8_t* to) {
  if (!(*value <= kLargest && *value >= -kLargest)) return false;
  const std::uint16_t bits = to_half(*value + 0.0f);  // a zero has no sign
  std::memcpy(to, &bits, sizeof bits);
  *value = from_half(bits);
  return true;
}

// (value - zero) · inverse to the nearest integer from `least` to `most`.
Values steps(const Values& values, float zero, float inverse, float least, float most) {
  Values found;
  for (int p = 0; p < kParts; ++p) {
    const Vector at = (values.part[p] - zero) * inverse;
    const Vector above = at > least ? at : splat(least);
    found.part[p] = nearest(above < most ? above : splat(most));
  }
  return found;
}

void bytes_of(const Values& codes, std::uint8_t* out) {
  typedef std::int8_t Bytes __attribute__((vector_size(kLanes)));
  for (int p = 0; p < kParts; ++p) {
    const Bytes bytes = __builtin_convertvector(__builtin_convertvector(codes.part[p], IntVector), Bytes);
    std::memcpy(out + kLanes * p, &bytes, kLanes);
  }
}

// Scale, codes.
bool to_eight(const Values& values, std::uint8_t* out) {
  const float up = top(values), down = -bottom(values);
  float scale = (up > down ? up : down) / 127.0f;
  if (!fit(&scale, out)) return false;
  bytes_of(steps(values, 0.0f, inverse(scale), -127.0f, 127.0f), out + 2);
  return true;
}

// Scale, minimum, codes: the line of least squared error through the codes of the range.
bool to_four(const Values& values, std::uint8_t* out) {
  float minimum = bottom(values);
  float scale = (top(values) - minimum) / 15.0f;
  if (!(scale <= kLargest)) return false;
  const Values codes = steps(values, minimum, inverse(scale), 0.0f, 15.0f);
  Values squares, products;
  for (int p = 0; p < kParts; ++p) {
    squares.part[p] = codes.part[p] * codes.part[p];
    products.part[p] = codes.part[p] * values.part[p];
  }
  const float mean_code = total(codes) / kBlock, mean_value = total(values) / kBlock;
  const float spread = total(squares) / kBlock - mean_code * mean_code;
  const float shared = total(products) / kBlock - mean_code * mean_value;
  if (spread > 0.01f) {  // one code of another value is 0.03; what is less is rounding
    scale = shared / spread;
    minimum = mean_value - scale * mean_code;
  }
  if (!fit(&scale, out) || !fit(&minimum, out + 2)) return false;
  std::uint8_t bytes[kBlock];
  bytes_of(steps(values, minimum, inverse(scale), 0.0f, 15.0f), bytes);
  for (int i = 0; i < 16; ++i) out[4 + i] = static_cast<std::uint8_t>(bytes[i] | bytes[i + 16] << 4);
  return true;
}

}  // namespace

bool round_blocks(Format from, const std::uint8_t* source, std::size_t blocks, Format to, std::uint8_t* out) {
  const std::size_t step = row_bytes(from, kBlock), size = row_bytes(to, kBlock);
  for (std::size_t i = 0; i < blocks; ++i, source += step, out += size) {
    Values values;
    read(from, source, &values);
    if (!numbers(values)) return false;
    if (!(to == Format::Q8_0 ? to_eight(values, out) : to_four(values, out))) return false;
  }
  return true;
}

}  // namespace headrace::HEADRACE_LEVEL
