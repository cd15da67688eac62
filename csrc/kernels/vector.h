// A vector of floats of the level's width, by the compiler's vector extension, and exp on it.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef HEADRACE_LEVEL
#error "kernels are compiled once a level; HEADRACE_LEVEL names it"
#endif

namespace headrace::HEADRACE_LEVEL {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vector __attribute__((vector_size(kLanes * 4)));
typedef std::int32_t IntVector __attribute__((vector_size(kLanes * 4)));

inline Vector load(const float* from) {
  Vector value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

inline void store(float* to, Vector value) { __builtin_memcpy(to, &value, sizeof value); }

inline void store(std::int32_t* to, IntVector value) { __builtin_memcpy(to, &value, sizeof value); }

inline Vector splat(float value) { return value - Vector{}; }

inline float sum(Vector value) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)value);
#endif
  float lanes[kLanes];
  store(lanes, value);
  for (int width = kLanes / 2; width; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

inline std::int32_t sum(IntVector value) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)value);
#endif
  std::int32_t total = 0;
  for (int i = 0; i < kLanes; ++i) total += value[i];
  return total;
}

inline float maximum(Vector value) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)value);
#endif
  float lanes[kLanes];
  store(lanes, value);
  for (int width = kLanes / 2; width; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  }
  return lanes[0];
}

inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

// 0, 1, 2 ... kLanes - 1
inline IntVector lane_numbers() {
  IntVector numbers;
  for (int i = 0; i < kLanes; ++i) numbers[i] = i;
  return numbers;
}

// To the nearest integer, for |value| < 2^22.
inline Vector nearest(Vector value) {
  const Vector magic = splat(12582912.0f);
  return (value + magic) - magic;
}

// e^x to about 2 units in the last place; 0 below -87, the largest power above 88.
inline Vector exponential(Vector x) {
  const Vector top = splat(88.0f), bottom = splat(-87.0f);
  const Vector clamped = x > top ? top : (x < bottom ? bottom : x);
  const Vector n = nearest(clamped * 1.44269504f);
  const Vector r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector p = splat(1.98756915e-4f);
  p = p * r + 1.39819994e-3f;
  p = p * r + 8.33345194e-3f;
  p = p * r + 4.16657962e-2f;
  p = p * r + 1.66666655e-1f;
  p = p * r + 5.00000012e-1f;
  p = p * (r * r) + r + 1.0f;
  const IntVector bits = (__builtin_convertvector(n, IntVector) + 127) << 23;
  Vector power;
  __builtin_memcpy(&power, &bits, sizeof power);
  return x < bottom ? Vector{} : p * power;
}

// Half as many, in double.
typedef double Doubles __attribute__((vector_size(kLanes * 4)));
typedef std::int64_t LongVector __attribute__((vector_size(kLanes * 4)));

inline Doubles load_doubles(const float* from) {
  typedef float Half __attribute__((vector_size(kLanes * 2)));
  Half half;
  __builtin_memcpy(&half, from, sizeof half);
  return __builtin_convertvector(half, Doubles);
}

inline double sum(Doubles value) {
  double total = 0;
  for (int i = 0; i < kLanes / 2; ++i) total += value[i];
  return total;
}

// e^x for x to 700, to about 1e-14 of it; about 1e-304 below -700, and for what is no number.
inline Doubles exponential(Doubles x) {
  const Doubles bottom = Doubles{} - 700.0, magic = Doubles{} + 6755399441055744.0;
  const Doubles clamped = x > bottom ? x : bottom;
  const Doubles shifted = clamped * 1.4426950408889634 + magic;  // its last bits are the nearest integer
  const Doubles n = shifted - magic;
  const Doubles r = (clamped - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
  constexpr double kTerms[] = {1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120,
                               1.0 / 24,      1.0 / 6,      0.5,         1.0,        1.0};
  Doubles p = Doubles{} + 1.0 / 39916800;  // 1 / 11!, and so on: r is at most 0.35
  for (const double term : kTerms) p = p * r + term;
  const LongVector bits = ((LongVector)shifted + 1023) << 52;
  Doubles power;
  __builtin_memcpy(&power, &bits, sizeof power);
  return p * power;
}

// 2^x to about 2 units in the last place; below -125 about 2^-125, and so it is for -inf.
inline Vector power(Vector x) {
  const Vector bottom = splat(-125.0f);
  const Vector clamped = x > bottom ? x : bottom;
#if defined(__AVX512F__)
  const Vector n = (Vector)_mm512_roundscale_ps((__m512)clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const Vector n = nearest(clamped);
#endif
  const Vector f = clamped - n;
  Vector p = splat(1.33908634e-3f);  // interpolated at Chebyshev nodes of [-0.5, 0.5]
  p = p * f + 9.67603192e-3f;
  p = p * f + 5.55035711e-2f;
  p = p * f + 2.40221075e-1f;
  p = p * f + 6.93147188e-1f;
  p = p * f + 1.0f;
#if defined(__AVX512F__)
  return (Vector)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  const IntVector bits = (__builtin_convertvector(n, IntVector) + 127) << 23;
  Vector scale;
  __builtin_memcpy(&scale, &bits, sizeof scale);
  return p * scale;
#endif
}

// To about 1e-7 of 1.
inline Vector tanh(Vector x) { return 1.0f - 2.0f / (exponential(x * 2.0f) + 1.0f); }

inline Vector load_brains(const std::uint16_t* from) {
  typedef std::uint16_t Words __attribute__((vector_size(kLanes * 2)));
  Words words;
  __builtin_memcpy(&words, from, sizeof words);
  return (Vector)(__builtin_convertvector(words, IntVector) << 16);
}

// binary16 to float and back; to binary16 saturates at its largest value.
#if defined(__AVX2__)
inline Vector load_half(const std::uint16_t* from) {
#if defined(__AVX512F__)
  return (Vector)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#else
  return (Vector)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#endif
}

inline void store_half(std::uint16_t* to, Vector value) {
  const Vector top = splat(65504.0f);
  const Vector clamped = value > top ? top : (value < -top ? -top : value);
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph((__m512)clamped, _MM_FROUND_TO_NEAREST_INT));
#else
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph((__m256)clamped, _MM_FROUND_TO_NEAREST_INT));
#endif
}
#endif

}  // namespace headrace::HEADRACE_LEVEL
