// Causal attention over the paged cache with a running softmax (Milakov and Gimelshein 2018, arXiv
// 1805.02867), in parts of the context that are merged in order: a part may be another member's work,
// and the result is the same to the bit whoever did it.
#include "level.h"
#include "matmul.h"

namespace headrace::HEADRACE_LEVEL {

namespace {

// `count` entries (a multiple of 16) of the cache as floats: in place, or widened into `scratch` while
// the entries at `next` are fetched (a block is scattered in memory, so the hardware cannot foresee it).
inline const float* widen([[maybe_unused]] const CacheShape& cache, const std::uint8_t* at,
                          [[maybe_unused]] std::size_t count, [[maybe_unused]] const std::uint8_t* next,
                          [[maybe_unused]] float* scratch) {
#if defined(__AVX2__)
  if (!cache.exact) {
    const auto* from = reinterpret_cast<const std::uint16_t*>(at);
    const auto* ahead = reinterpret_cast<const std::uint16_t*>(next);
    for (std::size_t i = 0; i < count; i += kLanes) {
      __builtin_prefetch(ahead + i);
      store(scratch + i, load_half(from + i));
    }
    return scratch;
  }
#endif
  return reinterpret_cast<const float*>(at);
}

// The views of an AttentionState.
struct State {
  float* out;    // [queries, head_stride] sum of exp(score - most) · value
  float* most;   // [queries] largest score so far
  float* total;  // [queries] sum of exp(score - most)
  State(float* memory, std::size_t queries, std::size_t width)
      : out(memory), most(memory + queries * width), total(most + queries) {}
};

// Of a block: how many of its positions a query that sees `sees` positions sees.
inline std::size_t visible(std::size_t sees, std::size_t at, const CacheShape& cache) {
  if (sees <= at) return 0;
  return sees - at < cache.block_size ? sees - at : cache.block_size;
}

// Positions [first, last) that a query sees.
struct Sight {
  std::size_t first, last;
};

inline Sight sight(const AttentionTile& job, std::size_t query) {
  const std::size_t last = static_cast<std::size_t>(job.positions[query / static_cast<std::size_t>(job.group)]) + 1;
  return {job.window && last > job.window ? last - job.window : 0, last};
}

// One query's scores of a span, from position `at`, become weights; its sums shrink where the largest score grew.
void soften(const AttentionTile& job, float* scores, std::size_t blocks, std::size_t at, State state,
            std::size_t query) {
  const CacheShape& cache = job.cache;
  const Sight sees = sight(job, query);
  if (sees.first >= at + blocks * cache.block_size) {  // the span lies behind its window
    for (std::size_t i = 0; i < blocks * cache.lane_stride; ++i) scores[i] = 0;
    return;
  }
  const IntVector lanes = lane_numbers();
  const Vector nothing = splat(-__builtin_inff());
  Vector top = nothing;
  for (std::size_t b = 0; b < blocks; ++b) {
    const std::size_t position = at + b * cache.block_size;
    const auto begin = static_cast<std::int32_t>(visible(sees.first, position, cache));
    const auto end = static_cast<std::int32_t>(visible(sees.last, position, cache));
    float* block = scores + b * cache.lane_stride;
    for (std::size_t i = 0; i < cache.lane_stride; i += kLanes) {
      const IntVector index = lanes + static_cast<std::int32_t>(i);
      Vector value = load(block + i);
      if (job.cap != 0) value = tanh(value / job.cap) * job.cap;
      value = (index < end) & (index >= begin) ? value : nothing;
      store(block + i, value);
      top = larger(value, top);
    }
  }
  const float most = maximum(top);
  if (most > state.most[query]) {
    const float shrink = __builtin_expf(state.most[query] - most);
    float* out = state.out + query * cache.head_stride;
    state.most[query] = most;
    state.total[query] *= shrink;
    for (std::size_t d = 0; d < cache.head_stride; d += kLanes) store(out + d, load(out + d) * shrink);
  }
  Vector total{};
  for (std::size_t i = 0; i < blocks * cache.lane_stride; i += kLanes) {
    const Vector weight = exponential(load(scores + i) - state.most[query]);
    store(scores + i, weight);
    total += weight;
  }
  state.total[query] += sum(total);
}

inline const std::uint8_t* block_of(const AttentionTile& job, std::size_t position) {
  const auto id = static_cast<std::size_t>(job.table[position / job.cache.block_size]);
  return job.layer + id * job.cache.block_bytes();
}

}  // namespace

void attention_part(const AttentionTile& job, std::size_t begin, std::size_t end, float* memory) {
  const CacheShape& cache = job.cache;
  const std::size_t group = static_cast<std::size_t>(job.group);
  const std::size_t queries = job.queries(), width = cache.head_stride;
  const State state(memory, queries, width);
  float* query = job.scratch;
  float* scores = query + queries * width;
  float* entries = scores + queries * cache.span_lanes();
  for (std::size_t q = 0; q < queries; ++q) {
    const float* from = job.query + q / group * job.query_stride + q % group * cache.head_size;
    for (std::size_t d = 0; d < width; ++d) {
      query[q * width + d] = d < cache.head_size ? from[d] * job.scale : 0;
      state.out[q * width + d] = 0;
    }
    state.most[q] = -__builtin_inff();
    state.total[q] = 0;
  }
  const std::size_t span = cache.span_blocks() * cache.block_size, stride = cache.span_lanes();
  for (std::size_t at = begin; at < end; at += span) {
    const std::size_t past = end - at < span ? end : at + span;
    if (past <= sight(job, 0).first) continue;  // behind every query's window
    const std::size_t blocks = (past - at + cache.block_size - 1) / cache.block_size;
    for (std::size_t i = 0; i < queries * stride; ++i) scores[i] = 0;
    for (std::size_t b = 0; b < blocks; ++b) {
      const std::size_t position = at + b * cache.block_size;
      const std::size_t ahead = position + cache.block_size < end ? position + cache.block_size : position;
      const float* keys = widen(cache, block_of(job, position) + cache.key_offset(job.kv_head), cache.head_keys(),
                                block_of(job, ahead) + cache.key_offset(job.kv_head), entries);
      matmul(query, width, keys, cache.lane_stride, scores + b * cache.lane_stride, stride, queries, cache.head_size,
             cache.lane_stride);
    }
    std::size_t first = queries;  // the first query that sees anything of this span
    for (std::size_t q = queries; q-- > 0; first = q) {
      if (sight(job, q).last <= at) break;
      soften(job, scores + q * stride, blocks, at, state, q);
    }
    for (std::size_t b = 0; b < blocks; ++b) {
      const std::size_t position = at + b * cache.block_size;
      const std::size_t ahead = position + cache.block_size < end ? position + cache.block_size : position;
      const std::size_t count = visible(end, position, cache);
      const float* values = widen(cache, block_of(job, position) + cache.value_offset(job.kv_head), count * width,
                                  block_of(job, ahead) + cache.value_offset(job.kv_head), entries);
      matmul(scores + first * stride + b * cache.lane_stride, stride, values, width, state.out + first * width, width,
             queries - first, count, width);
    }
  }
}

void attention_merge(const AttentionTile& job, float* into, float* part) {
  const std::size_t queries = job.queries(), width = job.cache.head_stride;
  const State whole(into, queries, width), more(part, queries, width);
  for (std::size_t q = 0; q < queries; ++q) {
    if (more.total[q] == 0) continue;  // the query sees nothing of the part
    const float most = whole.most[q] > more.most[q] ? whole.most[q] : more.most[q];
    const float left = __builtin_expf(whole.most[q] - most), right = __builtin_expf(more.most[q] - most);
    whole.most[q] = most;
    whole.total[q] = whole.total[q] * left + more.total[q] * right;
    float* out = whole.out + q * width;
    for (std::size_t d = 0; d < width; d += kLanes) {
      store(out + d, load(out + d) * left + load(more.out + q * width + d) * right);
    }
  }
}

void attention_finish(const AttentionTile& job, float* memory) {
  const std::size_t group = static_cast<std::size_t>(job.group), width = job.cache.head_stride;
  const State state(memory, job.queries(), width);
  for (std::size_t q = 0; q < job.queries(); ++q) {
    float* to = job.out + q / group * job.out_stride + q % group * job.cache.head_size;
    const float inverse = 1.0f / state.total[q];
    for (std::size_t d = 0; d < job.cache.head_size; ++d) to[d] = state.out[q * width + d] * inverse;
  }
}

}  // namespace headrace::HEADRACE_LEVEL
