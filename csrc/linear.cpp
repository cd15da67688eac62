// Linears: what a task is, and which kernel its rows meet.
//
// Rows of given tokens (a prompt's) are multiplied in bfloat16 where the level has tiles for it, rows
// of chosen tokens in integers. Which a row is depends on its request alone, never on the other rows
// of the step; so does every kernel's order of summation.
#include <algorithm>

#include "model.h"

namespace headrace {

namespace {

constexpr std::size_t kUnitRows = 32;                  // of a weight, that a task takes
constexpr std::size_t kActivationBytes = 1536 * 1024;  // of rows taken together: they stay in the L2 cache
constexpr std::size_t kLeastRows = 128;                // taken together, so that unpacking weights pays
constexpr std::size_t kPanelBytes = 24 * 1024;         // of packed weights that meet a tile of rows together

static_assert(kUnitRows == 2 * kPanelRows && kUnitRows == kFloatRows);

std::size_t units(const Weight& weight) { return chunks(weight.rows, kUnitRows); }

std::size_t units(const LinearOp& op, std::size_t parts) {
  std::size_t all = 0;
  for (std::size_t i = 0; i < parts; ++i) all += units(*op.parts[i].weight);
  return all;
}

// Rows of a linear's source that a task takes: equal shares, multiples of two tiles, and where there are
// enough, a like number for each member: rows that stay with one need not travel between caches.
std::size_t rows_together(std::size_t rows, std::size_t width, std::size_t members) {
  const std::size_t most = std::clamp(kActivationBytes / (2 * width), kLeastRows, kBrainRows) / kUnitRows * kUnitRows;
  std::size_t count = chunks(rows, most);
  count = rows / kLeastRows < members ? std::max(count, rows / kLeastRows) : chunks(count, members) * members;
  return std::max(kUnitRows, chunks(chunks(rows, std::max<std::size_t>(count, 1)), kUnitRows) * kUnitRows);
}

// Panel `i` of a job: a weight's rows from `at` on.
void set_panel(BrainPanels& job, int i, const Weight& weight, std::size_t at) {
  if (weight.packed) {
    job.panels[i] = weight.packed + at / kPanelRows * weight.panel_bytes();
    return;
  }
  const std::size_t first = std::min(at, weight.rows);
  job.panels[i] = weight.data + first * weight.stride();
  job.floats.format = weight.format;
  job.floats.stride = weight.stride();
  job.floats.rows[i] = static_cast<int>(std::min<std::size_t>(kPanelRows, weight.rows - first));
}

}  // namespace

// What a gate multiplies has its turn with the gate.
std::size_t Model::turns(const LinearOp& op) const { return op.gated && gates_in_linears() ? 1 : op.parts.size(); }

std::size_t Model::linear_tasks(const LinearOp& op) const {
  const std::size_t rows = rows_of(*op.source);
  const auto members = static_cast<std::size_t>(team_.size());
  return rows ? units(op, turns(op)) * chunks(rows, rows_together(rows, op.source->width, members)) : 0;
}

void Model::execute(const LinearOp& op, std::size_t first, std::size_t last, int member) {
  const auto members = static_cast<std::size_t>(team_.size());
  const std::size_t rows = rows_of(*op.source), together = rows_together(rows, op.source->width, members);
  const std::size_t across = units(op, turns(op));
  for (std::size_t task = first; task < last;) {
    std::size_t unit = task % across;
    const LinearPart* part = op.parts.data();
    for (; unit >= units(*part->weight); ++part) unit -= units(*part->weight);
    const Weight& weight = *part->weight;
    const std::size_t begin = task / across * together, end = std::min(begin + together, rows);
    // Neighbouring panels, as many as stay in the L1 cache, share each tile of rows; tiles see to it themselves.
    const std::size_t panel_bytes = std::max<std::size_t>(1, weight.panel_bytes());
    const std::size_t close = kernels_.tile_panels ? across : std::max<std::size_t>(1, kPanelBytes / 2 / panel_bytes);
    const std::size_t count = std::min({last - task, units(weight) - unit, close});
    const Columns columns = {part, unit * kUnitRows, std::min((unit + count) * kUnitRows, weight.rows)};
    const auto multiply = [&](RowRange range, bool given) {
      const auto multiply_by = [&](const Columns& these) {
        if (weight.packed) return in_integers(op, these, range, member);
        weight.halves ? in_halves(op, these, range, member) : in_floats(op, these, range, member);
      };
      if (given && weight.brains) return in_brains(op, columns, range, member);
      multiply_by(columns);
      if (turns(op) == op.parts.size()) return;
      multiply_by({columns.part + 1, columns.begin, columns.end});
      gate(op, columns, range);
    };
    if (!by_token(*op.source)) {
      multiply({begin, end}, false);
    } else {
      for (const RowRun& run : step_.runs) {
        const RowRange shared = {std::max(begin, run.rows.begin), std::min(end, run.rows.end)};
        if (shared.begin < shared.end) multiply(shared, run.given);
      }
    }
    task += count;
  }
}

void Model::in_brains(const LinearOp& op, const Columns& columns, RowRange rows, int member) const {
  if (op.gated && gates_in_linears()) return in_gated_brains(op, columns, rows, member);
  const Weight& weight = *columns.part->weight;
  for (std::size_t at = columns.begin; at < columns.end; at += kUnitRows) {
    const std::size_t column = columns.part->column + at;
    BrainPanels job = {.kind = weight.kind,
                       .panels = {},
                       .floats = {},
                       .source = op.source->activations(),
                       .begin = rows.begin,
                       .end = rows.end,
                       .out = op.out->floats.as<float>() + column,
                       .stride = op.out->width,
                       .cols = static_cast<int>(std::min(kUnitRows, columns.end - at)),
                       .bias = op.bias.empty() ? nullptr : op.bias.data() + column,
                       .gated = {}};
    set_panel(job, 0, weight, at);
    set_panel(job, 1, weight, at + kPanelRows);
    kernels_.brain_panels(job, scratch_of(member));
  }
}

// A gate's columns together with the same columns of what it multiplies.
void Model::in_gated_brains(const LinearOp& op, const Columns& columns, RowRange rows, int member) const {
  const Weight &gate = *op.parts[0].weight, &up = *op.parts[1].weight;
  for (std::size_t at = columns.begin; at < columns.end; at += kPanelRows) {
    BrainPanels job = {.kind = gate.kind,
                       .panels = {},
                       .floats = {},
                       .source = op.source->activations(),
                       .begin = rows.begin,
                       .end = rows.end,
                       .out = nullptr,
                       .stride = 0,
                       .cols = 2 * kPanelRows,
                       .bias = nullptr,
                       .gated = {op.gated->activations(), at, op.gate}};
    set_panel(job, 0, gate, at);
    set_panel(job, 1, up, at);
    kernels_.brain_panels(job, scratch_of(member));
  }
}

// Whoever multiplied the columns gates them: they are in its cache.
void Model::gate(const LinearOp& op, const Columns& columns, RowRange rows) const {
  for (std::size_t row = rows.begin; row < rows.end; ++row) {
    const float* gate = op.out->row(row) + columns.begin;
    kernels_.gate_multiply(op.gated->row(row) + columns.begin, gate, gate + op.parts[1].column, op.gate,
                           columns.end - columns.begin);
    encode(*op.gated, row, columns.begin, columns.end);
  }
}

void Model::in_integers(const LinearOp& op, const Columns& columns, RowRange rows, int member) const {
  const Weight& weight = *columns.part->weight;
  const auto job = [&](RowRange range) -> IntegerPanels {
    return {weight.kind, weight.packed + columns.begin / kPanelRows * weight.panel_bytes(),
            op.source->activations(), range.begin, range.end,
            op.out->floats.as<float>() + columns.part->column + columns.begin, op.out->width,
            columns.end - columns.begin};
  };
  // Whole tiles, and what is left where it is enough for one, are the level's tiles' work.
  RowRange tiles = {std::min(chunks(rows.begin, kTileRows) * kTileRows, rows.end), rows.end};
  const std::size_t rest = (tiles.end - tiles.begin) % kTileRows;
  if (rest < tile_crossover_) tiles.end -= rest;
  if (!uses_tiles(weight)) tiles.end = tiles.begin;
  if (rows.begin < tiles.begin) kernels_.integer_panels(job({rows.begin, tiles.begin}));
  if (tiles.begin < tiles.end) kernels_.tile_panels(job(tiles), scratch_of(member));
  if (tiles.end < rows.end) kernels_.integer_panels(job({tiles.end, rows.end}));
  add_bias(op, columns, rows);
}

void Model::in_halves(const LinearOp& op, const Columns& columns, RowRange rows, int member) const {
  const Weight& weight = *columns.part->weight;
  for (std::size_t at = columns.begin; at < columns.end; at += kUnitRows) {
    kernels_.half_panels({weight.data + at * weight.stride(), weight.stride(), op.source->activations(), rows.begin, rows.end,
                          op.out->floats.as<float>() + columns.part->column + at, op.out->width,
                          static_cast<int>(std::min(kUnitRows, columns.end - at))}, scratch_of(member));
  }
  add_bias(op, columns, rows);
}

void Model::in_floats(const LinearOp& op, const Columns& columns, RowRange rows, int member) const {
  const Weight& weight = *columns.part->weight;
  for (std::size_t at = columns.begin; at < columns.end; at += kFloatRows) {
    kernels_.float_panel({weight.format, weight.data + at * weight.stride(), weight.stride(), weight.columns,
                          op.source->row(0), op.source->width, rows.begin, rows.end,
                          op.out->floats.as<float>() + columns.part->column + at, op.out->width,
                          static_cast<int>(std::min<std::size_t>(kFloatRows, columns.end - at)), scratch_of(member)});
  }
  add_bias(op, columns, rows);
}

void Model::add_bias(const LinearOp& op, const Columns& columns, RowRange rows) const {
  if (op.bias.empty()) return;
  const std::size_t column = columns.part->column + columns.begin;
  for (std::size_t row = rows.begin; row < rows.end; ++row) {
    kernels_.add(op.out->row(row) + column, op.bias.data() + column, columns.end - columns.begin);
  }
}

}  // namespace headrace
