// Rotary positions, the write to the paged cache, and causal attention over it with a running softmax
// (Milakov and Gimelshein 2018, arXiv 1805.02867).
#include "level.h"
#include "matmul.h"

namespace headrace::HEADRACE_LEVEL {

namespace {

void rotate(float* head, const RotateRow& job) {
  const int pairs = job.rotation.pairs;
  const int step = job.rotation.interleaved ? 2 : 1;
  const int apart = job.rotation.interleaved ? 1 : pairs;
  for (int i = 0; i < pairs; ++i) {
    float* first = head + i * step;
    const float a = first[0], b = first[apart];
    first[0] = a * job.cosines[i] - b * job.sines[i];
    first[apart] = b * job.cosines[i] + a * job.sines[i];
  }
}

inline void put([[maybe_unused]] const CacheShape& cache, std::uint8_t* at, std::size_t index, float value) {
#if defined(__AVX2__)
  if (!cache.exact) {
    reinterpret_cast<std::uint16_t*>(at)[index] = to_half(value);
    return;
  }
#endif
  reinterpret_cast<float*>(at)[index] = value;
}

// `count` entries (a multiple of 16) of the cache as floats: in place, or widened into `scratch`.
inline const float* widen([[maybe_unused]] const CacheShape& cache, const std::uint8_t* at,
                          [[maybe_unused]] std::size_t count, [[maybe_unused]] float* scratch) {
#if defined(__AVX2__)
  if (!cache.exact) {
    const auto* from = reinterpret_cast<const std::uint16_t*>(at);
    for (std::size_t i = 0; i < count; i += kLanes) store(scratch + i, load_half(from + i));
    return scratch;
  }
#endif
  return reinterpret_cast<const float*>(at);
}

struct Running {
  float most;   // largest score so far
  float total;  // sum of exp(score - most)
};

// One query's scores of a block become weights; `out` is scaled where the largest score grew.
void soften(float* scores, std::size_t visible, const CacheShape& cache, Running* running, float* out) {
  const IntVector lanes = lane_numbers();
  const Vector nothing = splat(-__builtin_inff());
  Vector top = nothing;
  for (std::size_t i = 0; i < cache.lane_stride; i += kLanes) {
    const IntVector index = lanes + static_cast<std::int32_t>(i);
    const Vector value = index < static_cast<std::int32_t>(visible) ? load(scores + i) : nothing;
    store(scores + i, value);
    top = larger(value, top);
  }
  const float most = maximum(top);
  if (most > running->most) {
    const float shrink = __builtin_expf(running->most - most);
    running->most = most;
    running->total *= shrink;
    for (std::size_t d = 0; d < cache.head_stride; d += kLanes) store(out + d, load(out + d) * shrink);
  }
  Vector total{};
  for (std::size_t i = 0; i < cache.lane_stride; i += kLanes) {
    const Vector weight = exponential(load(scores + i) - running->most);
    store(scores + i, weight);
    total += weight;
  }
  running->total += sum(total);
}

}  // namespace

void rotate_and_write(const RotateRow& job) {
  const CacheShape& cache = job.cache;
  float* keys = job.qkv + job.heads * cache.head_size;
  const float* values = keys + cache.kv_heads * cache.head_size;
  for (std::size_t h = 0; h < job.heads + cache.kv_heads; ++h) rotate(job.qkv + h * cache.head_size, job);
  for (std::size_t h = 0; h < cache.kv_heads; ++h) {
    std::uint8_t* key = job.block + cache.key_offset(h);
    std::uint8_t* value = job.block + cache.value_offset(h);
    for (std::size_t d = 0; d < cache.head_size; ++d) {
      put(cache, key, d * cache.lane_stride + job.offset, keys[h * cache.head_size + d]);
      put(cache, value, job.offset * cache.head_stride + d, values[h * cache.head_size + d]);
    }
  }
}

void attention(const AttentionTile& job) {
  const CacheShape& cache = job.cache;
  const std::size_t group = static_cast<std::size_t>(job.group);
  const std::size_t queries = static_cast<std::size_t>(job.rows) * group;
  const std::size_t width = cache.head_stride;
  float* query = job.scratch;
  float* out = query + queries * width;
  float* scores = out + queries * width;
  float* key_scratch = scores + queries * cache.lane_stride;
  float* value_scratch = key_scratch + cache.head_keys();
  Running* running = reinterpret_cast<Running*>(value_scratch + cache.head_values());
  for (std::size_t q = 0; q < queries; ++q) {
    const float* from = job.query + q / group * job.query_stride + q % group * cache.head_size;
    for (std::size_t d = 0; d < width; ++d) {
      query[q * width + d] = d < cache.head_size ? from[d] * job.scale : 0;
      out[q * width + d] = 0;
    }
    running[q] = {-__builtin_inff(), 0};
  }
  const std::size_t context = static_cast<std::size_t>(job.positions[job.rows - 1]) + 1;
  for (std::size_t at = 0; at < context; at += cache.block_size) {
    const std::size_t count = context - at < cache.block_size ? context - at : cache.block_size;
    const std::uint8_t* block =
        job.layer + static_cast<std::size_t>(job.table[at / cache.block_size]) * cache.block_bytes();
    const float* keys = widen(cache, block + cache.key_offset(job.kv_head), cache.head_keys(), key_scratch);
    const float* values =
        widen(cache, block + cache.value_offset(job.kv_head), (count * width + 15) / 16 * 16, value_scratch);
    for (std::size_t i = 0; i < queries * cache.lane_stride; ++i) scores[i] = 0;
    matmul(query, width, keys, cache.lane_stride, scores, cache.lane_stride, queries, cache.head_size,
           cache.lane_stride);
    std::size_t first = queries;  // the first query that sees anything of this block
    for (std::size_t q = queries; q-- > 0;) {
      const std::size_t sees = static_cast<std::size_t>(job.positions[q / group]) + 1;
      if (sees <= at) break;
      const std::size_t visible = sees - at < cache.block_size ? sees - at : cache.block_size;
      soften(scores + q * cache.lane_stride, visible, cache, running + q, out + q * width);
      first = q;
    }
    matmul(scores + first * cache.lane_stride, cache.lane_stride, values, width, out + first * width, width,
           queries - first, count, width);
  }
  for (std::size_t q = 0; q < queries; ++q) {
    float* to = job.out + q / group * job.out_stride + q % group * cache.head_size;
    const float inverse = 1.0f / running[q].total;
    for (std::size_t d = 0; d < cache.head_size; ++d) to[d] = out[q * width + d] * inverse;
  }
}

}  // namespace headrace::HEADRACE_LEVEL
