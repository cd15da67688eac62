// The compiled step program: op records with pointers into buffers and weights.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <variant>
#include <vector>

#include "adapters.h"
#include "batch.h"
#include "kernels/kernels.h"
#include "memory.h"

namespace headrace {

// A weight as it lies in its file, which the caller keeps mapped, and packed if a Linear asked for it.
struct Weight {
  Format format;
  std::size_t rows, columns;
  const std::uint8_t* data;
  const std::uint8_t* packed = nullptr;  // panels; null where the weight is read as it lies
  PanelKind kind{};
  bool brains = false;  // rows of given tokens are multiplied in bfloat16: packed, or floats as they lie
  bool halves = false;  // and others as the sum of two bfloat16 a value, which loses nothing of the weight
  std::vector<float> floats;  // the values of a vector (norm weight, bias), float32

  std::size_t stride() const { return row_bytes(format, columns); }
  std::size_t panels() const { return (rows + kPanelRows - 1) / kPanelRows; }
  std::size_t panel_bytes() const {  // 0 where the weight is not packed
    if (!packed) return 0;
    return columns / kBlock * static_cast<std::size_t>(panel_block_bytes(kind));
  }
};

// A float32 matrix of one row per token of the step, and where a packed weight reads it, each row's
// bytes or bfloat16.
struct Buffer {
  std::size_t width;
  bool bytes = false;  // kernels read its rows in bytes or bfloat16
  bool codes_read = false;  // an integer kernel is one of them
  bool halves_read = false;  // so are tiles that read two bfloat16 a value
  bool pooled = false;  // one row a sequence
  Region floats;
  Region codes;
  Region blocks;
  Region brains;
  Region halves;

  void grow(std::size_t rows);
  float* row(std::size_t index) const { return floats.as<float>() + index * width; }
  Activations activations() const {
    return {codes.as<std::int8_t>(), blocks.as<ActivationBlock>(), brains.as<std::uint16_t>(), halves.as<std::uint16_t>(),
            width};
  }
};

// cos and sin of every row's angles, shared by the ops that have the same frequencies.
struct Angles {
  std::vector<double> frequencies;
  bool interleaved;
  double scale;  // of the rotated values
  Region table;  // [rows, 2, pairs]
};

struct EmbedOp {
  Buffer* out;
  const Weight* table;
  float scale;
};
// Adds the row of a table at each token's position, or its type.
struct AddEmbeddingOp {
  Buffer* out;
  const Weight* table;
  bool types;
  std::size_t offset;
};
// Where `quantise` is set, an op also writes the bytes of its `out`.
struct NormOp {
  Buffer* out;
  Buffer* residual;
  const Buffer* add;  // or null
  float add_scale;
  const float* weight;
  float epsilon;
  bool accumulate;
  bool layer;         // the mean is taken away first
  const float* bias;  // or null; of a layer norm
  bool quantise = false;
};
struct AnglesOp {
  Angles* angles;
};
// To bytes, where the op that wrote the buffer could not do it.
struct QuantiseOp {
  Buffer* buffer;
};
struct LinearPart {
  const Weight* weight;
  std::size_t column;  // of the output
};
struct LinearOp {
  Buffer* out;
  const Buffer* source;
  std::vector<LinearPart> parts;
  std::vector<float> bias;  // of the whole width, or empty
  // Where set, rows are gated to this buffer as soon as their columns are there; those in bfloat16 are not
  // written to `out` at all.
  const Buffer* gated = nullptr;
  Gate gate{};
};
// What the adapters of a step's rows change of a linear.
struct AdaptPart {
  std::size_t weight;  // index in the model
  std::size_t column;  // of the output
};
struct AdaptOp {
  Buffer* out;
  const Buffer* source;
  std::vector<AdaptPart> parts;
};
struct NormHeadsOp {
  Buffer* qkv;
  std::size_t heads;
  const float* query;
  const float* key;
  float epsilon;
  bool whole;  // over all heads together
};
struct RotateOp {
  Buffer* qkv;
  std::size_t layer, heads;
  const Angles* angles;
  bool fused = false;  // with the attention after it, for rows that are their sequences' only ones
};
struct AttentionOp {
  Buffer* out;
  const Buffer* qkv;
  std::size_t layer, heads;
  float scale;
  std::size_t window;
  float cap;
  const float* sinks;  // [heads] or null
  bool causal;
  bool quantise = false;
  std::optional<RotateOp> rotation = {};  // where set, it rotates and writes lone rows
};
struct GateOp {
  Buffer* out;
  const Buffer* source;
  Gate kind;
  bool quantise = false;
  bool fused = false;  // with the linear before it
};
struct ActivateOp {
  Buffer* out;
  const Buffer* source;
  Gate kind;
  bool quantise = false;
};
// A row a sequence: its first, its last, or the mean of all.
enum class Pooling : std::uint8_t { First, Last, Mean };
struct PoolOp {
  Buffer* out;
  const Buffer* source;
  Pooling kind;
};
// The sampled rows, gathered for the last linear.
struct GatherOp {
  Buffer* out;
  const Buffer* source;
  bool quantise = false;
};
struct CapOp {
  const Buffer* logits;
  float scale, cap;
};
struct SampleOp {
  const Buffer* logits;
};

using Op = std::variant<EmbedOp, AddEmbeddingOp, NormOp, AnglesOp, QuantiseOp, LinearOp, AdaptOp, NormHeadsOp, RotateOp,
                        AttentionOp, GateOp, ActivateOp, PoolOp, GatherOp, CapOp, SampleOp>;

struct RowRange {
  std::size_t begin, end;
};

// Neighbouring rows of given tokens, or of chosen ones.
struct RowRun {
  RowRange rows;
  bool given;
};

// Rows [begin, end) of a part's weight: columns of the output.
struct Columns {
  const LinearPart* part;
  std::size_t begin, end;
};

// Rows [begin, end) of a sequence that attention takes together: of given tokens, or of chosen ones.
struct RowTile {
  std::size_t sequence, begin, end;
  bool given;
  bool lone = false;  // the sequence's only row, which attention rotates and writes
};

// Where few tiles meet a long context, the spans of the context are tasks of their own; whoever
// finishes a tile's last span merges them.
struct SplitAttention {
  std::size_t parts = 1;  // of the longest context; 1: nothing is split
  Region states;          // [tiles, kv_heads, parts] attention_state floats
  std::deque<std::atomic<std::size_t>> finished;  // [tiles, kv_heads] of the op in progress
};

// Neighbouring tasks that one member begins with, and others take where it is late.
struct alignas(64) Share {
  std::atomic<std::uint32_t> taken{0};
};

// How far an op is: tasks taken and tasks done. An op ends when its tasks are done, not when every
// member has come by: one that the kernel has put aside delays nobody unless it holds a task.
struct alignas(64) Progress {
  std::atomic<std::uint32_t> done{0};
  std::deque<Share> shares;  // one a member
};

// What a step gives.
struct Chosen {
  std::vector<std::int32_t> tokens;         // [samples]
  std::vector<float> logprobs;              // [samples]
  std::vector<std::int32_t> ranked_tokens;  // [samples, ranked]
  std::vector<float> ranked_logprobs;       // [samples, ranked]
  double seconds = 0;                       // that it took
};

// What one step reads and writes besides buffers.
struct Step {
  const Batch* batch;
  std::vector<std::uint8_t> given;  // [rows] 1 where the token was given, and is multiplied in bfloat16
  std::vector<RowRun> runs;
  std::vector<RowTile> tiles;
  std::vector<std::uint8_t> lone;   // [rows] of tiles
  std::vector<AdaptedRows> adapted;
  SplitAttention split;
  Region candidates, edited;                // one vocabulary a thread
  Chosen chosen;                            // out
  bool draws;                               // false: stop at the logits
  std::atomic<std::uint32_t> settled{0};    // 1: how tokens are chosen is known
  std::chrono::steady_clock::time_point began;
  std::atomic<std::int64_t> took{0};        // nanoseconds; 0: it is not over
};

}  // namespace headrace
