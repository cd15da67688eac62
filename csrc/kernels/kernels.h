// The kernels of one dispatch level, as a table of functions over raw pointers.
//
// Every file of this folder is compiled once a level (HEADRACE_LEVEL names the level's namespace)
// with that level's instructions. They include no standard container or algorithm: an inline function of
// the library compiled here with wide instructions could be picked by the linker for everyone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../panels.h"
#include "../quants.h"
#include "cache.h"

namespace headrace {

// A block of 32 activations as codes of 12 bits, in two planes of signed bytes: value = scale · code,
// code = 16 · upper + lower. The scale is a power of two, so that a weight's scale times it is a sum of
// integers: floating point units are what linears of many rows wait for. The sums of its codes pay for
// the weights' zero points and minima.
constexpr int kPlanes = 2;
constexpr int kPlaneBits = 4;
constexpr int kLargestCode12 = 16 * 127 + 7;
struct ActivationBlock {
  std::int32_t exponent;  // of the scale, where a float32 has it: to be added to the bits of one
  float sum;              // scale · (low + high)
  std::int32_t low;   // sum of codes 0..15
  std::int32_t high;  // sum of codes 16..31
};

// Rows of activations in tiles of 16 rows, so that a kernel reads one stream: codes
// [rows / 16, columns / 32, 16, 2 (upper, lower), 32], blocks [rows / 16, columns / 32, 16].
constexpr std::size_t kTileRows = 16;
struct Activations {
  std::int8_t* codes;
  ActivationBlock* blocks;
  std::uint16_t* brains;  // bfloat16, [rows / 16, columns / 32, 16, 32]
  // Each value's nearest bfloat16, and that of what it leaves, [rows / 16, columns / 32, 2, 16, 16, 2]: a
  // tile's line has two columns of 16 rows.
  std::uint16_t* halves;
  std::size_t columns;
  std::size_t block_index(std::size_t row, std::size_t block) const {
    return (row / kTileRows * (columns / kBlock) + block) * kTileRows + row % kTileRows;
  }
};

// out[row, 0..cols) = source[row] · weight rows of neighbouring panels, for rows [begin, end). For
// tiles begin is a multiple of 16.
struct IntegerPanels {
  PanelKind kind;
  const std::uint8_t* panel;  // the first
  Activations source;
  std::size_t begin, end;
  float* out;  // row 0, first column of the first panel
  std::size_t stride;
  std::size_t cols;

  std::size_t count() const { return (cols + kPanelRows - 1) / kPanelRows; }
  std::size_t panel_bytes() const { return source.columns / kBlock * static_cast<std::size_t>(panel_block_bytes(kind)); }
};

// What tiles take together so that it fits the L1 cache: blocks of columns, panels, tiles of rows.
constexpr std::size_t kTileBlocks = 6, kTilePanels = 4, kTileGroups = 4;
// Two parts of a panel, 16 rows of weights as bytes twice and two scales a block, and sums.
constexpr std::size_t kTileScratch =
    2 * kTileBlocks * (2 * kBlock * kPanelRows / sizeof(float) + 2 * kPanelRows) +
    kTilePanels * kTileGroups * kTileRows * kPanelRows;

enum class Gate : std::uint8_t { Silu, GeluTanh, Gelu, Relu, Tanh };

// Columns [column, column + 16) of gated rows, in bfloat16; `column` is a multiple of 16.
struct GatedColumns {
  Activations out;
  std::size_t column;
  Gate kind;
};

// Where `stride` is not 0, panels are rows of floats as they lie in their file, `rows` of each, 0..16.
struct FloatRows {
  Format format = Format::F32;
  std::size_t stride = 0;  // bytes
  int rows[2] = {};
};

// out[row, 0..cols) = source[row] · weight rows of one or two panels + bias, for rows [begin, end), the
// activations and the unpacked weights rounded to bfloat16. Where `gated` has brains, they get the first
// panel's products as a gate on the second's, and there is no `out` and no bias.
struct BrainPanels {
  PanelKind kind;
  const std::uint8_t* panels[2];
  FloatRows floats;
  Activations source;
  std::size_t begin, end;
  float* out;  // row 0, first column of the panel
  std::size_t stride;
  int cols;           // 1..32
  const float* bias;  // or null; readable for 32 columns
  GatedColumns gated;
};

constexpr std::size_t kBrainBlocks = 18;  // of columns, unpacked at a time: two panels of them fit the L1 cache
constexpr std::size_t kBrainRows = 1024;   // at most, end - begin
constexpr std::size_t kBrainScratch = 2 * kPanelRows * (kBrainBlocks * kBlock / 2 + kBrainRows + 2 * kTileRows);

// out[row, 0..cols) = source[row] · weight rows in bfloat16 as they lie, of each activation its halves, for rows
// [begin, end).
struct HalfPanels {
  const std::uint8_t* weights;  // of the first column
  std::size_t weight_stride;    // bytes
  Activations source;
  std::size_t begin, end;
  float* out;  // row 0, first column
  std::size_t stride;
  int cols;  // 1..32
};
constexpr std::size_t kHalfScratch = 6 * kTileRows * kPanelRows;  // sums and copies of weights

// out[row, 0..cols) = source[row] · weight rows, computed in float32; up to kFloatRows rows.
constexpr int kFloatRows = 32;
constexpr int kFloatColumns = 768;  // columns unpacked at a time
struct FloatPanel {
  Format format;
  const std::uint8_t* weight;  // first of the weight rows
  std::size_t weight_stride;   // bytes
  std::size_t columns;
  const float* source;
  std::size_t source_stride;
  std::size_t begin, end;
  float* out;
  std::size_t stride;
  int cols;        // 1..kFloatRows
  float* scratch;  // kFloatScratch floats
};
constexpr std::size_t kFloatScratch = kFloatRows * kFloatColumns;

struct Rotation {
  int pairs;
  bool interleaved;
};

// One row: rotate the query and key heads of the KV heads [first, last) in place, write their keys and values to the cache.
struct RotateRow {
  float* qkv;
  const float* cosines;  // [pairs]
  const float* sines;
  Rotation rotation;
  std::size_t heads;  // of queries
  std::size_t first, last;
  const CacheShape& cache;
  std::uint8_t* block;  // the block the row is written to
  std::size_t offset;   // in the block
};

// Rows of one sequence and the query heads of one KV head. A row sees the positions up to its own, or,
// where not causal, the context; of these, where there is a window, those nearer than it.
struct AttentionTile {
  const float* query;  // row 0, first head of the group
  std::size_t query_stride;
  float* out;
  std::size_t out_stride;
  const std::int32_t* positions;  // [rows], ascending
  int rows;
  int group;  // query heads a KV head
  float scale;
  float cap;           // scores become cap · tanh(score / cap); 0: no cap
  std::size_t window;  // 0: none
  bool causal;
  bool exact;              // computed in float32, whatever the cache holds
  std::size_t context;     // positions that some row sees
  const float* sinks;      // [group] or null: scores whose values are zero
  const CacheShape& cache;
  const std::uint8_t* layer;  // the layer's first block
  std::size_t kv_head;
  const std::int32_t* table;  // block ids of the sequence
  float* scratch;             // attention_scratch() floats, at a multiple of 64 bytes
  const AttentionTile* next = nullptr;  // whose keys and values are fetched meanwhile; or null
  std::size_t queries() const { return static_cast<std::size_t>(rows) * static_cast<std::size_t>(group); }
};
constexpr std::size_t kTileQueries = 48;  // rows · group at most, unless the group alone is larger

constexpr std::size_t padded16(std::size_t count) { return (count + 15) / 16 * 16; }

// What attention over a span of the context leaves: for each query a sum of values, and two floats.
inline std::size_t attention_state(const CacheShape& cache, std::size_t queries) {
  return padded16(queries) * (cache.head_stride() + 2);
}

// Over floats: queries, scores of a span, a block widened. Over codes: codes of the queries and
// their scales; then of sixteen queries: scores, weights in two planes, sums; scales of a span.
inline std::size_t attention_scratch(const CacheShape& cache, std::size_t queries) {
  const std::size_t many = padded16(queries), lanes = cache.span_lanes();
  const std::size_t floats = many * (cache.head_stride() + lanes) + cache.head_entries();
  const std::size_t codes = many * (cache.head_stride() / 2 + 1) + 16 * lanes + 8 * lanes + 1024 + 2 * lanes;
  return floats > codes ? floats : codes;
}

// Attention in bfloat16: positions that are widened together, and the queries of a job at most, unless a
// row has more: what it keeps of them fits a part of the L2 cache.
constexpr std::size_t kBrainSpan = 256;
inline std::size_t brain_queries(const CacheShape& cache) { return (98304 / cache.head_stride() + 31) / 32 * 32; }

// Whether a cache can be widened to bfloat16: a span is whole blocks, a block whole products.
inline bool widens(const CacheShape& cache) {
  return cache.codes() && cache.block_size % 32 == 0 && kBrainSpan % cache.block_size == 0;
}

// Queries, sums, largest scores and totals; scores and weights of 32 queries; keys and values of a span.
inline std::size_t attention_brain_scratch(const CacheShape& cache, std::size_t queries) {
  const std::size_t many = (queries + 31) / 32 * 32, width = cache.head_stride(), padded = (width + 31) / 32 * 32;
  return many * (padded / 2 + width + 17) + kBrainSpan * (32 + 16 + padded / 2 + width / 2);
}

// A change of one weight [rows, columns]: out += (source · down) · up · scale.
struct LowRank {
  const float* down;  // [columns, lanes]; lanes past the rank are 0
  const float* up;    // [rank, width]; columns past `rows` are not used
  std::size_t columns, rank, lanes, width;
  float scale;
  std::size_t rows;
};
constexpr std::size_t kAdapterLanes = 16;  // lanes and width are multiples of it
constexpr std::size_t kMaximumRank = 512;

// A change applied to adjacent rows.
struct LowRankRows {
  const LowRank* change;
  const float* source;
  std::size_t source_stride;
  float* out;
  std::size_t stride;
  std::size_t rows;  // 1..kAdapterRows
  float* scratch;    // kAdapterScratch floats
};
constexpr std::size_t kAdapterRows = 8;
constexpr std::size_t kAdapterScratch = kAdapterRows * kMaximumRank;

struct Kernels {
  const char* level;
  const char* vectors;  // what computes floats
  const char* integer;  // how bytes are multiplied; null: there are no integer kernels
  void (*norm)(float* out, float* residual, const float* add, float add_scale, const float* weight, float epsilon,
               bool accumulate, std::size_t width);
  // LayerNorm (arXiv 1607.06450) of residual, to which add_scale · add is added first; `add` and `bias` may be null.
  void (*layer_norm)(float* out, float* residual, const float* add, float add_scale, const float* weight,
                     const float* bias, float epsilon, std::size_t width);
  void (*activate)(float* out, const float* source, Gate kind, std::size_t width);
  void (*gate_multiply)(float* out, const float* gate, const float* up, Gate kind, std::size_t width);
  // values · scale, then cap · tanh(value / cap) where cap is not 0.
  void (*cap)(float* values, std::size_t count, float scale, float cap);
  void (*add)(float* out, const float* bias, std::size_t width);
  // `blocks` blocks of a row, to `out` from block `first` of row `row` on.
  void (*quantise)(const float* source, std::size_t blocks, const Activations& out, std::size_t row, std::size_t first);
  void (*integer_panels)(const IntegerPanels&);
  // As integer_panels, and equal to it, for many rows; scratch has kTileScratch floats and lies at a
  // multiple of 64 bytes. Null: the level has none.
  void (*tile_panels)(const IntegerPanels&, float* scratch);
  // In bfloat16; null where the level has no such tiles. `round_to_brain` is its `quantise`.
  void (*round_to_brain)(const float* source, std::size_t blocks, const Activations& out, std::size_t row, std::size_t first);
  void (*brain_panels)(const BrainPanels&, float* scratch);
  // In halves; null where the level has no such tiles. `halve` is its `quantise`. Scratch has kHalfScratch floats.
  void (*half_panels)(const HalfPanels&, float* scratch);
  void (*halve)(const float* source, std::size_t blocks, const Activations& out, std::size_t row, std::size_t first);
  void (*float_panel)(const FloatPanel&);
  void (*adapt)(const LowRankRows&);
  void (*rotate_and_write)(const RotateRow&);
  // How attention multiplies codes; null: it reads none, and the cache holds 16-bit entries as binary16.
  const char* codes;
  // Before the parts: the queries, in `scratch`.
  void (*attention_prepare)(const AttentionTile&);
  // Attention over the positions [begin, end), a whole span or the context's rest, into `state`.
  void (*attention_part)(const AttentionTile&, std::size_t begin, std::size_t end, float* state);
  void (*attention_merge)(const AttentionTile&, float* into, float* part);
  void (*attention_finish)(const AttentionTile&, float* state);
  // All of it at once, in bfloat16, over a cache that widens(); scratch has attention_brain_scratch() floats.
  // Null where the level has no such tiles.
  void (*attention_brains)(const AttentionTile&);
  // The first index of the largest value; what is no number is none. 0 where there is no other.
  std::size_t (*largest)(const float* values, std::size_t count);
  // log(sum(exp(values[i] - shift))) + shift
  float (*log_sum_exp)(const float* values, std::size_t count, float shift);
  // Sum of e^((values[i] - top) / temperature), the quotients in float; what is no number counts for nothing.
  double (*mass)(const float* values, std::size_t count, float top, float temperature);
  // Blocks of 32 floats (F32, F16, BF16) rounded to Q8_0 or Q4_1. False: one has no number, or too large a one.
  bool (*round_blocks)(Format from, const std::uint8_t* source, std::size_t blocks, Format to, std::uint8_t* out);
};

}  // namespace headrace
