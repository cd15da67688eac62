// Attention of rows of given tokens in bfloat16 by AMX, in one pass over the context with a running
// softmax (FlashAttention-2, arXiv 2307.08691).
//
// Keys and values of a span of the cache are widened to bfloat16 once for all rows of a job. Spans lie
// at fixed positions and a row's sums skip nothing but zeros, so a row's result depends neither on the
// rows beside it nor on how a prompt was cut into steps. Scores come in units of log2(e) / 128: a
// weight's bfloat16 bits are then the score as an integer, its lower seven bits bent by a table.
#include "attention.h"
#include "tiles.h"

namespace headrace::HEADRACE_LEVEL {

#if defined(__AMX_BF16__)

namespace {

constexpr std::size_t kStep = 32;      // positions, or dimensions, that one product sums over
constexpr std::size_t kRows = 16;      // queries of a tile
constexpr std::size_t kTogether = 32;  // queries of two tiles
constexpr float kUnits = 128;          // in a score of log2(e)
constexpr float kNone = -1e30f;        // the largest score of a row that has seen nothing
constexpr float kHidden = -3e38f;      // the score of a position that a row does not see

// out [TALL, WIDE] tiles = before (or 0) + left · right over `steps` products. Tiles of a side's rows or
// columns lie `tall` and `wide` bytes apart, and the products' tiles of each follow one another.
template <int TALL, int WIDE>
inline void multiply(const std::uint8_t* left, std::size_t tall, const std::uint8_t* right, std::size_t wide,
                     std::size_t steps, bool add, float* out, std::size_t down) {
  float* below = out + down;
  if (add) {
    _tile_loadd(0, out, 64);
    if constexpr (WIDE == 2) _tile_loadd(1, out + kTileFloats, 64);
    if constexpr (TALL == 2) _tile_loadd(2, below, 64);
    if constexpr (TALL == 2 && WIDE == 2) _tile_loadd(3, below + kTileFloats, 64);
  } else {
    _tile_zero(0);
    if constexpr (WIDE == 2) _tile_zero(1);
    if constexpr (TALL == 2) _tile_zero(2);
    if constexpr (TALL == 2 && WIDE == 2) _tile_zero(3);
  }
  for (std::size_t i = 0; i < steps; ++i, left += kTileBytes, right += kTileBytes) {
    _tile_loadd(4, left, 64);
    _tile_loadd(6, right, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (WIDE == 2) {
      _tile_loadd(7, right + wide, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (TALL == 2) {
      _tile_loadd(5, left + tall, 64);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (TALL == 2 && WIDE == 2) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, out, 64);
  if constexpr (WIDE == 2) _tile_stored(1, out + kTileFloats, 64);
  if constexpr (TALL == 2) _tile_stored(2, below, 64);
  if constexpr (TALL == 2 && WIDE == 2) _tile_stored(3, below + kTileFloats, 64);
}

// The views of the scratch memory, and the lengths that fit whole tiles.
struct Views {
  std::size_t width, deep;  // of a head, in values and in products of a score
  std::uint8_t* queries;    // [tiles, deep] tiles of bfloat16
  float* out;               // [tiles, width / 16] tiles: sums of weight · value
  float* most;              // [tiles, 16] the largest score so far
  float* totals;            // [tiles, 16, 16] sums of weights, by lane
  float* scores;            // [2, kBrainSpan / 16] tiles
  std::uint8_t* weights;    // [2, kBrainSpan / 32] tiles of bfloat16
  std::uint8_t* keys;       // [kBrainSpan / 16, deep] tiles of bfloat16
  std::uint8_t* values;     // [width / 16, kBrainSpan / 32] tiles of bfloat16
  explicit Views(const AttentionTile& job) : width(job.cache.head_stride()), deep((width + kStep - 1) / kStep) {
    const std::size_t tiles = (job.queries() + kTogether - 1) / kTogether * 2;
    auto* at = reinterpret_cast<std::uint8_t*>(job.scratch);
    const auto take = [&at](std::size_t bytes) { return (at += bytes) - bytes; };
    queries = take(tiles * deep * kTileBytes);
    out = reinterpret_cast<float*>(take(tiles * width / 16 * kTileBytes));
    most = reinterpret_cast<float*>(take(tiles * 64));
    totals = reinterpret_cast<float*>(take(tiles * kTileBytes));
    scores = reinterpret_cast<float*>(take(2 * kBrainSpan / 16 * kTileBytes));
    weights = take(2 * kBrainSpan / kStep * kTileBytes);
    keys = take(kBrainSpan / 16 * deep * kTileBytes);
    values = take(width / 16 * (kBrainSpan / kStep) * kTileBytes);
  }
};

inline void store_pairs(std::uint8_t* to, Vector first, Vector second) {
  _mm512_store_si512(to, (__m512i)pair(first, second));
}

// Byte `at` of every lane, signed.
inline Vector byte_of(IntVector four, int at) { return __builtin_convertvector((four << (24 - 8 * at)) >> 24, Vector); }

// Four neighbours along the sum of a panel's sixteen columns.
template <int PLANES>
inline Vector code_of(IntVector upper, IntVector lower, int at) {
  if constexpr (PLANES == 2) return byte_of(upper, at) * 256.0f + byte_of(lower, at);
  return byte_of(upper, at);
}

// One panel of keys, of 16 positions, as tiles.
template <int PLANES>
void widen_keys(const CacheShape& cache, const std::uint8_t* panel, const float* scales, std::uint8_t* to) {
  const std::size_t width = cache.head_stride();
  const std::uint8_t* lower = panel + cache.panel_offset(0, 1, width);
  const Vector scale = load(scales);
  for (std::size_t d = 0; d < width; d += 4, to += 128) {
    IntVector four, rest{};
    __builtin_memcpy(&four, panel + d * kCodeLanes, 64);
    if constexpr (PLANES == 2) __builtin_memcpy(&rest, lower + d * kCodeLanes, 64);
    store_pairs(to, code_of<PLANES>(four, rest, 0) * scale, code_of<PLANES>(four, rest, 1) * scale);
    store_pairs(to + 64, code_of<PLANES>(four, rest, 2) * scale, code_of<PLANES>(four, rest, 3) * scale);
  }
  if (width % kStep) __builtin_memset(to, 0, kTileBytes / 2);
}

// A tile's row of the values of position `at` and its neighbour: weights of 32 positions lie four of the
// first sixteen, four of the second, and so on, as packing them leaves them.
constexpr std::size_t value_row(std::size_t at) { return at % 16 / 4 * 4 + at / 16 % 2 * 2 + at % 4 / 2; }

// One panel of values, of 16 dimensions and the positions of a block that begins at `from` of the span.
template <int PLANES>
void widen_values(const CacheShape& cache, const std::uint8_t* panel, const float* scales, std::size_t from,
                  std::uint8_t* to) {
  const std::size_t lanes = cache.lane_stride();
  const std::uint8_t* lower = panel + cache.panel_offset(0, 1, lanes);
  for (std::size_t i = 0; i < lanes; i += 4) {
    IntVector four, rest{};
    __builtin_memcpy(&four, panel + i * kCodeLanes, 64);
    if constexpr (PLANES == 2) __builtin_memcpy(&rest, lower + i * kCodeLanes, 64);
    std::uint8_t* rows = to + (from + i) / kStep * kTileBytes + value_row(from + i) * 64;
    store_pairs(rows, code_of<PLANES>(four, rest, 0) * scales[i], code_of<PLANES>(four, rest, 1) * scales[i + 1]);
    store_pairs(rows + 64, code_of<PLANES>(four, rest, 2) * scales[i + 2], code_of<PLANES>(four, rest, 3) * scales[i + 3]);
  }
}

// Positions [first, last) of the span from `begin` on: whole blocks of them.
template <int PLANES>
void widen(const AttentionTile& job, std::size_t begin, std::size_t first, std::size_t last, const Views& views) {
  const CacheShape& cache = job.cache;
  const std::size_t size = cache.block_size, width = views.width, lanes = cache.lane_stride();
  for (std::size_t from = first / size * size; from < last; from += size) {
    const std::uint8_t* block = block_of(job, begin + from);
    const auto* scales = reinterpret_cast<const float*>(block + cache.key_scale_offset(job.kv_head));
    for (std::size_t i = 0; i < size / kCodeLanes; ++i) {
      widen_keys<PLANES>(cache, block + cache.key_offset(job.kv_head) + cache.panel_offset(i, 0, width),
                         scales + i * kCodeLanes, views.keys + (from / kCodeLanes + i) * views.deep * kTileBytes);
    }
    for (std::size_t i = 0; i < width / kCodeLanes; ++i) {
      widen_values<PLANES>(cache, block + cache.value_offset(job.kv_head) + cache.panel_offset(i, 0, lanes),
                           scales + lanes, from, views.values + i * (kBrainSpan / kStep) * kTileBytes);
    }
  }
}

// Queries as tiles, scaled; those that fill up the last tiles are zero.
void round_queries(const AttentionTile& job, const Views& views) {
  const std::size_t group = static_cast<std::size_t>(job.group), size = job.cache.head_size;
  const std::size_t whole = (job.queries() + kTogether - 1) / kTogether * kTogether;
  const float scale = job.scale * (job.cap != 0 ? 1 : kLog2E * kUnits);
  alignas(64) float row[kMaximumHead + kStep];
  __builtin_memset(row, 0, views.deep * kStep * sizeof(float));
  for (std::size_t q = 0; q < whole; ++q) {
    if (q < job.queries()) {
      __builtin_memcpy(row, job.query + q / group * job.query_stride + q % group * size, size * sizeof(float));
    } else {
      __builtin_memset(row, 0, size * sizeof(float));
    }
    std::uint8_t* to = views.queries + q / kRows * views.deep * kTileBytes + q % kRows * 64;
    for (std::size_t i = 0; i < views.deep; ++i, to += kTileBytes) {
      const float* from = row + i * kStep;
      const auto both = _mm512_cvtne2ps_pbh((__m512)(load(from + kLanes) * scale), (__m512)(load(from) * scale));
      _mm512_store_si512(to, (__m512i)both);
    }
  }
}

// Mantissas of 2^(i / 128) in seven bits.
struct Mantissas {
  alignas(64) std::uint8_t bits[128];
  constexpr Mantissas() : bits{} {
    double power = 1;
    for (int i = 0; i < 128; ++i, power *= 1.0054299011128028) {
      bits[i] = static_cast<std::uint8_t>((power - 1) * 128 + 0.5);
    }
  }
};
constexpr Mantissas kMantissas;

// 2^((score + offset) / 128 - 127) of 32 scores, in bfloat16: 0 where that is under the smallest.
inline __m512i weights_of(const float* scores, Vector offset) {
  const __m512i first = _mm512_cvtps_epi32((__m512)(load(scores) + offset));
  const __m512i second = _mm512_cvtps_epi32((__m512)(load(scores + kTileFloats) + offset));
  const __m512i bits = _mm512_max_epi16(_mm512_packs_epi32(first, second), _mm512_setzero_si512());
  const __m512i low = _mm512_load_si512(kMantissas.bits), high = _mm512_load_si512(kMantissas.bits + 64);
  const __m512i bent = _mm512_mask2_permutex2var_epi8(low, bits, 0x5555555555555555, high);
  return _mm512_ternarylogic_epi32(bent, bits, _mm512_set1_epi16(0x80), 0xf8);  // bent | (bits & 0x80)
}

// The largest lane of each of sixteen vectors.
inline Vector maxima(const Vector (&rows)[kRows]) {
  Vector eight[8], four[4];
  for (int i = 0; i < 8; ++i) {
    const auto a = (__m512)rows[2 * i], b = (__m512)rows[2 * i + 1];
    eight[i] = larger((Vector)_mm512_unpacklo_ps(a, b), (Vector)_mm512_unpackhi_ps(a, b));
  }
  for (int i = 0; i < 4; ++i) {
    const auto a = (__m512d)eight[2 * i], b = (__m512d)eight[2 * i + 1];
    four[i] = larger((Vector)_mm512_unpacklo_pd(a, b), (Vector)_mm512_unpackhi_pd(a, b));
  }
  const auto halves = [](Vector a, Vector b) {
    return larger((Vector)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0x88),
                  (Vector)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0xdd));
  };
  return halves(halves(four[0], four[1]), halves(four[2], four[3]));
}

// Of a span, the steps of 32 positions [first, last) that some query of a tile sees.
struct Steps {
  std::size_t first, last;
};

// Caps a row's scores and hides what it does not see: its sight is [from, to) of the span.
void mask(const AttentionTile& job, float* row, Steps steps, std::size_t from, std::size_t to) {
  const IntVector numbers = lane_numbers();
  for (std::size_t at = steps.first * kStep; at < steps.last * kStep; at += kLanes) {
    if (job.cap == 0 && at >= from && at + kLanes <= to) continue;
    float* scores = row + at / kLanes * kTileFloats;
    Vector value = load(scores);
    if (job.cap != 0) value = tanh(value / job.cap) * (job.cap * kLog2E * kUnits);
    const IntVector index = numbers + static_cast<std::int32_t>(at);
    const IntVector seen = (index >= static_cast<std::int32_t>(from)) & (index < static_cast<std::int32_t>(to));
    store(scores, seen ? value : splat(kHidden));
  }
}

// Sixteen queries' scores become weights; what was summed with smaller maxima shrinks.
void soften(const AttentionTile& job, std::size_t begin, std::size_t tile, Steps steps, float* scores,
            std::uint8_t* weights, const Views& views) {
  const std::size_t last = begin + steps.last * kStep, queries = job.queries();
  Vector tops[kRows];
  for (std::size_t r = 0; r < kRows; ++r) {
    const std::size_t query = tile * kRows + r < queries ? tile * kRows + r : queries - 1;
    const Sight sees = sight(job, query);
    if (job.cap != 0 || sees.first > begin + steps.first * kStep || sees.last < last) {
      const auto within = [begin](std::size_t at) { return at > begin ? at - begin : 0; };
      mask(job, scores + r * kLanes, steps, within(sees.first), within(sees.last));
    }
    const float* row = scores + r * kLanes;
    Vector even = splat(kHidden), odd = even;
    for (std::size_t i = steps.first; i < steps.last; ++i) {
      even = larger(load(row + 2 * i * kTileFloats), even);
      odd = larger(load(row + (2 * i + 1) * kTileFloats), odd);
    }
    tops[r] = larger(even, odd);
  }
  float* most = views.most + tile * kRows;
  const Vector before = load(most), now = larger(maxima(tops), before);
  store(most, now);
  alignas(64) float shrink[kRows], offsets[kRows];
  store(shrink, power((before - now) * (1 / kUnits)));
  store(offsets, 127 * kUnits - now);
  float* totals = views.totals + tile * kTileFloats;
  const bool moved = _mm512_cmp_ps_mask((__m512)before, (__m512)now, _CMP_NEQ_OQ);
  const auto ones = (__m512bh)_mm512_set1_epi16(0x3f80);
  for (std::size_t r = 0; r < kRows; ++r) {
    const Vector offset = splat(offsets[r]);
    auto total = (__m512)(load(totals + r * kLanes) * shrink[r]);
    for (std::size_t i = steps.first; i < steps.last; ++i) {
      const __m512i bits = weights_of(scores + 2 * i * kTileFloats + r * kLanes, offset);
      total = _mm512_dpbf16_ps(total, (__m512bh)bits, ones);
      _mm512_store_si512(weights + i * kTileBytes + r * 64, bits);
    }
    store(totals + r * kLanes, (Vector)total);
  }
  if (!moved) return;
  float* out = views.out + tile * views.width / 16 * kTileFloats;
  for (std::size_t i = 0; i < views.width / 16; ++i) {
    for (std::size_t r = 0; r < kRows; ++r, out += kLanes) store(out, load(out) * shrink[r]);
  }
}

// One or two tiles of queries, from `tile` on, meet a span.
template <int TALL>
void meet(const AttentionTile& job, std::size_t begin, std::size_t tile, Steps steps, const Views& views) {
  constexpr std::size_t kPanels = kBrainSpan / 16, kSteps = kBrainSpan / kStep;
  const std::size_t panel = views.deep * kTileBytes;
  const std::uint8_t* queries = views.queries + tile * panel;
  for (std::size_t i = steps.first; i < steps.last; ++i) {
    multiply<TALL, 2>(queries, panel, views.keys + 2 * i * panel, panel, views.deep, false,
                      views.scores + 2 * i * kTileFloats, kPanels * kTileFloats);
  }
  settle();
  for (std::size_t t = 0; t < TALL; ++t) {
    soften(job, begin, tile + t, steps, views.scores + t * kPanels * kTileFloats,
           views.weights + t * kSteps * kTileBytes, views);
  }
  settle();
  const std::size_t panels = views.width / 16, tall = kSteps * kTileBytes, count = steps.last - steps.first;
  float* out = views.out + tile * panels * kTileFloats;
  const std::uint8_t* weights = views.weights + steps.first * kTileBytes;
  const std::uint8_t* values = views.values + steps.first * kTileBytes;
  std::size_t i = 0;
  for (; i + 2 <= panels; i += 2) {
    multiply<TALL, 2>(weights, tall, values + i * tall, tall, count, true, out + i * kTileFloats, panels * kTileFloats);
  }
  if (i < panels) {
    multiply<TALL, 1>(weights, tall, values + i * tall, tall, count, true, out + i * kTileFloats, panels * kTileFloats);
  }
  settle();
}

void finish(const AttentionTile& job, const Views& views) {
  const std::size_t group = static_cast<std::size_t>(job.group), size = job.cache.head_size;
  const std::size_t panels = views.width / 16;
  for (std::size_t q = 0; q < job.queries(); ++q) {
    float scale = 1, total = sum(load(views.totals + q * kLanes));
    if (job.sinks) {
      const float most = views.most[q] * (1 / kUnits), sink = job.sinks[q % group] * kLog2E;
      const float top = sink > most ? sink : most;
      scale = __builtin_exp2f(most - top);
      total = total * scale + __builtin_exp2f(sink - top);
    }
    alignas(64) float row[kMaximumHead];
    const float* from = views.out + q / kRows * panels * kTileFloats + q % kRows * kLanes;
    for (std::size_t i = 0; i < panels; ++i) store(row + i * kLanes, load(from + i * kTileFloats) * (scale / total));
    __builtin_memcpy(job.out + q / group * job.out_stride + q % group * size, row, size * sizeof(float));
  }
}

template <int PLANES>
void attend(const AttentionTile& job) {
  const Views views(job);
  const std::size_t queries = job.queries(), tiles = (queries + kTogether - 1) / kTogether * 2;
  round_queries(job, views);
  __builtin_memset(views.out, 0, tiles * views.width / 16 * kTileBytes);
  __builtin_memset(views.totals, 0, tiles * kTileBytes);
  for (std::size_t i = 0; i < tiles; ++i) store(views.most + i * kRows, splat(kNone));
  const Sight whole = {sight(job, 0).first, sight(job, queries - 1).last};
  shape_tiles({});
  for (std::size_t begin = whole.first / kBrainSpan * kBrainSpan; begin < whole.last; begin += kBrainSpan) {
    const auto within = [begin](std::size_t at) {
      return at <= begin ? 0 : at - begin < kBrainSpan ? at - begin : kBrainSpan;
    };
    widen<PLANES>(job, begin, within(whole.first), within(whole.last), views);
    settle();
    for (std::size_t first = 0; first < queries; first += kTogether) {
      const std::size_t end = first + kTogether < queries ? first + kTogether : queries;
      const std::size_t from = within(sight(job, first).first), to = within(sight(job, end - 1).last);
      if (from >= to) continue;
      const Steps steps = {from / kStep, (to + kStep - 1) / kStep};
      end - first > kRows ? meet<2>(job, begin, first / kRows, steps, views)
                          : meet<1>(job, begin, first / kRows, steps, views);
    }
  }
  _tile_release();
  finish(job, views);
}

}  // namespace

void attention_brains(const AttentionTile& job) {
  job.cache.entry == Entry::Codes16 ? attend<2>(job) : attend<1>(job);
}

#endif

}  // namespace headrace::HEADRACE_LEVEL
