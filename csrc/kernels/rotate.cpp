// Rotary positions and the write to the paged cache.
#include "codes.h"
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
template <typename Number>
void put(Number* to, std::size_t step, const Number* from, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) to[i * step] = from[i];
}

// One position's codes of a panel's dimensions: every fourth byte of a vector.
inline void put_value(const std::int8_t* from, std::size_t position, std::uint8_t* panel) {
#if defined(__AVX512F__)
  const auto at = static_cast<unsigned>(position % 4);
  const __m512i spread = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  _mm512_mask_storeu_epi8(panel + panel_byte(0, position - at), 0x1111111111111111u << at,
                          _mm512_sll_epi32(spread, _mm_cvtsi32_si128(static_cast<int>(8 * at))));
#else
  for (std::size_t i = 0; i < kCodeLanes; ++i) panel[panel_byte(i, position)] = static_cast<std::uint8_t>(from[i]);
#endif
}

// One head's key and value as codes, into their panels.
template <int PLANES>
void put_codes(const RotateRow& job, std::size_t head, const float* key, const float* value) {
  const CacheShape& cache = job.cache;
  const std::size_t width = cache.head_stride(), lanes = cache.lane_stride();
  std::int8_t codes[2][kMaximumHead];
  auto* scales = reinterpret_cast<float*>(job.block + cache.key_scale_offset(head));
  scales[job.offset] = to_codes<PLANES>(key, cache.head_size, codes[0], codes[1]);
  for (int plane = 0; plane < PLANES; ++plane) {
    std::uint8_t* to = job.block + cache.key_offset(head) + cache.panel_offset(job.offset / kCodeLanes, plane, width);
    for (std::size_t d = 0; d < width; d += 4) __builtin_memcpy(to + panel_byte(job.offset, d), codes[plane] + d, 4);
  }
  scales[lanes + job.offset] = to_codes<PLANES>(value, cache.head_size, codes[0], codes[1]);
  for (int plane = 0; plane < PLANES; ++plane) {
    for (std::size_t panel = 0; panel < width / kCodeLanes; ++panel) {
      put_value(codes[plane] + panel * kCodeLanes, job.offset,
                job.block + cache.value_offset(head) + cache.panel_offset(panel, plane, lanes));
    }
  }
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
  const std::size_t group = job.heads / cache.kv_heads;
  const auto rotate = [&](std::size_t begin, std::size_t end) {
    const auto heads = job.rotation.interleaved ? rotate_neighbours : rotate_halves;
    for (std::size_t h = begin; h < end; ++h) heads(job.qkv + h * size, job.cosines, job.sines, pairs);
  };
  rotate(job.first * group, job.last * group);
  rotate(job.heads + job.first, job.heads + job.last);
  const float* keys = job.qkv + job.heads * size;
  const float* values = keys + cache.kv_heads * size;
  for (std::size_t h = job.first; h < job.last; ++h) {
    if (cache.codes()) {
      const auto write = cache.entry == Entry::Codes16 ? put_codes<2> : put_codes<1>;
      write(job, h, keys + h * size, values + h * size);
      continue;
    }
    const std::size_t lanes = cache.lane_stride(), bytes = cache.entry_bytes();
    std::uint8_t* key = job.block + cache.key_offset(h) + job.offset * bytes;
    std::uint8_t* value = job.block + cache.value_offset(h) + job.offset * cache.head_stride() * bytes;
#if defined(__AVX2__)
    if (cache.entry == Entry::Float16) {
      std::uint16_t halves[kMaximumHead];
      narrow(keys + h * size, size, halves);
      put(reinterpret_cast<std::uint16_t*>(key), lanes, halves, size);
      narrow(values + h * size, size, reinterpret_cast<std::uint16_t*>(value));
      continue;
    }
#endif
    put(reinterpret_cast<float*>(key), lanes, keys + h * size, size);
    put(reinterpret_cast<float*>(value), 1, values + h * size, size);
  }
}

}  // namespace headrace::HEADRACE_LEVEL
