// Attention: rows taken together, what a task is, and who rotates a row.
#include <algorithm>
#include <numeric>

#include "model.h"

namespace headrace {

namespace {

constexpr std::size_t kEnoughTasks = 4;  // of attention, a member: more need no splitting

}  // namespace

void Model::plan_attention(const Batch& batch) {
  step_.tiles.clear();
  const std::size_t few = std::max<std::size_t>(1, kTileQueries / group_), many = brain_rows();
  std::size_t longest = 0;
  for (std::size_t i = 0; i < batch.sequences(); ++i) {
    const auto last = static_cast<std::size_t>(batch.row_starts[i + 1]);
    for (auto begin = static_cast<std::size_t>(batch.row_starts[i]); begin < last;) {
      const bool given = many && step_.given[begin];
      std::size_t end = begin + 1;
      while (end < std::min(begin + (given ? many : few), last) && (!many || step_.given[end] == given)) ++end;
      step_.tiles.push_back({i, begin, end, given});
      if (!given) longest = std::max(longest, static_cast<std::size_t>(batch.context_lengths[i]));
      begin = end;
    }
  }
  SplitAttention& split = step_.split;
  const std::size_t whole = step_.tiles.size() * shape_.kv_heads;
  split.parts = 1;
  if (team_.size() == 1 || whole >= kEnoughTasks * static_cast<std::size_t>(team_.size())) return;
  split.parts = std::max<std::size_t>(1, chunks(longest, cache_shape_.span()));
  const std::size_t state = attention_state(cache_shape_, few * group_) * sizeof(float);
  split.states.grow(product(product(whole, split.parts), state));
  while (split.finished.size() < whole) split.finished.emplace_back();
}

void Model::plan_lone(const Batch& batch) {
  step_.lone.assign(batch.rows(), 0);
  if (step_.split.parts > 1) return;  // several tasks read a row's queries
  for (RowTile& tile : step_.tiles) {
    tile.lone = !tile.given && batch.row_starts[tile.sequence + 1] - batch.row_starts[tile.sequence] == 1;
    if (tile.lone) step_.lone[tile.begin] = 1;
  }
}

// Rows of given tokens that attention takes together, so many that they fit and every member has several
// tasks; 0: it takes them as it takes chosen ones.
std::size_t Model::brain_rows() const {
  if (!kernels_.attention_brains || exact_ || !widens(cache_shape_)) return 0;
  const auto given = static_cast<std::size_t>(std::count(step_.given.begin(), step_.given.end(), 1));
  const std::size_t tasks = 2 * kEnoughTasks * static_cast<std::size_t>(team_.size());
  const std::size_t whole = 32 / std::gcd(group_, std::size_t{32});  // rows that fill tiles
  const std::size_t share = std::max<std::size_t>(1, chunks(given * shape_.kv_heads / tasks, whole)) * whole;
  return std::min(share, std::max<std::size_t>(1, brain_queries(cache_shape_) / group_));
}

void Model::rotate(const RotateOp& op, std::size_t row, std::size_t first, std::size_t last) const {
  const std::size_t pairs = op.angles->frequencies.size();
  const auto slot = static_cast<std::size_t>(step_.batch->slots[row]);
  const float* cosines = op.angles->table.as<float>() + row * 2 * pairs;
  kernels_.rotate_and_write({.qkv = op.qkv->row(row),
                             .cosines = cosines,
                             .sines = cosines + pairs,
                             .rotation = {static_cast<int>(pairs), op.angles->interleaved},
                             .heads = op.heads,
                             .first = first,
                             .last = last,
                             .cache = cache_shape_,
                             .block = layer_cache(op.layer) + slot / shape_.block_size * cache_shape_.block_bytes(),
                             .offset = slot % shape_.block_size});
}

void Model::execute(const RotateOp& op, std::size_t first, std::size_t last, int) {
  for (std::size_t row = first; row < last; ++row) {
    if (!op.fused || !step_.lone[row]) rotate(op, row, 0, shape_.kv_heads);
  }
}

AttentionTile Model::attention_tile(const AttentionOp& op, const RowTile& tile, std::size_t head, int member) const {
  const Batch& batch = *step_.batch;
  const auto last = static_cast<std::size_t>(batch.positions[tile.end - 1]);
  const auto length = static_cast<std::size_t>(batch.context_lengths[tile.sequence]);
  const std::size_t group = op.heads / shape_.kv_heads, column = head * group * shape_.head_size;
  return {.query = op.qkv->row(tile.begin) + column,
          .query_stride = op.qkv->width,
          .out = op.out->row(tile.begin) + column,
          .out_stride = op.out->width,
          .positions = batch.positions.data() + tile.begin,
          .rows = static_cast<int>(tile.end - tile.begin),
          .group = static_cast<int>(group),
          .scale = op.scale,
          .cap = op.cap,
          .window = op.window,
          .causal = op.causal,
          .exact = exact_,
          .context = op.causal ? last + 1 : length,
          .sinks = op.sinks ? op.sinks + head * group : nullptr,
          .cache = cache_shape_,
          .layer = layer_cache(op.layer),
          .kv_head = head,
          .table = batch.block_tables.data() + tile.sequence * batch.widest,
          .scratch = scratch_of(member)};
}

// All parts of a tile's context, one after another.
void Model::attend_whole(const AttentionTile& tile, int member) {
  const std::size_t context = tile.context, size = cache_shape_.span();
  const std::size_t state = attention_state(cache_shape_, tile.queries());
  float* whole = scratch_of(member) + attention_scratch(cache_shape_, tile.queries());
  kernels_.attention_prepare(tile);
  kernels_.attention_part(tile, 0, std::min(size, context), whole);
  for (std::size_t begin = size; begin < context; begin += size) {
    kernels_.attention_part(tile, begin, std::min(begin + size, context), whole + state);
    kernels_.attention_merge(tile, whole, whole + state);
  }
  kernels_.attention_finish(tile, whole);
}

// One part of tile `index`. True where it was the last to finish, and the tile is now whole.
bool Model::attend_part(const AttentionTile& tile, std::size_t index, std::size_t part) {
  const std::size_t context = tile.context, size = cache_shape_.span(), parts = chunks(context, size);
  if (part >= parts) return false;
  const std::size_t state = attention_state(cache_shape_, tile.queries());
  const std::size_t widest = attention_state(cache_shape_, std::max(kTileQueries / group_, std::size_t{1}) * group_);
  float* states = step_.split.states.as<float>() + index * step_.split.parts * widest;
  kernels_.attention_prepare(tile);
  kernels_.attention_part(tile, part * size, std::min((part + 1) * size, context), states + part * state);
  std::atomic<std::size_t>& finished = step_.split.finished[index];
  if (finished.fetch_add(1, std::memory_order_acq_rel) + 1 < parts) return false;
  finished.store(0, std::memory_order_relaxed);
  for (std::size_t i = 1; i < parts; ++i) kernels_.attention_merge(tile, states, states + i * state);
  kernels_.attention_finish(tile, states);
  return true;
}

// The last tiles see the most: they go first, so that no member is left with one at the end.
const RowTile& Model::tile_rows(std::size_t index) const {
  return step_.tiles[step_.tiles.size() - 1 - index / shape_.kv_heads];
}

void Model::execute(const AttentionOp& op, std::size_t first, std::size_t last, int member) {
  const std::size_t parts = step_.split.parts, width = op.heads / shape_.kv_heads * shape_.head_size;
  for (std::size_t task = first; task < last; ++task) {
    const std::size_t index = task / parts, head = index % shape_.kv_heads;
    const RowTile& rows = tile_rows(index);
    if (op.rotation && rows.lone) rotate(*op.rotation, rows.begin, head, head + 1);
    AttentionTile tile = attention_tile(op, rows, head, member);
    const std::size_t later = index + 1 < step_.tiles.size() * shape_.kv_heads ? index + 1 : index;
    const AttentionTile next = attention_tile(op, tile_rows(later), later % shape_.kv_heads, member);
    if (parts == 1 && later != index && !tile_rows(later).given) tile.next = &next;
    if (rows.given) {
      if (task % parts) continue;
      kernels_.attention_brains(tile);
    } else if (parts == 1) {
      attend_whole(tile, member);
    } else if (!attend_part(tile, index, task % parts)) {
      continue;
    }
    if (!op.quantise) continue;
    for (std::size_t row = rows.begin; row < rows.end; ++row) {
      encode(*op.out, row, head * width, (head + 1) * width);
    }
  }
}

}  // namespace headrace
