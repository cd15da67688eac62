// From named ops to op records: shapes are checked, weights packed, conversions to bytes placed.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "model.h"

namespace headrace {

namespace {

void require(bool holds, const std::string& what) {
  if (!holds) throw std::invalid_argument(what);
}

CacheShape cache_shape(const ModelShape& shape, const Kernels& kernels, bool exact) {
  require(shape.blocks > 0 && shape.block_size > 0 && shape.layers > 0 && shape.kv_heads > 0 && shape.head_size > 0,
          "kv: blocks, block_size, layers, kv_heads and head_size must be at least 1");
  require(shape.blocks < (1u << 31) / shape.block_size, "kv: blocks · block_size must be under 2^31");
  require(shape.head_size <= kMaximumHead, "head_size must be at most 1024");
  Entry entry = exact ? Entry::Float32 : kernels.codes ? Entry::Codes16 : Entry::Float16;
  if (shape.bytes) entry = Entry::Codes8;
  return {entry, shape.block_size, shape.head_size, shape.kv_heads};
}

bool is_float(Format format) { return size_of(format).values == 1; }

bool all_brains(const LinearOp& op) {
  return std::all_of(op.parts.begin(), op.parts.end(), [](const LinearPart& part) { return part.weight->brains; });
}

// Whether panel i of the first part and panel i of the second make 16 gated columns.
bool two_halves(const LinearOp& op) {
  if (op.parts.size() != 2 || !op.bias.empty() || !all_brains(op)) return false;
  const Weight &gate = *op.parts[0].weight, &up = *op.parts[1].weight;
  const bool alike = gate.packed ? up.packed && gate.kind == up.kind : gate.format == up.format;
  return alike && gate.rows == up.rows && gate.rows % kPanelRows == 0;
}

bool writes(const Op& op, const Buffer* buffer) {
  return std::visit(
      [&](const auto& record) {
        bool found = false;
        if constexpr (requires { record.out; }) found = record.out == buffer;
        if constexpr (requires { record.residual; }) found = found || record.residual == buffer;
        if constexpr (requires { record.qkv; }) found = found || record.qkv == buffer;
        return found;
      },
      op);
}

bool reads(const Op& op, const Buffer* buffer) {
  return std::visit(
      [&](const auto& record) {
        bool found = false;
        if constexpr (std::is_same_v<decltype(record), const AddEmbeddingOp&>) found = record.out == buffer;
        if constexpr (requires { record.source; }) found = record.source == buffer;
        if constexpr (requires { record.residual; }) found = found || record.residual == buffer;
        if constexpr (requires { record.add; }) found = found || record.add == buffer;
        if constexpr (requires { record.accumulate; }) found = found || (record.accumulate && record.out == buffer);
        if constexpr (requires { record.buffer; }) found = found || record.buffer == buffer;
        if constexpr (requires { record.qkv; }) found = found || record.qkv == buffer;
        return found;
      },
      op);
}

}  // namespace

void Buffer::grow(std::size_t rows) {
  floats.grow(product(product(rows, width), sizeof(float)));
  if (bytes) {
    const std::size_t whole = (rows + kTileRows - 1) / kTileRows * kTileRows;
    codes.grow(product(whole, kPlanes * width));
    brains.grow(product(whole, 2 * width));
    if (halves_read) halves.grow(product(whole, 4 * width));
    blocks.grow(product(product(whole, width / kBlock), sizeof(ActivationBlock)));
  }
}

Model::Model(const ModelShape& shape, const Kernels& kernels, bool exact, int threads, std::size_t tile_crossover)
    : shape_(shape),
      kernels_(kernels),
      exact_(exact || !kernels.integer),
      tile_crossover_(exact_ || !kernels.tile_panels ? kTileRows + 1 : tile_crossover),
      cache_shape_(cache_shape(shape, kernels, exact_)),
      cache_(product(product(shape.blocks, shape.layers), cache_shape_.block_bytes())),
      scratch_floats_(kFloatScratch),
      team_(threads) {}

std::size_t Model::add_buffer(std::size_t width) {
  require(width > 0 && width < (1u << 28), "a buffer's width must be 1 to 2^28");
  buffers_.emplace_back().width = width;
  return buffers_.size() - 1;
}

std::size_t Model::add_weight(Format format, std::size_t rows, std::size_t columns, const std::uint8_t* data) {
  require(rows > 0 && columns > 0, "a weight must have at least one row and column");
  Weight& weight = weights_.emplace_back();
  weight.format = format;
  weight.rows = rows;
  weight.columns = columns;
  weight.data = data;
  return weights_.size() - 1;
}

Buffer& Model::buffer(std::size_t index) {
  require(index < buffers_.size(), "there is no buffer " + std::to_string(index));
  return buffers_[index];
}

Weight& Model::weight(std::size_t index) {
  require(index < weights_.size(), "there is no weight " + std::to_string(index));
  return weights_[index];
}

const float* Model::vector_of(std::size_t index, std::size_t width) {
  Weight& vector = weight(index);
  require(vector.rows == 1 && vector.columns == width,
          "a vector of " + std::to_string(vector.columns) + " values stands where " + std::to_string(width) + " are needed");
  vector.floats.resize(width);
  dequantise(vector.format, vector.data, width, vector.floats.data());
  return vector.floats.data();
}

void Model::embed(std::size_t out, std::size_t table, float scale) {
  require(weight(table).columns == buffer(out).width, "embed: the table's columns are not the buffer's width");
  vocabulary_ = vocabulary_ ? std::min(vocabulary_, weight(table).rows) : weight(table).rows;
  ops_.push_back(EmbedOp{&buffer(out), &weight(table), scale});
}

void Model::add_embedding(std::size_t out, std::size_t table, bool types, std::size_t offset) {
  const Weight& rows = weight(table);
  require(rows.columns == buffer(out).width, "add_embedding: the table's columns are not the buffer's width");
  require(offset < rows.rows, "add_embedding: the offset is past the table");
  std::size_t& known = types ? types_ : positions_;
  known = std::min(known, rows.rows - offset);
  scratch_floats_ = std::max(scratch_floats_, padded16(rows.columns));
  ops_.push_back(AddEmbeddingOp{&buffer(out), &rows, types, offset});
}

void Model::norm(std::size_t out, std::size_t residual, std::size_t weight, float epsilon, const std::size_t* add,
                 float add_scale, bool accumulate) {
  const std::size_t width = buffer(residual).width;
  require(buffer(out).width == width && (!add || buffer(*add).width == width), "norm: the buffers' widths differ");
  const Buffer* added = add ? &buffer(*add) : nullptr;
  require(!accumulate || out != residual, "norm: out and residual are one buffer");
  const float* values = vector_of(weight, width);
  keep_pooled(buffer(out), buffer(residual));
  ops_.push_back(NormOp{&buffer(out), &buffer(residual), added, add_scale, values, epsilon, accumulate, false, nullptr});
}

void Model::layer_norm(std::size_t out, std::size_t residual, std::size_t weight, const std::size_t* bias,
                       float epsilon, const std::size_t* add, float add_scale) {
  norm(out, residual, weight, epsilon, add, add_scale, false);
  auto& op = std::get<NormOp>(ops_.back());
  op.layer = true;
  op.bias = bias ? vector_of(*bias, op.out->width) : nullptr;
}

void Model::linear(std::size_t out, std::size_t source, const std::vector<std::size_t>& weights,
                   const std::vector<std::size_t>& biases) {
  require(biases.empty() || biases.size() == weights.size(), "linear: a bias for every weight, or none");
  std::vector<float> bias;
  for (std::size_t i = 0; i < biases.size(); ++i) {
    const std::size_t rows = weight(weights[i]).rows;
    const float* values = vector_of(biases[i], rows);
    bias.insert(bias.end(), values, values + rows);
  }
  if (!bias.empty()) bias.resize(bias.size() + 2 * kPanelRows);  // tiles of it are read whole
  require(out != source, "linear: out and source are one buffer");
  keep_pooled(buffer(out), buffer(source));
  add_linear(buffer(out), buffer(source), weights, std::move(bias));
  AdaptOp adapt{&buffer(out), &buffer(source), {}};
  std::size_t column = 0;
  for (const std::size_t index : weights) {
    adapt.parts.push_back({index, column});
    column += weight(index).rows;
    adaptable_.insert(index);
  }
  ops_.push_back(std::move(adapt));
}

void Model::add_linear(Buffer& out, Buffer& source, const std::vector<std::size_t>& weights, std::vector<float> bias) {
  LinearOp op{&out, &source, {}, std::move(bias)};
  std::size_t column = 0;
  bool bytes = false;
  for (const std::size_t index : weights) {
    Weight& part = weight(index);
    require(part.columns == source.width, "linear: a weight's columns are not the source's width");
    pack(part);
    part.brains = kernels_.brain_panels && !exact_ && (part.packed || (is_float(part.format) && part.columns % kBlock == 0));
    part.halves = part.brains && part.format == Format::BF16;
    bytes = bytes || part.packed || part.brains;
    source.codes_read = source.codes_read || part.packed;
    source.halves_read = source.halves_read || part.halves;
    op.parts.push_back({&part, column});
    column += part.rows;
  }
  require(column == out.width, "linear: the weights' rows are not the output's width");
  if (bytes) {
    have_bytes(source);
    if (kernels_.tile_panels) scratch_floats_ = std::max(scratch_floats_, kTileScratch);
    if (kernels_.brain_panels) scratch_floats_ = std::max(scratch_floats_, kBrainScratch);
  }
  ops_.push_back(std::move(op));
}

void Model::pack(Weight& weight) {
  if (exact_ || weight.packed || !panel_kind(weight.format, &weight.kind)) return;
  if (!scales_fit(weight.format, weight.data, weight.rows, weight.columns)) return;
  const std::size_t panels = weight.panels();
  const std::size_t bytes = weight.columns / kBlock * static_cast<std::size_t>(panel_block_bytes(weight.kind));
  std::uint8_t* packed = packed_.take(product(panels, bytes));
  const auto members = static_cast<std::size_t>(team_.size());
  team_.run([&](int member) {
    for (std::size_t i = static_cast<std::size_t>(member); i < panels; i += members) {
      pack_panel(weight.format, weight.data, weight.rows, weight.columns, i, packed + i * bytes);
    }
  });
  weight.packed = packed;
}

// Make the last op that writes `source` write its bytes too, or add an op that does.
void Model::have_bytes(Buffer& source) {
  source.bytes = true;
  for (auto op = ops_.rbegin(); op != ops_.rend(); ++op) {
    if (auto* conversion = std::get_if<QuantiseOp>(&*op); conversion && conversion->buffer == &source) return;
    if (!writes(*op, &source)) continue;
    bool* flag = nullptr;
    std::visit(
        [&](auto& record) {
          if constexpr (requires { record.quantise; }) flag = record.out == &source ? &record.quantise : nullptr;
        },
        *op);
    if (auto* attention = std::get_if<AttentionOp>(&*op)) {
      if (attention->heads / shape_.kv_heads * shape_.head_size % kBlock) flag = nullptr;
    }
    if (!flag) break;
    *flag = true;
    return;
  }
  ops_.push_back(QuantiseOp{&source});
}

void Model::check_heads(const Buffer& qkv, std::size_t layer, std::size_t heads) const {
  require(layer < shape_.layers, "there is no layer " + std::to_string(layer));
  require(heads > 0 && heads % shape_.kv_heads == 0, "heads must be a multiple of kv_heads");
  require(heads <= 65536 && qkv.width == (heads + 2 * shape_.kv_heads) * shape_.head_size,
          "qkv: the width is not (heads + 2 · kv_heads) · head_size");
}

void Model::norm_heads(std::size_t qkv, std::size_t heads, std::size_t query, std::size_t key, float epsilon,
                       bool whole) {
  check_heads(buffer(qkv), 0, heads);
  const std::size_t size = shape_.head_size, query_width = whole ? heads * size : size;
  const float* query_weight = vector_of(query, query_width);
  const float* key_weight = vector_of(key, whole ? shape_.kv_heads * size : size);
  ops_.push_back(NormHeadsOp{&buffer(qkv), heads, query_weight, key_weight, epsilon, whole});
}

void Model::rotate_and_write(std::size_t qkv, std::size_t layer, std::size_t heads, std::vector<double> frequencies,
                             bool interleaved, double scale) {
  check_heads(buffer(qkv), layer, heads);
  require(2 * frequencies.size() <= shape_.head_size, "rope: more frequencies than pairs in a head");
  const Angles* angles = nullptr;
  for (const Angles& known : angles_) {
    const bool same = known.frequencies == frequencies && known.interleaved == interleaved && known.scale == scale;
    if (same) angles = &known;
  }
  if (!angles) {
    Angles& added = angles_.emplace_back();
    added.frequencies = std::move(frequencies);
    added.interleaved = interleaved;
    added.scale = scale;
    ops_.push_back(AnglesOp{&added});
    angles = &added;
  }
  ops_.push_back(RotateOp{&buffer(qkv), layer, heads, angles});
}

void Model::attention(std::size_t out, std::size_t qkv, std::size_t layer, std::size_t heads, float scale,
                      std::size_t window, float cap, const std::size_t* sinks, bool causal) {
  check_heads(buffer(qkv), layer, heads);
  require(buffer(out).width == heads * shape_.head_size, "attention: out's width is not heads · head_size");
  const std::size_t group = heads / shape_.kv_heads;
  group_ = std::max(group_, group);
  const std::size_t queries = std::max(kTileQueries, group);
  const std::size_t states = 2 * attention_state(cache_shape_, queries);
  scratch_floats_ = std::max(scratch_floats_, padded16(attention_scratch(cache_shape_, queries) + states));
  if (kernels_.attention_brains) {
    const std::size_t many = std::max(brain_queries(cache_shape_), group);
    scratch_floats_ = std::max(scratch_floats_, attention_brain_scratch(cache_shape_, many));
  }
  const float* scores = sinks ? vector_of(*sinks, heads) : nullptr;
  ops_.push_back(AttentionOp{&buffer(out), &buffer(qkv), layer, heads, scale, window, cap, scores, causal});
}

void Model::gate_multiply(std::size_t out, std::size_t source, Gate kind) {
  require(buffer(source).width == 2 * buffer(out).width, "gate_multiply: the source is not twice as wide as out");
  ops_.push_back(GateOp{&buffer(out), &buffer(source), kind});
}

void Model::activate(std::size_t out, std::size_t source, Gate kind) {
  require(buffer(source).width == buffer(out).width, "activate: the buffers' widths differ");
  keep_pooled(buffer(out), buffer(source));
  ops_.push_back(ActivateOp{&buffer(out), &buffer(source), kind});
}

void Model::pool(std::size_t out, std::size_t source, Pooling kind) {
  require(buffer(source).width == buffer(out).width, "pool: the buffers' widths differ");
  require(!buffer(source).pooled && out != source, "pool: the source has no row a token");
  begin_pooled(buffer(out));
  ops_.push_back(PoolOp{&buffer(out), &buffer(source), kind});
}

// What is pooled stays so: a buffer has a row a token or a row a sequence through the whole program.
void Model::begin_pooled(Buffer& out) {
  const bool before = std::any_of(ops_.begin(), ops_.end(), [&](const Op& op) { return writes(op, &out); });
  require(out.pooled || !before, "a buffer has a row a token here and a row a sequence there");
  out.pooled = true;
}

void Model::keep_pooled(Buffer& out, const Buffer& source) {
  if (source.pooled) begin_pooled(out);
  require(out.pooled == source.pooled, "an op reads a row a token and writes a row a sequence");
}

void Model::result(std::size_t source) {
  require(!logits_, "a program gives one thing");
  require(buffer(source).pooled, "result: the source has no row a sequence");
  require(buffer(source).width == shape_.vocabulary, "result: the source's width is not the program's");
  logits_ = &buffer(source);
  fuse_gates();
}

void Model::logits(std::size_t source, std::size_t weight_index, float scale, float cap) {
  require(!logits_, "a program gives one thing");
  require(weight(weight_index).rows == shape_.vocabulary, "logits: the weight's rows are not the vocabulary");
  sampled_ = &buffers_[add_buffer(buffer(source).width)];
  logits_ = &buffers_[add_buffer(shape_.vocabulary)];
  ops_.push_back(GatherOp{sampled_, &buffer(source)});
  add_linear(*logits_, *sampled_, {weight_index}, {});
  if (scale != 1 || cap != 0) ops_.push_back(CapOp{logits_, scale, cap});
  ops_.push_back(SampleOp{logits_});
  fuse_gates();
  fuse_rotations();
}

// Let each linear that a gate alone reads, and whose gate packed linears alone read, do the gate's work.
void Model::fuse_gates() {
  for (std::size_t i = 2; i < ops_.size(); ++i) {
    auto* gate = std::get_if<GateOp>(&ops_[i]);
    auto* linear = std::get_if<LinearOp>(&ops_[i - 2]);  // between them stands what adapters change
    if (!gate || !linear || linear->out != gate->source || !gate->quantise || !two_halves(*linear)) continue;
    if (linear->source == gate->out) continue;  // its rows would be overwritten while they are read
    const bool only = std::all_of(ops_.begin(), ops_.end(), [&](const Op& op) {
      const auto* reader = std::get_if<LinearOp>(&op);
      const bool brains = (reader && all_brains(*reader)) || std::get_if<AdaptOp>(&op);
      return (!reads(op, gate->out) || brains) && (!reads(op, gate->source) || std::get_if<GateOp>(&op));
    });
    if (!only) continue;
    linear->gated = gate->out;
    linear->gate = gate->kind;
    gate->fused = true;
  }
}

// Let attention rotate what stands right before it for rows that nobody else attends to.
void Model::fuse_rotations() {
  for (std::size_t i = 1; i < ops_.size(); ++i) {
    auto* rotation = std::get_if<RotateOp>(&ops_[i - 1]);
    auto* attention = std::get_if<AttentionOp>(&ops_[i]);
    if (!rotation || !attention) continue;
    const bool same = rotation->qkv == attention->qkv && rotation->layer == attention->layer;
    if (!same || rotation->heads != attention->heads) continue;
    rotation->fused = true;
    attention->rotation = *rotation;
  }
}

// What computes attention, and how KV lies.
std::string Model::attention_name() const {
  const std::string vectors = kernels_.vectors;
  const bool brains = kernels_.attention_brains && !exact_ && widens(cache_shape_);
  const std::string codes = (brains ? "amx-bf16 for prompts, else " : "") + (kernels_.codes ? kernels_.codes : vectors);
  switch (cache_shape_.entry) {
    case Entry::Float32: return vectors + ", float32 KV";
    case Entry::Float16: return vectors + ", float16 KV";
    case Entry::Codes16: return codes + ", 16-bit KV";
    case Entry::Codes8: return (exact_ ? vectors : codes) + ", int8 KV";
  }
  return vectors;
}

// What multiplies by a weight; `given`: whether rows of given tokens are among those that it meets.
std::string Model::product_name(const Weight& weight, bool given) const {
  std::string name = given && weight.brains ? "amx-bf16 for prompts, " : "";
  if (weight.packed && uses_tiles(weight)) name += "amx-int8 from " + std::to_string(tile_crossover_) + " rows on, ";
  if (!name.empty()) name += "else ";
  if (weight.halves) return name + "amx-bf16 with activations in two halves";
  return name + (weight.packed ? kernels_.integer : kernels_.vectors + std::string("-float32"));
}

std::map<std::string, std::string> Model::kernel_names() const {
  std::map<std::string, std::string> names = {{"attention", attention_name()}, {"norm", kernels_.vectors}};
  for (const Op& op : ops_) {
    const auto* linear = std::get_if<LinearOp>(&op);
    if (!linear) continue;
    const bool logits = linear->out == logits_;
    for (const LinearPart& part : linear->parts) {
      const std::string format = size_of(part.weight->format).name;
      names[(logits ? "logits " : "linear ") + format] = product_name(*part.weight, by_token(*linear->source));
    }
  }
  return names;
}

}  // namespace headrace
