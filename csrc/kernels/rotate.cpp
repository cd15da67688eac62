// Rotary positions and the write to the paged cache.
#include "level.h"

namespace headrace::HEADRACE_LEVEL {

namespace {

void rotate_halves(float* head, const float* cosines, const float* sines, std::size_t pairs) {
  std::size_t i = 0;
  for (; i + kLanes <= pairs; i += kLanes) {
    const Vector a = load(head + i), b = load(head + pairs + i);
    const Vector cosine = load(cosines + i), sine = load(sines + i);
    store(head + i, a * cosine - b * sine);
    store(head + pairs + i, b * cosine + a * sine);
  }
  for (; i < pairs; ++i) {
    const float a = head[i], b = head[pairs + i];
    head[i] = a * cosines[i] - b * sines[i];
    head[pairs + i] = b * cosines[i] + a * sines[i];
  }
}

void rotate_neighbours(float* head, const float* cosines, const float* sines, std::size_t pairs) {
  for (std::size_t i = 0; i < pairs; ++i) {
    const float a = head[2 * i], b = head[2 * i + 1];
    head[2 * i] = a * cosines[i] - b * sines[i];
    head[2 * i + 1] = b * cosines[i] + a * sines[i];
  }
}

// `step` entries apart from one another: 1 for a value, the lanes of a block for a key.
template <typename Entry>
void put(Entry* to, std::size_t step, const Entry* from, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) to[i * step] = from[i];
}

#if defined(__AVX2__)
// To binary16, saturating; the tail of a head goes through a padded copy.
void narrow(const float* from, std::size_t count, std::uint16_t* to) {
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store_half(to + i, load(from + i));
  if (i == count) return;
  float padded[kLanes] = {};
  for (std::size_t j = i; j < count; ++j) padded[j - i] = from[j];
  std::uint16_t halves[kLanes];
  store_half(halves, load(padded));
  for (std::size_t j = i; j < count; ++j) to[j] = halves[j - i];
}
#endif

}  // namespace

void rotate_and_write(const RotateRow& job) {
  const CacheShape& cache = job.cache;
  const std::size_t size = cache.head_size, pairs = static_cast<std::size_t>(job.rotation.pairs);
  for (std::size_t h = 0; h < job.heads + cache.kv_heads; ++h) {
    const auto rotate = job.rotation.interleaved ? rotate_neighbours : rotate_halves;
    rotate(job.qkv + h * size, job.cosines, job.sines, pairs);
  }
  const float* keys = job.qkv + job.heads * size;
  const float* values = keys + cache.kv_heads * size;
  for (std::size_t h = 0; h < cache.kv_heads; ++h) {
    std::uint8_t* key = job.block + cache.key_offset(h) + job.offset * cache.entry();
    std::uint8_t* value = job.block + cache.value_offset(h) + job.offset * cache.head_stride * cache.entry();
#if defined(__AVX2__)
    if (!cache.exact) {
      std::uint16_t halves[kMaximumHead];
      narrow(keys + h * size, size, halves);
      put(reinterpret_cast<std::uint16_t*>(key), cache.lane_stride, halves, size);
      narrow(values + h * size, size, reinterpret_cast<std::uint16_t*>(value));
      continue;
    }
#endif
    put(reinterpret_cast<float*>(key), cache.lane_stride, keys + h * size, size);
    put(reinterpret_cast<float*>(value), 1, values + h * size, size);
  }
}

}  // namespace headrace::HEADRACE_LEVEL
