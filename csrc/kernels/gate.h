// What a gate makes of its own values before it multiplies another's.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace headrace::HEADRACE_LEVEL {

// The error function to 1.5e-7 (Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26).
inline Vector error_function(Vector x) {
  const Vector size = x < 0.0f ? -x : x;
  const Vector t = 1.0f / (1.0f + 0.3275911f * size);
  Vector p = splat(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Vector found = 1.0f - p * t * exponential(-x * x);
  return x < 0.0f ? -found : found;
}

inline Vector activate(Vector x, Gate kind) {
  if (kind == Gate::Silu) return x / (1.0f + exponential(-x));
  if (kind == Gate::Gelu) return 0.5f * x * (1.0f + error_function(0.70710678f * x));
  if (kind == Gate::Relu) return larger(x, Vector{});
  if (kind == Gate::Tanh) return tanh(x);
  // gelu by its tanh approximation (arXiv 1606.08415); sqrt(2 / pi) = 0.79788456
  return 0.5f * x * (1.0f + tanh(0.79788456f * (x + 0.044715f * x * x * x)));
}

}  // namespace headrace::HEADRACE_LEVEL
