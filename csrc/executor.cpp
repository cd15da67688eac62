// One step: every member of the team walks the ops together and takes tasks of each until none is left.
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "model.h"

namespace headrace {

namespace {

constexpr std::size_t kChunkColumns = 512;  // of a row, where a row is shared out

// Tasks [first, last), of which each is a chunk of a row's columns: `work(row, begin, end)`.
template <typename Work>
void each_chunk(std::size_t width, std::size_t first, std::size_t last, Work&& work) {
  const std::size_t across = chunks(width, kChunkColumns);
  for (std::size_t task = first; task < last; ++task) {
    const std::size_t column = task % across * kChunkColumns;
    work(task / across, column, std::min(column + kChunkColumns, width));
  }
}

}  // namespace

void Model::encode(const Buffer& buffer, std::size_t row, std::size_t first, std::size_t last) const {
  const bool given = by_token(buffer) && step_.given[row];
  const auto to = [&](auto quantise) {
    quantise(buffer.row(row) + first, (last - first) / kBlock, buffer.activations(), row, first / kBlock);
  };
  if (given) return to(kernels_.round_to_brain);
  if (buffer.codes_read) to(kernels_.quantise);
  if (buffer.halves_read) to(kernels_.halve);
}

const float* Model::logits_of(std::size_t sample) const { return logits_->row(sample); }

std::size_t Model::rows_of(const Buffer& buffer) const {
  if (buffer.pooled) return step_.batch->sequences();
  return by_token(buffer) ? step_.batch->rows() : step_.batch->samples();
}

std::size_t Model::results() const { return rows_of(*logits_); }

std::uint8_t* Model::layer_cache(std::size_t layer) const {
  return cache_.data() + layer * shape_.blocks * cache_shape_.block_bytes();
}

BatchLimits Model::limits() const {
  return {vocabulary_ ? vocabulary_ : shape_.vocabulary, shape_.vocabulary, positions_, types_, logits_->pooled,
          shape_.blocks, shape_.block_size};
}

void Model::prepare(const Batch& batch, bool draws) {
  if (!logits_) throw std::invalid_argument("the program gives nothing");
  check(batch, limits());
  step_.batch = &batch;
  step_.draws = draws;
  if (batch.rows() > capacity_) {
    for (Buffer& buffer : buffers_) {
      if (buffer.pooled || by_token(buffer)) buffer.grow(batch.rows());
    }
    for (Angles& angles : angles_) {
      angles.table.grow(product(product(batch.rows(), 2 * sizeof(float)), angles.frequencies.size()));
    }
    capacity_ = batch.rows();
  }
  if (sampled_ && batch.samples() > sample_capacity_) {
    sampled_->grow(batch.samples());
    logits_->grow(batch.samples());
    sample_capacity_ = batch.samples();
  }
  const auto members = static_cast<std::size_t>(team_.size());
  scratch_.grow(product(members * sizeof(float), scratch_floats_));
  const std::size_t choices = draws ? product(members, shape_.vocabulary) : 0;
  step_.candidates.grow(product(choices, sizeof(Candidate)));
  step_.edited.grow(product(choices, sizeof(float)));
  if (draws && !batch.open) prepare_choice(batch);
  plan_rows(batch);
  plan_attention(batch);
  plan_lone(batch);
  plan_adapters(batch);
  while (progress_.size() < ops_.size()) progress_.emplace_back();
  for (Progress& progress : progress_) {
    while (progress.shares.size() < members) progress.shares.emplace_back();
    for (Share& share : progress.shares) share.taken.store(0, std::memory_order_relaxed);
    progress.done.store(0, std::memory_order_relaxed);
  }
}

void Model::prepare_choice(const Batch& batch) {
  check_sampling(batch, limits());
  Chosen& chosen = step_.chosen;
  chosen.tokens.resize(batch.samples());
  chosen.logprobs.resize(batch.samples());
  chosen.ranked_tokens.resize(product(batch.samples(), batch.sampling.ranked));
  chosen.ranked_logprobs.resize(chosen.ranked_tokens.size());
}

void Model::plan_rows(const Batch& batch) {
  step_.given.assign(batch.rows(), 0);
  step_.runs.clear();
  const bool any = kernels_.brain_panels && !exact_ && !batch.given.empty();
  for (std::size_t i = 0; any && i < batch.sequences(); ++i) {
    for (auto row = static_cast<std::size_t>(batch.row_starts[i]); row < static_cast<std::size_t>(batch.row_starts[i + 1]); ++row) {
      step_.given[row] = batch.positions[row] < batch.given[i];
    }
  }
  for (std::size_t row = 0; row < batch.rows(); ++row) {
    const bool given = step_.given[row];
    if (step_.runs.empty() || step_.runs.back().given != given) step_.runs.push_back({{row, row}, given});
    step_.runs.back().rows.end = row + 1;
  }
}

float* Model::scratch_of(int member) const {
  return scratch_.as<float>() + static_cast<std::size_t>(member) * scratch_floats_;
}

void Model::launch(const Batch& batch, bool draws) {
  prepare(batch, draws);
  step_.settled.store(batch.open ? 0 : 1, std::memory_order_relaxed);
  step_.took.store(0, std::memory_order_relaxed);
  step_.began = std::chrono::steady_clock::now();
  if (batch.rows()) team_.start([this](int member) { work(member); });
}

void Model::choose() {
  try {
    prepare_choice(*step_.batch);
  } catch (...) {
    give_up();
    throw;
  }
  add_and_wake(step_.settled, 1, 1);
}

void Model::give_up() {
  step_.draws = false;
  add_and_wake(step_.settled, 1, 1);
}

Chosen Model::finish() {
  if (step_.batch->rows()) team_.join();
  step_.chosen.seconds = static_cast<double>(step_.took.load(std::memory_order_relaxed)) * 1e-9;
  return std::exchange(step_.chosen, {});
}

void Model::work(int member) {
  for (std::size_t i = 0; i < ops_.size(); ++i) execute(i, member);
  // Who comes here first has seen the end of the last op; the others may have been busy elsewhere.
  std::int64_t unknown = 0;
  const auto took = std::chrono::steady_clock::now() - step_.began;
  step_.took.compare_exchange_strong(unknown, std::chrono::nanoseconds(took).count(), std::memory_order_relaxed);
}

std::size_t Model::tasks(const Op& op) const {
  const std::size_t rows = step_.batch->rows();
  if (const auto* linear = std::get_if<LinearOp>(&op)) return linear_tasks(*linear);
  if (const auto* conversion = std::get_if<QuantiseOp>(&op)) {
    return rows_of(*conversion->buffer) * chunks(conversion->buffer->width, kChunkColumns);
  }
  if (const auto* adapt = std::get_if<AdaptOp>(&op)) return step_.adapted.size() * adapt->parts.size();
  if (const auto* gate = std::get_if<GateOp>(&op)) {
    return gate->fused && gates_in_linears() ? 0 : rows * chunks(gate->out->width, kChunkColumns);
  }
  if (const auto* active = std::get_if<ActivateOp>(&op)) {
    return rows_of(*active->out) * chunks(active->out->width, kChunkColumns);
  }
  if (const auto* norm = std::get_if<NormOp>(&op)) return rows_of(*norm->out);
  if (std::get_if<PoolOp>(&op)) return step_.batch->sequences();
  if (std::get_if<AttentionOp>(&op)) return step_.tiles.size() * shape_.kv_heads * step_.split.parts;
  if (std::get_if<GatherOp>(&op) || std::get_if<CapOp>(&op)) return step_.batch->samples();
  if (std::get_if<SampleOp>(&op)) return step_.draws ? step_.batch->samples() : 0;
  return rows;
}

void Model::execute(std::size_t index, int member) {
  const Op& op = ops_[index];
  if (std::holds_alternative<SampleOp>(op)) await(step_.settled, 1);
  Progress& progress = progress_[index];
  const auto count = static_cast<std::uint32_t>(tasks(op));
  const auto members = static_cast<std::uint32_t>(team_.size());
  // A member's own share first: its tasks lie beside each other, and what it reads of one leads to the next.
  for (std::uint32_t i = 0; i < members; ++i) {
    const std::uint32_t whose = (static_cast<std::uint32_t>(member) + i) % members;
    const auto bound = [&](std::uint64_t share) { return static_cast<std::uint32_t>(share * count / members); };
    const std::uint32_t begin = bound(whose), size = bound(whose + 1) - begin;
    std::atomic<std::uint32_t>& taken = progress.shares[whose].taken;
    for (std::uint32_t first = taken.load(std::memory_order_relaxed); first < size;) {
      // Half of what is left: long runs at first, and little to wait for at the end.
      const std::uint32_t last = first + (size - first + 1) / 2;
      if (!taken.compare_exchange_weak(first, last, std::memory_order_relaxed)) continue;
      std::visit([&](const auto& record) { execute(record, begin + first, begin + last, member); }, op);
      add_and_wake(progress.done, last - first, count);
      first = taken.load(std::memory_order_relaxed);
    }
  }
  await(progress.done, count);
}

void Model::execute(const EmbedOp& op, std::size_t first, std::size_t last, int) {
  const Weight& table = *op.table;
  for (std::size_t row = first; row < last; ++row) {
    const auto token = static_cast<std::size_t>(step_.batch->tokens[row]);
    dequantise(table.format, table.data + token * table.stride(), table.columns, op.out->row(row));
    if (op.scale == 1) continue;
    for (std::size_t i = 0; i < table.columns; ++i) op.out->row(row)[i] *= op.scale;
  }
}

void Model::execute(const AddEmbeddingOp& op, std::size_t first, std::size_t last, int member) {
  const Batch& batch = *step_.batch;
  for (std::size_t row = first; row < last; ++row) {
    const std::int32_t index = !op.types ? batch.positions[row] : batch.types.empty() ? 0 : batch.types[row];
    const std::uint8_t* at = op.table->data + (static_cast<std::size_t>(index) + op.offset) * op.table->stride();
    dequantise(op.table->format, at, op.table->columns, scratch_of(member));
    kernels_.add(op.out->row(row), scratch_of(member), op.table->columns);
  }
}

void Model::execute(const NormOp& op, std::size_t first, std::size_t last, int) {
  for (std::size_t row = first; row < last; ++row) {
    const float* add = op.add ? op.add->row(row) : nullptr;
    if (op.layer) {
      kernels_.layer_norm(op.out->row(row), op.residual->row(row), add, op.add_scale, op.weight, op.bias, op.epsilon,
                          op.out->width);
    } else {
      kernels_.norm(op.out->row(row), op.residual->row(row), add, op.add_scale, op.weight, op.epsilon,
                    op.accumulate, op.out->width);
    }
    if (op.quantise) encode(*op.out, row, 0, op.out->width);
  }
}

void Model::execute(const AnglesOp& op, std::size_t first, std::size_t last, int) {
  const std::vector<double>& frequencies = op.angles->frequencies;
  for (std::size_t row = first; row < last; ++row) {
    float* cosines = op.angles->table.as<float>() + row * 2 * frequencies.size();
    float* sines = cosines + frequencies.size();
    for (std::size_t i = 0; i < frequencies.size(); ++i) {
      const double angle = step_.batch->positions[row] * frequencies[i];
      cosines[i] = static_cast<float>(op.angles->scale * std::cos(angle));
      sines[i] = static_cast<float>(op.angles->scale * std::sin(angle));
    }
  }
}

void Model::execute(const QuantiseOp& op, std::size_t first, std::size_t last, int) {
  each_chunk(op.buffer->width, first, last, [&](std::size_t row, std::size_t begin, std::size_t end) {
    encode(*op.buffer, row, begin, end);
  });
}

void Model::execute(const NormHeadsOp& op, std::size_t first, std::size_t last, int) {
  const std::size_t size = shape_.head_size;
  const auto part = [&](float* at, std::size_t heads, const float* weight) {
    const std::size_t width = op.whole ? heads * size : size;
    for (std::size_t i = 0; i < heads * size; i += width) {
      kernels_.norm(at + i, at + i, nullptr, 1, weight, op.epsilon, false, width);
    }
  };
  for (std::size_t row = first; row < last; ++row) {
    part(op.qkv->row(row), op.heads, op.query);
    part(op.qkv->row(row) + op.heads * size, shape_.kv_heads, op.key);
  }
}

void Model::execute(const GateOp& op, std::size_t first, std::size_t last, int) {
  const std::size_t width = op.out->width;
  each_chunk(width, first, last, [&](std::size_t row, std::size_t begin, std::size_t end) {
    const float* gate = op.source->row(row) + begin;
    kernels_.gate_multiply(op.out->row(row) + begin, gate, gate + width, op.kind, end - begin);
    if (op.quantise) encode(*op.out, row, begin, end);
  });
}

void Model::execute(const ActivateOp& op, std::size_t first, std::size_t last, int) {
  each_chunk(op.out->width, first, last, [&](std::size_t row, std::size_t begin, std::size_t end) {
    kernels_.activate(op.out->row(row) + begin, op.source->row(row) + begin, op.kind, end - begin);
    if (op.quantise) encode(*op.out, row, begin, end);
  });
}

void Model::execute(const PoolOp& op, std::size_t first, std::size_t last, int) {
  const std::size_t width = op.out->width;
  for (std::size_t sequence = first; sequence < last; ++sequence) {
    const auto begin = static_cast<std::size_t>(step_.batch->row_starts[sequence]);
    const auto end = static_cast<std::size_t>(step_.batch->row_starts[sequence + 1]);
    float* out = op.out->row(sequence);
    std::copy_n(op.source->row(op.kind == Pooling::Last ? end - 1 : begin), width, out);
    if (op.kind != Pooling::Mean) continue;
    for (std::size_t row = begin + 1; row < end; ++row) kernels_.add(out, op.source->row(row), width);
    for (std::size_t i = 0; i < width; ++i) out[i] /= static_cast<float>(end - begin);
  }
}

void Model::execute(const GatherOp& op, std::size_t first, std::size_t last, int) {
  for (std::size_t sample = first; sample < last; ++sample) {
    const auto row = static_cast<std::size_t>(step_.batch->sampled_rows[sample]);
    std::copy_n(op.source->row(row), op.out->width, op.out->row(sample));
    if (op.quantise) encode(*op.out, sample, 0, op.out->width);
  }
}

void Model::execute(const CapOp& op, std::size_t first, std::size_t last, int) {
  for (std::size_t i = first; i < last; ++i) kernels_.cap(op.logits->row(i), shape_.vocabulary, op.scale, op.cap);
}

void Model::execute(const SampleOp& op, std::size_t first, std::size_t last, int member) {
  const std::size_t mine = static_cast<std::size_t>(member) * shape_.vocabulary;
  const SampleScratch scratch = {step_.candidates.as<Candidate>() + mine, step_.edited.as<float>() + mine};
  const Sampling& sampling = step_.batch->sampling;
  Chosen& chosen = step_.chosen;
  for (std::size_t i = first; i < last; ++i) {
    const std::size_t ranked = i * sampling.ranked;
    headrace::sample(kernels_, op.logits->row(i), shape_.vocabulary, sampling, i, scratch,
                     {&chosen.tokens[i], &chosen.logprobs[i], chosen.ranked_tokens.data() + ranked,
                      chosen.ranked_logprobs.data() + ranked});
  }
}

}  // namespace headrace
