// Attention over codes: bytes times bytes, summed in 32-bit integers, scaled in float.
//
// Queries and weights are rounded to 16 bits in two planes of bytes, as keys and values are in the
// cache: queries to a scale of their own, the weights of a span (2^(score - the span's largest), times
// the scale of the value that each will meet) to the largest value scale that the query sees there.
// Sixteen queries, of a KV head's group and neighbouring rows, go through a span together.
#include "attention.h"
#include "codes.h"
#include "few.h"
#include "products.h"

namespace headrace::HEADRACE_LEVEL {

#if defined(__AVX512F__)

namespace {

constexpr float kLargestWeight = 65280;  // 255 · 256: its upper byte is 255

// The views of the scratch memory.
struct Scratch {
  std::uint8_t* queries;  // [tiles, 2, pieces, kRows, piece]
  float* query_scales;    // [padded queries]
  float* scores;          // [kRows, span lanes]
  std::uint8_t* weights;  // [2, span pieces, kRows, piece]
  Sums* sums;             // [2]
  float* key_scales;      // [span lanes]
  float* value_scales;    // [span lanes]
  std::size_t query_tile, weight_plane;  // bytes
  explicit Scratch(const AttentionTile& job) {
    const std::size_t many = padded16(job.queries()), lanes = job.cache.span_lanes();
    query_tile = 2 * kRows * job.cache.head_stride();
    weight_plane = kRows * lanes;
    queries = reinterpret_cast<std::uint8_t*>(job.scratch);
    float* at = job.scratch + many * job.cache.head_stride() / 2;
    query_scales = at;
    scores = query_scales + many;
    sums = reinterpret_cast<Sums*>(scores + kRows * lanes);
    weights = reinterpret_cast<std::uint8_t*>(sums + 2);
    key_scales = reinterpret_cast<float*>(weights + 2 * weight_plane);
    value_scales = key_scales + lanes;
  }
};

inline bool few(const AttentionTile& job) { return job.queries() <= kFewRows; }

// One query to codes.
void encode(const AttentionTile& job, std::size_t query, const Scratch& scratch) {
  const CacheShape& cache = job.cache;
  const std::size_t group = static_cast<std::size_t>(job.group), width = cache.head_stride();
  const std::size_t piece = few(job) ? width : cache.width.size;
  const std::uint8_t bias = few(job) ? kFewBias : kQueryBias;
  const float* from = job.query + query / group * job.query_stride + query % group * cache.head_size;
  std::int8_t codes[2][kMaximumHead];
  const float scale = to_codes<2>(from, cache.head_size, codes[0], codes[1]);
  std::uint8_t* to = scratch.queries + query / kRows * scratch.query_tile + query % kRows * piece;
  for (std::size_t plane = 0; plane < 2; ++plane) {
    for (std::size_t i = 0; i < width; ++i) codes[plane][i] ^= static_cast<std::int8_t>(bias);
    for (std::size_t i = 0; i < width; i += piece) {
      __builtin_memcpy(to + plane * kRows * width + i * kRows, codes[plane] + i, piece);
    }
  }
  const float unit = job.cap != 0 ? 1 : kLog2E;
  scratch.query_scales[query] = scale * job.scale * unit * (cache.entry == Entry::Codes16 ? 256 : 1);
}

// What the steps of one span share.
struct Span {
  const AttentionTile& job;
  const Scratch& scratch;
  std::size_t begin;
  const std::uint8_t* block(std::size_t index) const { return block_of(job, begin + index * job.cache.block_size); }
};

// Sixteen queries, or the last ones of a job.
struct Queries {
  std::size_t first, count;
};

inline Panel panel_of(const CacheShape& cache, const std::uint8_t* first, std::size_t index, std::size_t length) {
  return {first + cache.panel_offset(index, 0, length), first + cache.panel_offset(index, 1, length)};
}

// The keys, values and scales that come after those of a span, fetched a little with every product: a block is
// scattered in memory, so the hardware cannot foresee it, and memory answers requests that come steadily sooner
// than as many at once.
class Ahead {
 public:
  // During `steps` calls.
  Ahead(const AttentionTile& job, std::size_t end, std::size_t steps) {
    const bool more = end < job.context;
    job_ = more ? &job : job.next;
    if (!job_) return;
    const CacheShape& cache = job_->cache;
    begin_ = more ? end : 0;
    const std::size_t size = cache.span(), left = job_->context - begin_;
    blocks_ = blocks_of(*job_, begin_, begin_ + (left < size ? left : size), 0, job_->queries());
    const std::size_t lines = (blocks_.last - blocks_.first) * (cache.head_bytes() / kLine);
    if (steps) share_ = (lines + steps - 1) / steps;
  }
  void fetch() {
    for (std::size_t left = share_; left;) {
      if (!lines_ && !next_block()) return;
      const std::size_t count = left < lines_ ? left : lines_;
      const std::uint8_t* at = at_;
      for (std::size_t i = 0; i < count; ++i) __builtin_prefetch(at + i * kLine, 0, 2);
      at_ = at + count * kLine, lines_ -= count, left -= count;
    }
  }

 private:
  static constexpr std::size_t kLine = 64;

  bool next_block() {
    if (blocks_.first >= blocks_.last) return false;
    at_ = block_of(*job_, begin_ + blocks_.first++ * job_->cache.block_size) + job_->cache.key_offset(job_->kv_head);
    lines_ = job_->cache.head_bytes() / kLine;
    return true;
  }

  const AttentionTile* job_;
  std::size_t begin_ = 0, share_ = 0;  // lines of a call
  Blocks blocks_{};
  const std::uint8_t* at_ = nullptr;
  std::size_t lines_ = 0;  // left of a block
};

// value = 256 · upper + middle
inline Vector join(const Sums& sums, std::size_t row) {
  return __builtin_convertvector(sums.upper[row], Vector) * 256.0f + __builtin_convertvector(sums.middle[row], Vector);
}

template <int PLANES>
void score(const Span& span, Queries queries, Blocks blocks, Ahead& ahead) {
  const CacheShape& cache = span.job.cache;
  const std::size_t width = cache.head_stride(), panels = cache.lane_stride() / kCodeLanes;
  const std::size_t stride = cache.span_lanes(), first = blocks.first * panels, last = blocks.last * panels;
  const std::uint8_t* codes = span.scratch.queries + queries.first / kRows * span.scratch.query_tile;
  const Left left = {codes, codes + kRows * width};
  const float* scales = span.scratch.query_scales + queries.first;
  const auto begin = [&](auto parity, std::size_t i) {
    const std::uint8_t* block = span.block(i / panels);
    ahead.fetch();
    const Panel keys = panel_of(cache, block + cache.key_offset(span.job.kv_head), i % panels, width);
    start_queries<PLANES, decltype(parity)::value>(left, keys, cache.width, queries.count, span.scratch.sums);
  };
  const auto end = [&](auto parity, std::size_t i) {
    const Sums& sums = span.scratch.sums[decltype(parity)::value];
    finish<decltype(parity)::value>(span.scratch.sums);
    const Vector key_scales = load(span.scratch.key_scales + i * kCodeLanes);
    float* out = span.scratch.scores + i * kCodeLanes;
    for (std::size_t r = 0; r < queries.count; ++r) store(out + r * stride, join(sums, r) * (key_scales * scales[r]));
  };
  in_turn(first, last, begin, end);
}

// The scores of query `row` of a tile become weights in two planes of bytes. Returns what one unit of
// the values' sums is worth.
float soften(const Span& span, Queries queries, std::size_t row, Blocks blocks, const State& state) {
  const CacheShape& cache = span.job.cache;
  const std::size_t lanes = cache.lane_stride(), query = queries.first + row;
  const std::size_t piece = few(span.job) ? cache.span_lanes() : cache.lanes.size;
  float* scores = span.scratch.scores + row * cache.span_lanes();
  const Peak peak = mask(span.job, scores, span.scratch.value_scales, blocks, span.begin, query);
  const bool sees = peak.score > -__builtin_inff();
  const float most = sees ? peak.score : 0, factor = peak.scale > 0 ? kLargestWeight / peak.scale : 0;
  Vector total{};
  std::uint8_t* upper = span.scratch.weights + row * piece;
  for (std::size_t i = blocks.first * lanes; i < blocks.last * lanes; i += kLanes) {
    const Vector weight = power(load(scores + i) - most);
    total += weight;
    const Vector scaled = weight * (load(span.scratch.value_scales + i) * factor);
    const __m512i code = _mm512_cvtps_epi32((__m512)scaled);
    std::uint8_t* to = upper + i / piece * kRows * piece + i % piece;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_srli_epi32(code, 8)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + span.scratch.weight_plane), _mm512_cvtepi32_epi8(code));
  }
  state.most[query] = peak.score;
  state.total[query] = sees ? sum(total) : 0;
  return sees ? peak.scale / kLargestWeight * (cache.entry == Entry::Codes16 ? 256.0f : 1.0f) : 0;
}

template <int PLANES>
void weigh(const Span& span, Queries queries, Blocks blocks, const float* units, float* out, Ahead& ahead) {
  const CacheShape& cache = span.job.cache;
  const std::size_t width = cache.head_stride(), lanes = cache.lane_stride(), piece = cache.lanes.size;
  const std::size_t pieces = cache.lanes.count;
  const auto begin = [&](auto parity, std::size_t i) {
    clear<decltype(parity)::value>(span.scratch.sums);
    for (std::size_t b = blocks.first; b < blocks.last; ++b) {
      ahead.fetch();
      const std::uint8_t* weights = span.scratch.weights + b * pieces * kRows * piece;
      const Left left = {weights, weights + span.scratch.weight_plane};
      const Panel values = panel_of(cache, span.block(b) + cache.value_offset(span.job.kv_head), i, lanes);
      add_weights<PLANES, decltype(parity)::value>(left, values, cache.lanes, queries.count, span.scratch.sums);
    }
  };
  const auto end = [&](auto parity, std::size_t i) {
    const Sums& sums = span.scratch.sums[decltype(parity)::value];
    finish<decltype(parity)::value>(span.scratch.sums);
    for (std::size_t r = 0; r < queries.count; ++r) store(out + r * width + i * kLanes, join(sums, r) * units[r]);
  };
  in_turn(0, width / kCodeLanes, begin, end);
}

// The scales of a span's keys and values, side by side.
void gather_scales(const Span& span, Blocks blocks) {
  const CacheShape& cache = span.job.cache;
  const std::size_t lanes = cache.lane_stride(), bytes = lanes * sizeof(float);
  for (std::size_t b = blocks.first; b < blocks.last; ++b) {
    const std::uint8_t* block = span.block(b);
    __builtin_memcpy(span.scratch.key_scales + b * lanes, block + cache.key_scale_offset(span.job.kv_head), bytes);
    __builtin_memcpy(span.scratch.value_scales + b * lanes, block + cache.value_scale_offset(span.job.kv_head), bytes);
  }
}

template <int PLANES>
void attend_many(const Span& span, std::size_t end, const State& state, Ahead& ahead) {
  const AttentionTile& job = span.job;
  configure(job.cache, job.queries() < kRows ? job.queries() : kRows);
  for (std::size_t first = 0; first < job.queries(); first += kRows) {
    const Queries queries = {first, job.queries() - first < kRows ? job.queries() - first : kRows};
    const Blocks blocks = blocks_of(job, span.begin, end, first, queries.count);
    float units[kRows];
    score<PLANES>(span, queries, blocks, ahead);
    for (std::size_t r = 0; r < queries.count; ++r) units[r] = soften(span, queries, r, blocks, state);
    settle();
    weigh<PLANES>(span, queries, blocks, units, state.out + first * job.cache.head_stride(), ahead);
  }
  release();
}

template <int PLANES, int ROWS>
void attend_few(const Span& span, Blocks blocks, const State& state, Ahead& ahead) {
  const CacheShape& cache = span.job.cache;
  const Scratch& scratch = span.scratch;
  const std::size_t width = cache.head_stride(), lanes = cache.span_lanes();
  const auto fetch = [&] { ahead.fetch(); };
  float units[ROWS];
  score_few<PLANES, ROWS>(span.job, span.begin, blocks, {scratch.queries, scratch.queries + kRows * width, width},
                          scratch.query_scales, scratch.scores, lanes, fetch);
  for (std::size_t r = 0; r < ROWS; ++r) units[r] = soften(span, {0, ROWS}, r, blocks, state);
  weigh_few<PLANES, ROWS>(span.job, span.begin, blocks, {scratch.weights, scratch.weights + scratch.weight_plane, lanes},
                          units, state.out, fetch);
}

template <int PLANES>
void attend(const AttentionTile& job, std::size_t begin, std::size_t end, float* memory) {
  const CacheShape& cache = job.cache;
  const Scratch scratch(job);
  const Span span = {job, scratch, begin};
  const State state(memory, job.queries(), cache.head_stride());
  const Blocks blocks = blocks_of(job, begin, end, 0, job.queries());
  const std::size_t products = (blocks.last - blocks.first) * (cache.lane_stride() + cache.head_stride()) / kCodeLanes;
  Ahead ahead(job, end, padded16(job.queries()) / kRows * products);
  gather_scales(span, blocks);
  switch (job.queries()) {
    case 1: return attend_few<PLANES, 1>(span, blocks, state, ahead);
    case 2: return attend_few<PLANES, 2>(span, blocks, state, ahead);
    case 3: return attend_few<PLANES, 3>(span, blocks, state, ahead);
    case 4: return attend_few<PLANES, 4>(span, blocks, state, ahead);
    default: return attend_many<PLANES>(span, end, state, ahead);
  }
}

}  // namespace

void prepare_codes(const AttentionTile& job) {
  const Scratch scratch(job);
  for (std::size_t q = 0; q < job.queries(); ++q) encode(job, q, scratch);
}

void attend_codes(const AttentionTile& job, std::size_t begin, std::size_t end, float* state) {
  if (job.cache.entry == Entry::Codes16) {
    attend<2>(job, begin, end, state);
  } else {
    attend<1>(job, begin, end, state);
  }
}

#else

void prepare_codes(const AttentionTile&) {}
void attend_codes(const AttentionTile&, std::size_t, std::size_t, float*) {}

#endif

}  // namespace headrace::HEADRACE_LEVEL
