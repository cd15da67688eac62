// The Python face: arrays in, arrays out; nothing that a caller passes can reach past its memory.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <tuple>

#include "crossover.h"
#include "merges.h"
#include "model.h"
#include "names.h"
#include "sources_digest.h"  // made by the build

namespace nb = nanobind;
using namespace nb::literals;

namespace headrace {

namespace {

template <typename T>
using Array = nb::ndarray<nb::numpy, T, nb::ndim<1>, nb::c_contig>;

template <typename T>
constexpr const char* kTypeName = "float32";
template <>
constexpr const char* kTypeName<std::int32_t> = "int32";
template <>
constexpr const char* kTypeName<std::uint32_t> = "uint32";

// Element `i` bytes of an attribute that must be a C-contiguous array of T with `ndim` axes.
template <typename T>
struct Field {
  const T* data;
  std::size_t size;
  std::size_t last;  // length of the last axis
  nb::ndarray<nb::ro> array;

  Field(nb::handle owner, const char* name, std::size_t axes) {
    nb::object value = nb::getattr(owner, name);
    if (!nb::try_cast(value, array) || array.dtype() != nb::dtype<T>() || array.ndim() != axes ||
        array.device_type() != nb::device::cpu::value) {
      throw std::invalid_argument(std::string(name) + ": expected a numpy array of " + kTypeName<T> + " with " +
                                  std::to_string(axes) + (axes == 1 ? " axis" : " axes"));
    }
    std::int64_t step = 1;
    for (std::size_t axis = axes; axis-- > 0;) {
      if (array.shape(axis) > 1 && array.stride(axis) != step) {
        throw std::invalid_argument(std::string(name) + ": expected a C-contiguous array");
      }
      step *= static_cast<std::int64_t>(array.shape(axis));
    }
    data = static_cast<const T*>(array.data());
    size = array.size();
    last = array.shape(axes - 1);
  }
};

std::size_t natural(nb::handle owner, const char* name) {
  const auto value = nb::cast<std::int64_t>(nb::getattr(owner, name));
  if (value < 0) throw std::invalid_argument(std::string(name) + " must not be negative");
  return static_cast<std::size_t>(value);
}

template <typename T>
void read(nb::handle owner, const char* name, std::vector<T>* out) {
  const Field<T> field(owner, name, 1);
  out->assign(field.data, field.data + field.size);
}

void read_rows(nb::handle owner, std::vector<SamplingRow>* out) {
  const Field<float> temperature(owner, "temperature", 1), top_p(owner, "top_p", 1), min_p(owner, "min_p", 1),
      uniform(owner, "uniform", 1);
  const Field<std::int32_t> top_k(owner, "top_k", 1), target(owner, "target", 1);
  out->resize(temperature.size);
  for (const std::size_t size : {top_k.size, top_p.size, min_p.size, uniform.size, target.size}) {
    if (size != temperature.size) throw std::invalid_argument("sampling: the fields of its rows differ in length");
  }
  for (std::size_t i = 0; i < out->size(); ++i) {
    (*out)[i] = {temperature.data[i], top_k.data[i], top_p.data[i], min_p.data[i], uniform.data[i], target.data[i]};
  }
}

void read_sampling(nb::handle owner, std::size_t vocabulary, Sampling* out) {
  read_rows(owner, &out->rows);
  out->ranked = std::min(natural(owner, "ranked"), vocabulary);
  out->edits = {};
  out->masks = {};
  if (const nb::object edits = nb::getattr(owner, "edits"); !edits.is_none()) {
    read(edits, "starts", &out->edits.starts);
    read(edits, "tokens", &out->edits.tokens);
    read(edits, "divisors", &out->edits.divisors);
    read(edits, "addends", &out->edits.addends);
  }
  if (const nb::object masks = nb::getattr(owner, "masks"); !masks.is_none()) {
    read(masks, "rows", &out->masks.rows);
    const Field<std::uint32_t> allowed(masks, "allowed", 2);
    out->masks.allowed.assign(allowed.data, allowed.data + allowed.size);
    out->masks.words = allowed.last;
  }
}

template <typename T>
Array<T> owned(const std::vector<T>& from) {
  T* copy = new T[from.size()];
  nb::capsule owner(copy, [](void* at) noexcept { delete[] static_cast<T*>(at); });
  std::copy(from.begin(), from.end(), copy);
  return Array<T>(copy, {from.size()}, owner);
}

// Whether a KV layout asks for 8 bits.
bool in_bytes(nb::handle kv) {
  const auto dtype = nb::cast<std::string>(nb::getattr(kv, "dtype"));
  if (dtype != "f16" && dtype != "int8") throw std::invalid_argument("kv: dtype must be f16 or int8");
  return dtype == "int8";
}

}  // namespace

// A step that was launched: what it gave, once it is over.
struct Flight {
  Chosen chosen;
  bool over = false;
  bool lost = false;  // it never heard how its tokens are chosen
};

// A model with what Python needs around it: the arrays it reads, a lock, the process it belongs to.
class Bound {
 public:
  Bound(nb::handle program, nb::handle kv, const std::string& level, bool precise, int threads, std::size_t tile_crossover)
      : process_(getpid()) {
    if (threads < 1 || threads > 1024) throw std::invalid_argument("threads must be 1 to 1024");
    const ModelShape shape = {natural(kv, "blocks"),         natural(kv, "block_size"),   natural(program, "vocabulary"),
                              natural(program, "layers"),    natural(program, "kv_heads"), natural(program, "head_size"),
                              in_bytes(kv)};
    if (!shape.vocabulary || shape.vocabulary >> 31) throw std::invalid_argument("vocabulary must be 1 to 2^31");
    model_ = std::make_unique<Model>(shape, find_level(level), precise, threads, tile_crossover);
  }

  ~Bound() { drop(); }

  Model& model() {
    if (!model_) throw std::invalid_argument("the backend is closed");
    check_process();
    return *model_;
  }

  std::size_t weight(const std::string& format, std::size_t rows, std::size_t columns,
                     nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu> data) {
    const Format kind = format_of(format);
    const FormatSize& size = size_of(kind);
    if (columns % static_cast<std::size_t>(size.values) || data.shape(0) != rows ||
        data.shape(1) != row_bytes(kind, columns)) {
      throw std::invalid_argument("a weight's bytes do not fit its format, rows and columns");
    }
    const std::size_t index = model().add_weight(kind, rows, columns, data.data());
    arrays_.push_back(data);
    return index;
  }

  using Floats = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
  using Change = std::tuple<std::size_t, Floats, Floats, float>;  // weight, down, up, scale

  void load_adapter(std::size_t number, const std::vector<Change>& changes) {
    Adapter adapter;
    std::vector<Floats> kept;
    for (const auto& [index, down, up, scale] : changes) {
      adapter[index] = {.down = down.data(), .up = up.data(), .columns = down.shape(0), .rank = up.shape(0),
                        .lanes = down.shape(1), .width = up.shape(1), .scale = scale, .rows = 0};
      kept.push_back(down);
      kept.push_back(up);
    }
    const std::lock_guard lock = between_steps();
    model().load_adapter(number, std::move(adapter));
    factors_[number].swap(kept);
  }

  void drop_adapter(std::size_t number) {
    const std::lock_guard lock = between_steps();
    model().drop_adapter(number);
    factors_.erase(number);
  }

  std::shared_ptr<Flight> launch(nb::handle batch) {
    const std::lock_guard lock = between_steps();
    begin(batch, true);
    flight_ = std::make_shared<Flight>();
    return flight_;
  }

  void choose(const std::shared_ptr<Flight>& flight, nb::handle sampling) {
    const std::lock_guard lock = locked();
    if (flight != flight_ || !batch_.open) throw std::invalid_argument("the step has how its tokens are chosen");
    batch_.open = false;
    try {
      read_sampling(sampling, model().shape().vocabulary, &batch_.sampling);
    } catch (...) {
      model_->give_up();
      flight->lost = true;
      throw;
    }
    flight->lost = true;  // where this throws
    model_->choose();
    flight->lost = false;
  }

  nb::tuple wait(const std::shared_ptr<Flight>& flight) {
    const std::lock_guard lock = locked();
    if (!flight->over) {
      nb::gil_scoped_release release;
      end_step();
    }
    if (flight->lost) throw std::invalid_argument("the step was never told how its tokens are chosen");
    const Chosen& chosen = flight->chosen;
    return nb::make_tuple(owned(chosen.tokens), owned(chosen.logprobs), owned(chosen.ranked_tokens),
                          owned(chosen.ranked_logprobs), chosen.seconds);
  }

  nb::ndarray<nb::numpy, float, nb::ndim<2>, nb::c_contig> logits(nb::handle batch) {
    const std::lock_guard lock = between_steps();
    begin(batch, false);
    {
      nb::gil_scoped_release release;
      model_->finish();
    }
    const std::size_t samples = model_->results(), width = model_->shape().vocabulary;
    float* copy = new float[samples * width];
    nb::capsule owner(copy, [](void* at) noexcept { delete[] static_cast<float*>(at); });
    if (samples) std::memcpy(copy, model_->logits_of(0), samples * width * sizeof(float));
    return {copy, {samples, width}, owner};
  }

  void close() {
    {
      nb::gil_scoped_release release;
      const bool ours = getpid() == process_;
      if (ours) lock_.lock();
      drop();
      if (ours) lock_.unlock();
    }
    arrays_.clear();
    factors_.clear();
  }

 private:
  // A fork copies no threads, and a lock as it stands: the child would wait for either for ever.
  void check_process() const {
    if (getpid() != process_) throw std::runtime_error("the backend was loaded by another process; load it again");
  }

  void drop() {
    if (getpid() == process_) {
      end_step();
      model_.reset();
    } else {
      static_cast<void>(model_.release());  // its threads are the parent's: nothing here can join them
    }
  }

  std::lock_guard<std::mutex> locked() {
    check_process();
    nb::gil_scoped_release release;
    lock_.lock();
    return std::lock_guard<std::mutex>(lock_, std::adopt_lock);
  }

  // The lock, once the step that runs is over.
  std::lock_guard<std::mutex> between_steps() {
    check_process();
    nb::gil_scoped_release release;
    lock_.lock();
    end_step();
    return std::lock_guard<std::mutex>(lock_, std::adopt_lock);
  }

  // See the end of the step that runs, if any does. Nobody is left to say how an open one chooses.
  void end_step() {
    if (!flight_) return;
    if (batch_.open) {
      model_->give_up();
      flight_->lost = true;
    }
    flight_->chosen = model_->finish();
    flight_->over = true;
    flight_.reset();
  }

  // Read a batch and begin its step.
  void begin(nb::handle batch, bool draws) {
    Model& running = model();
    read(batch, "tokens", &batch_.tokens);
    read(batch, "positions", &batch_.positions);
    read(batch, "slots", &batch_.slots);
    read(batch, "row_starts", &batch_.row_starts);
    read(batch, "context_lengths", &batch_.context_lengths);
    read(batch, "sampled_rows", &batch_.sampled_rows);
    batch_.types.clear();
    if (!nb::getattr(batch, "types").is_none()) read(batch, "types", &batch_.types);
    batch_.given.clear();
    if (!nb::getattr(batch, "given").is_none()) read(batch, "given", &batch_.given);
    const Field<std::int32_t> tables(batch, "block_tables", 2);
    batch_.block_tables.assign(tables.data, tables.data + tables.size);
    batch_.widest = tables.last;
    batch_.adapters.clear();
    if (const nb::object adapters = nb::getattr(batch, "adapters"); !adapters.is_none()) {
      read(batch, "adapters", &batch_.adapters);
    }
    const nb::object sampling = nb::getattr(batch, "sampling");
    batch_.open = draws && sampling.is_none();
    if (!sampling.is_none()) read_sampling(sampling, running.shape().vocabulary, &batch_.sampling);
    nb::gil_scoped_release release;
    running.launch(batch_, draws);
  }

  const pid_t process_;
  std::mutex lock_;
  Batch batch_;  // of the step that runs
  std::shared_ptr<Flight> flight_;  // of a step that runs
  std::vector<nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>> arrays_;
  std::map<std::size_t, std::vector<Floats>> factors_;  // of adapters
  std::unique_ptr<Model> model_;  // last: it reads the arrays
};

using Bytes = nb::ndarray<std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ReadBytes = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Whether all rows of floats could be rounded into `out`.
bool round_blocks(const std::string& level, const std::string& source, const ReadBytes& data,
                  const std::string& format, const Bytes& out) {
  const Format from = format_of(source), to = format_of(format);
  if (size_of(from).values != 1 || (to != Format::Q8_0 && to != Format::Q4_1)) {
    throw std::invalid_argument("floats are rounded to Q8_0 or Q4_1");
  }
  const std::size_t blocks = data.shape(1) / row_bytes(from, kBlock);
  if (data.shape(1) != blocks * row_bytes(from, kBlock) || out.shape(0) != data.shape(0) ||
      out.shape(1) != blocks * row_bytes(to, kBlock)) {
    throw std::invalid_argument("rows of whole blocks are rounded into as many");
  }
  const Kernels& kernels = find_level(level);
  const nb::gil_scoped_release release;
  return kernels.round_blocks(from, data.data(), data.shape(0) * blocks, to, out.data());
}

// `merges`, as pairs of the pieces themselves.
nb::list merged_pieces(const nb::list& pieces, const std::vector<std::int32_t>& order) {
  nb::list pairs;
  for (const auto& [left, right] : merges(nb::cast<std::vector<std::string>>(pieces), order)) {
    pairs.append(nb::make_tuple(pieces[static_cast<std::size_t>(left)], pieces[static_cast<std::size_t>(right)]));
  }
  return pairs;
}

NB_MODULE(_native, m) {
  m.attr("SOURCES") = HEADRACE_SOURCES;
  m.doc() = "The CPU backend's kernels and executor.";
  m.def("levels", [] {
    std::vector<std::string> names;
    for (const Kernels* level : available_levels()) names.emplace_back(level->level);
    return names;
  });
  m.def("measure_crossover", [](const std::string& level) { return measure_crossover(find_level(level)); }, "level"_a);
  m.def("round_blocks", &round_blocks, "level"_a, "source"_a, "data"_a, "format"_a, "out"_a);
  m.def("merges", &merged_pieces, "pieces"_a, "order"_a);
  using Index = std::size_t;
  using Several = std::vector<std::size_t>;
  nb::class_<Flight>(m, "Flight");
  nb::class_<Bound>(m, "Model")
      .def(nb::init<nb::handle, nb::handle, const std::string&, bool, int, std::size_t>(), "program"_a, "kv"_a,
           "level"_a, "precise"_a, "threads"_a, "tile_crossover"_a)
      .def("buffer", [](Bound& self, Index width) { return self.model().add_buffer(width); })
      .def("weight", &Bound::weight, "format"_a, "rows"_a, "columns"_a, "data"_a)
      .def("embed", [](Bound& self, Index out, Index table, float scale) { self.model().embed(out, table, scale); })
      .def("norm",
           [](Bound& self, Index out, Index residual, Index weight, float epsilon, std::optional<Index> add,
              float add_scale, bool accumulate) {
             self.model().norm(out, residual, weight, epsilon, add ? &*add : nullptr, add_scale, accumulate);
           }, "out"_a, "residual"_a, "weight"_a, "epsilon"_a, "add"_a.none(), "add_scale"_a, "accumulate"_a)
      .def("add_embedding",
           [](Bound& self, Index out, Index table, bool types, Index offset) {
             self.model().add_embedding(out, table, types, offset);
           })
      .def("layer_norm",
           [](Bound& self, Index out, Index residual, Index weight, std::optional<Index> bias, float epsilon,
              std::optional<Index> add, float add_scale) {
             self.model().layer_norm(out, residual, weight, bias ? &*bias : nullptr, epsilon, add ? &*add : nullptr,
                                     add_scale);
           }, "out"_a, "residual"_a, "weight"_a, "bias"_a.none(), "epsilon"_a, "add"_a.none(), "add_scale"_a)
      .def("linear",
           [](Bound& self, Index out, Index source, const Several& weights, const Several& biases) {
             self.model().linear(out, source, weights, biases);
           })
      .def("norm_heads",
           [](Bound& self, Index qkv, Index heads, Index query, Index key, float epsilon, bool whole) {
             self.model().norm_heads(qkv, heads, query, key, epsilon, whole);
           })
      .def("rotate_and_write",
           [](Bound& self, Index qkv, Index layer, Index heads, const std::vector<double>& frequencies,
              bool interleaved, double scale) {
             self.model().rotate_and_write(qkv, layer, heads, frequencies, interleaved, scale);
           })
      .def("attention",
           [](Bound& self, Index out, Index qkv, Index layer, Index heads, float scale, Index window, float cap,
              std::optional<Index> sinks, bool causal) {
             self.model().attention(out, qkv, layer, heads, scale, window, cap, sinks ? &*sinks : nullptr, causal);
           }, "out"_a, "qkv"_a, "layer"_a, "heads"_a, "scale"_a, "window"_a, "cap"_a, "sinks"_a.none(), "causal"_a)
      .def("gate_multiply",
           [](Bound& self, Index out, Index source, const std::string& activation) {
             self.model().gate_multiply(out, source, gate_of(activation));
           })
      .def("activate",
           [](Bound& self, Index out, Index source, const std::string& activation) {
             self.model().activate(out, source, gate_of(activation));
           })
      .def("pool",
           [](Bound& self, Index out, Index source, const std::string& pooling) {
             self.model().pool(out, source, pooling_of(pooling));
           })
      .def("result", [](Bound& self, Index source) { self.model().result(source); })
      .def("project_to_logits", [](Bound& self, Index source, Index weight, float scale, float cap) {
             self.model().logits(source, weight, scale, cap);
           })
      .def("load_adapter", &Bound::load_adapter, "number"_a, "changes"_a)
      .def("drop_adapter", &Bound::drop_adapter, "number"_a)
      .def("launch", &Bound::launch, "batch"_a)
      .def("choose", &Bound::choose, "flight"_a, "sampling"_a)
      .def("wait", &Bound::wait, "flight"_a)
      .def("logits", &Bound::logits, "batch"_a)
      .def("kernels", [](Bound& self) { return self.model().kernel_names(); })
      .def("close", &Bound::close);
}

}  // namespace headrace
