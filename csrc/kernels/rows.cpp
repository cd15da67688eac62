// Kernels over one row: norm, SwiGLU, add, and the passes over logits that sampling needs.
#include "gate.h"
#include "level.h"

namespace headrace::HEADRACE_LEVEL {

void norm(float* out, float* residual, const float* add, float add_scale, const float* weight, float epsilon,
          bool accumulate, std::size_t width) {
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
  for (i = 0; i + kLanes <= width; i += kLanes) {
    const Vector value = load(residual + i) * scale * load(weight + i);
    store(out + i, accumulate ? load(out + i) + value : value);
  }
  for (; i < width; ++i) out[i] = (accumulate ? out[i] : 0) + residual[i] * scale * weight[i];
}

void layer_norm(float* out, float* residual, const float* add, float add_scale, const float* weight, const float* bias,
                float epsilon, std::size_t width) {
  if (add) {
    for (std::size_t i = 0; i < width; ++i) residual[i] += add[i] * add_scale;
  }
  Vector sums{}, squares{};
  float rest = 0;
  std::size_t i = 0;
  for (; i + kLanes <= width; i += kLanes) sums += load(residual + i);
  for (; i < width; ++i) rest += residual[i];
  const float mean = (sum(sums) + rest) / static_cast<float>(width);
  rest = 0;
  for (i = 0; i + kLanes <= width; i += kLanes) {
    const Vector value = load(residual + i) - mean;
    squares += value * value;
  }
  for (; i < width; ++i) rest += (residual[i] - mean) * (residual[i] - mean);
  const float scale = 1.0f / __builtin_sqrtf((sum(squares) + rest) / static_cast<float>(width) + epsilon);
  for (i = 0; i < width; ++i) out[i] = (residual[i] - mean) * scale * weight[i];
  for (i = 0; bias && i < width; ++i) out[i] += bias[i];
}

void activate(float* out, const float* source, Gate kind, std::size_t width) {
  std::size_t i = 0;
  for (; i + kLanes <= width; i += kLanes) store(out + i, activate(load(source + i), kind));
  if (i == width) return;
  float padded[kLanes] = {};
  for (std::size_t j = i; j < width; ++j) padded[j - i] = source[j];
  store(padded, activate(load(padded), kind));
  for (std::size_t j = i; j < width; ++j) out[j] = padded[j - i];
}

void gate_multiply(float* out, const float* gate, const float* up, Gate kind, std::size_t width) {
  std::size_t i = 0;
  for (; i + kLanes <= width; i += kLanes) store(out + i, activate(load(gate + i), kind) * load(up + i));
  if (i == width) return;
  float padded[kLanes] = {};  // the last lanes go through a copy, so that every width rounds alike
  for (std::size_t j = i; j < width; ++j) padded[j - i] = gate[j];
  store(padded, activate(load(padded), kind));
  for (std::size_t j = i; j < width; ++j) out[j] = padded[j - i] * up[j];
}

void cap(float* values, std::size_t count, float scale, float cap) {
  const auto capped = [&](Vector value) { return cap != 0 ? tanh(value * scale / cap) * cap : value * scale; };
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(values + i, capped(load(values + i)));
  if (i == count) return;
  float padded[kLanes] = {};
  for (std::size_t j = i; j < count; ++j) padded[j - i] = values[j];
  store(padded, capped(load(padded)));
  for (std::size_t j = i; j < count; ++j) values[j] = padded[j - i];
}

void add(float* out, const float* bias, std::size_t width) {
  for (std::size_t i = 0; i < width; ++i) out[i] += bias[i];
}

std::size_t largest(const float* values, std::size_t count) {
  constexpr std::size_t kChunk = 1024;  // find the chunk by vectors, the index by scanning it
  const float none = -__builtin_inff();
  float best = none;
  std::size_t where = 0;
  for (std::size_t at = 0; at < count; at += kChunk) {
    const std::size_t end = at + kChunk < count ? at + kChunk : count;
    std::size_t i = at;
    Vector top = splat(none);
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

double mass(const float* values, std::size_t count, float top, float temperature) {
  Doubles sums{};
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    float scaled[kLanes];  // as the mass of one is computed
    store(scaled, (load(values + i) - top) / temperature);
    sums += exponential(load_doubles(scaled)) + exponential(load_doubles(scaled + kLanes / 2));
  }
  double total = sum(sums);
  for (; i < count; ++i) {
    if (values[i] > -__builtin_inff()) total += __builtin_exp(static_cast<double>((values[i] - top) / temperature));
  }
  return total;
}

}  // namespace headrace::HEADRACE_LEVEL
