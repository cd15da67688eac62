// Kernels over one row: norm, SwiGLU, add, and the two passes over logits that sampling needs.
#include "level.h"

namespace headrace::HEADRACE_LEVEL {

void norm(float* out, float* residual, const float* add, float add_scale, const float* weight, float epsilon,
          std::size_t width) {
  Vector squares{};
  float rest = 0;
  std::size_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    Vector value = load(residual + i);
    if (add) {
      value += load(add + i) * add_scale;
      store(residual + i, value);
    }
    squares += value * value;
  }
  for (; i < width; ++i) {
    if (add) residual[i] += add[i] * add_scale;
    rest += residual[i] * residual[i];
  }
  const float mean = (sum(squares) + rest) / static_cast<float>(width);
  const float scale = 1.0f / __builtin_sqrtf(mean + epsilon);
  for (i = 0; i + kLanes <= width; i += kLanes) store(out + i, load(residual + i) * scale * load(weight + i));
  for (; i < width; ++i) out[i] = residual[i] * scale * weight[i];
}

void gate_multiply(float* out, const float* gate, const float* up, std::size_t width) {
  std::size_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const Vector value = load(gate + i);
    store(out + i, value / (1.0f + exponential(-value)) * load(up + i));
  }
  if (i < width) {  // the last lanes through a padded copy, so that every width rounds alike
    float padded[kLanes] = {};
    for (std::size_t j = i; j < width; ++j) padded[j - i] = gate[j];
    const Vector value = load(padded);
    store(padded, value / (1.0f + exponential(-value)));
    for (std::size_t j = i; j < width; ++j) out[j] = padded[j - i] * up[j];
  }
}

void add(float* out, const float* bias, std::size_t width) {
  for (std::size_t i = 0; i < width; ++i) out[i] += bias[i];
}

std::size_t largest(const float* values, std::size_t count) {
  constexpr std::size_t kChunk = 1024;  // find the chunk by vectors, the index by scanning it
  float best = values[0];
  std::size_t where = 0;
  for (std::size_t at = 0; at < count; at += kChunk) {
    const std::size_t end = at + kChunk < count ? at + kChunk : count;
    std::size_t i = at;
    Vector top = splat(values[at]);
    for (; i + kLanes <= end; i += kLanes) top = larger(load(values + i), top);
    float most = maximum(top);
    for (; i < end; ++i) most = values[i] > most ? values[i] : most;
    if (most > best) {
      best = most;
      for (where = at; where + 1 < end && values[where] != best;) ++where;
    }
  }
  return where;
}

float log_sum_exp(const float* values, std::size_t count, float shift) {
  constexpr std::size_t kChunk = 4096;
  double total = 0;
  for (std::size_t at = 0; at < count; at += kChunk) {
    const std::size_t end = at + kChunk < count ? at + kChunk : count;
    Vector sums{};
    std::size_t i = at;
    for (; i + kLanes <= end; i += kLanes) sums += exponential(load(values + i) - shift);
    total += sum(sums);
    for (; i < end; ++i) total += __builtin_exp(values[i] - shift);
  }
  return static_cast<float>(__builtin_log(total)) + shift;
}

}  // namespace headrace::HEADRACE_LEVEL
