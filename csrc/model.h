// One loaded model: weights, KV cache, program; runs steps.
#pragma once

#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "dispatch.h"
#include "program.h"
#include "threads.h"

namespace headrace {

struct ModelShape {
  std::size_t blocks, block_size, vocabulary, layers, kv_heads, head_size;
  bool bytes;  // KV in 8 bits
};

// Built op by op in the program's order (`builder.cpp`), then run (`executor.cpp`). Buffers and
// weights are named by their index. Builders throw std::invalid_argument on shapes that do not fit.
class Model {
 public:
  // `exact`: float32 activations and KV, no integer kernels. `tile_crossover`: of crossover.h.
  Model(const ModelShape& shape, const Kernels& kernels, bool exact, int threads, std::size_t tile_crossover);

  std::size_t add_buffer(std::size_t width);
  // `data` must stay readable until the model goes.
  std::size_t add_weight(Format format, std::size_t rows, std::size_t columns, const std::uint8_t* data);

  void embed(std::size_t out, std::size_t table, float scale);
  void add_embedding(std::size_t out, std::size_t table, bool types, std::size_t offset);
  void norm(std::size_t out, std::size_t residual, std::size_t weight, float epsilon, const std::size_t* add,
            float add_scale, bool accumulate);
  void layer_norm(std::size_t out, std::size_t residual, std::size_t weight, const std::size_t* bias, float epsilon,
                  const std::size_t* add, float add_scale);
  void linear(std::size_t out, std::size_t source, const std::vector<std::size_t>& weights,
              const std::vector<std::size_t>& biases);
  void norm_heads(std::size_t qkv, std::size_t heads, std::size_t query, std::size_t key, float epsilon, bool whole);
  void rotate_and_write(std::size_t qkv, std::size_t layer, std::size_t heads, std::vector<double> frequencies,
                        bool interleaved, double scale);
  void attention(std::size_t out, std::size_t qkv, std::size_t layer, std::size_t heads, float scale,
                 std::size_t window, float cap, const std::size_t* sinks, bool causal);
  void gate_multiply(std::size_t out, std::size_t source, Gate kind);
  void activate(std::size_t out, std::size_t source, Gate kind);
  void pool(std::size_t out, std::size_t source, Pooling kind);
  // What a step gives, the last op: the logits of its sampled rows, and tokens chosen by them, or a buffer as it is.
  void logits(std::size_t source, std::size_t weight, float scale, float cap);
  void result(std::size_t source);

  // Rows whose sequence has this number in `Batch::adapters` run with these changes of linears' weights.
  // Throws std::invalid_argument. Not during a step.
  void load_adapter(std::size_t number, Adapter adapter);
  void drop_adapter(std::size_t number);

  // Begin a step. Where the batch is open, it waits before the first token is chosen for `choose`.
  // Throws std::invalid_argument (batch), std::bad_alloc. Until `finish`, `batch` stays as it is but
  // for its sampling, and nothing else is asked of the model. Not for two threads at once.
  void launch(const Batch& batch, bool draws);
  // The open batch has its sampling now. Throws as `launch` does; the step then chooses nothing.
  void choose();
  // Choose nothing: the sampling of the open batch never comes.
  void give_up();
  // Help with the step, and see its end. With `draws` it has chosen, without it see logits_of().
  Chosen finish();
  const float* logits_of(std::size_t sample) const;
  std::size_t results() const;  // rows of them

  const ModelShape& shape() const { return shape_; }
  std::map<std::string, std::string> kernel_names() const;

 private:
  Buffer& buffer(std::size_t index);
  Weight& weight(std::size_t index);
  const float* vector_of(std::size_t index, std::size_t width);
  void have_bytes(Buffer& source);
  void begin_pooled(Buffer& out);
  void keep_pooled(Buffer& out, const Buffer& source);
  void add_linear(Buffer& out, Buffer& source, const std::vector<std::size_t>& weights, std::vector<float> bias);
  void pack(Weight& weight);
  void fuse_gates();
  void fuse_rotations();
  std::string attention_name() const;
  std::string product_name(const Weight& weight, bool given) const;
  // Whether integer products of many rows with a weight are the tiles' work.
  bool uses_tiles(const Weight& weight) const { return tile_crossover_ <= kTileRows && weight.columns >= 2 * kBlock; }
  void check_heads(const Buffer& qkv, std::size_t layer, std::size_t heads) const;

  BatchLimits limits() const;
  void prepare(const Batch& batch, bool draws);
  void prepare_choice(const Batch& batch);
  void work(int member);
  void plan_rows(const Batch& batch);
  void plan_attention(const Batch& batch);
  void plan_lone(const Batch& batch);
  std::size_t brain_rows() const;
  void plan_adapters(const Batch& batch);
  float* scratch_of(int member) const;
  const RowTile& tile_rows(std::size_t index) const;  // of a task of attention
  AttentionTile attention_tile(const AttentionOp& op, const RowTile& tile, std::size_t head, int member) const;
  // Columns [first, last), multiples of 32, of a row, as its linear reads them.
  void encode(const Buffer& buffer, std::size_t row, std::size_t first, std::size_t last) const;
  std::size_t linear_tasks(const LinearOp& op) const;
  void in_brains(const LinearOp& op, const Columns& columns, RowRange rows, int member) const;
  void in_gated_brains(const LinearOp& op, const Columns& columns, RowRange rows, int member) const;
  // An adapter changes a linear's float32 rows before they are gated, and reads the gated ones.
  bool gates_in_linears() const { return step_.adapted.empty(); }
  // A row's KV heads [first, last) and their queries.
  void rotate(const RotateOp& op, std::size_t row, std::size_t first, std::size_t last) const;
  // Parts of a linear that have turns of their own.
  std::size_t turns(const LinearOp& op) const;
  void gate(const LinearOp& op, const Columns& columns, RowRange rows) const;
  void in_integers(const LinearOp& op, const Columns& columns, RowRange rows, int member) const;
  void in_halves(const LinearOp& op, const Columns& columns, RowRange rows, int member) const;
  void in_floats(const LinearOp& op, const Columns& columns, RowRange rows, int member) const;
  void add_bias(const LinearOp& op, const Columns& columns, RowRange rows) const;
  void attend_whole(const AttentionTile& tile, int member);
  bool attend_part(const AttentionTile& tile, std::size_t index, std::size_t part);
  std::size_t rows_of(const Buffer& buffer) const;
  // Whether the buffer has a row a token.
  bool by_token(const Buffer& buffer) const { return !buffer.pooled && &buffer != sampled_ && &buffer != logits_; }
  std::uint8_t* layer_cache(std::size_t layer) const;
  void execute(std::size_t op, int member);
  void execute(const EmbedOp& op, std::size_t first, std::size_t last, int member);
  void execute(const AddEmbeddingOp& op, std::size_t first, std::size_t last, int member);
  void execute(const NormOp& op, std::size_t first, std::size_t last, int member);
  void execute(const AnglesOp& op, std::size_t first, std::size_t last, int member);
  void execute(const QuantiseOp& op, std::size_t first, std::size_t last, int member);
  void execute(const LinearOp& op, std::size_t first, std::size_t last, int member);
  void execute(const AdaptOp& op, std::size_t first, std::size_t last, int member);
  void execute(const NormHeadsOp& op, std::size_t first, std::size_t last, int member);
  void execute(const RotateOp& op, std::size_t first, std::size_t last, int member);
  void execute(const AttentionOp& op, std::size_t first, std::size_t last, int member);
  void execute(const GateOp& op, std::size_t first, std::size_t last, int member);
  void execute(const ActivateOp& op, std::size_t first, std::size_t last, int member);
  void execute(const PoolOp& op, std::size_t first, std::size_t last, int member);
  void execute(const GatherOp& op, std::size_t first, std::size_t last, int member);
  void execute(const CapOp& op, std::size_t first, std::size_t last, int member);
  void execute(const SampleOp& op, std::size_t first, std::size_t last, int member);
  std::size_t tasks(const Op& op) const;

  const ModelShape shape_;
  const Kernels& kernels_;
  const bool exact_;
  const std::size_t tile_crossover_;  // rows of a tile from which on it is the level's tiles' work
  CacheShape cache_shape_;
  Region cache_;
  std::deque<Buffer> buffers_;  // deques: ops hold pointers to the elements
  std::deque<Weight> weights_;
  Arena packed_;  // weights
  std::deque<Angles> angles_;
  std::vector<Op> ops_;
  std::set<std::size_t> adaptable_;  // weights of linears
  std::map<std::size_t, Adapter> adapters_;
  Buffer* sampled_ = nullptr;  // source rows of the logits
  Buffer* logits_ = nullptr;
  std::size_t vocabulary_ = 0;  // of the embedding; 0: nothing embeds
  std::size_t positions_ = SIZE_MAX, types_ = SIZE_MAX;  // that there are embeddings of
  std::size_t capacity_ = 0;    // rows the buffers hold
  std::size_t sample_capacity_ = 0;
  std::size_t group_ = 1;    // query heads a KV head, the most of any op
  std::size_t scratch_floats_ = 0;
  Region scratch_;  // scratch_floats_ a member
  std::deque<Progress> progress_;  // of each op
  Step step_;
  Team team_;  // last: its threads end before what they read goes
};

}  // namespace headrace
