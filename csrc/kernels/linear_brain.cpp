// Linear in bfloat16 by AMX: for rows of given tokens, which come by the hundred.
//
// Weights are unpacked to bfloat16 some hundred columns at a time, two panels beside each other, and
// meet all rows while they lie in the L1 cache. Sums are float32, in an order that depends on the
// number of columns alone, so a row's result does not depend on the other rows.
#include "gate.h"
#include "level.h"
#include "tiles.h"
#include "unpack.h"

namespace headrace::HEADRACE_LEVEL {

#if defined(__AMX_BF16__)

namespace {

static_assert(kLanes == kPanelRows && kTileRows == 16);

// Byte J of every lane as a float 256 + byte: its bits are put below those of 256.
template <int J>
inline Vector above_256(IntVector codes) {
  constexpr int kShift = 15 - 8 * J;
  const auto moved = kShift > 0 ? _mm512_slli_epi32((__m512i)codes, kShift > 0 ? kShift : 0)
                                : _mm512_srli_epi32((__m512i)codes, kShift > 0 ? 0 : -kShift);
  return (Vector)_mm512_ternarylogic_epi32(moved, _mm512_set1_epi32(0x7f8000), _mm512_set1_epi32(0x43800000), 0xea);
}

// One block of a panel as a right side: line k has columns 2k and 2k + 1 of each of the 16 weight rows.
template <PanelKind KIND>
inline void widen(const std::uint8_t* block, IntVector* out) {
  IntVector codes[8];
  unpack<KIND>(block + header_bytes(KIND), codes);
  const auto* halves = reinterpret_cast<const std::uint16_t*>(block);
  const Vector scale = load_half(halves);
  const Vector second = header_bytes(KIND) == 64 ? load_half(halves + 16) : Vector{};
  constexpr float kZero = 256 + static_cast<float>(zero_code(KIND));
#pragma GCC unroll 8
  for (int group = 0; group < 8; ++group) {
    const Vector step = two_scales(KIND) && group >= 4 ? second : scale;
    const Vector offset = has_minimum(KIND) ? second - step * kZero : -(step * kZero);
    out[2 * group] = pair(above_256<0>(codes[group]) * step + offset, above_256<1>(codes[group]) * step + offset);
    out[2 * group + 1] = pair(above_256<2>(codes[group]) * step + offset, above_256<3>(codes[group]) * step + offset);
  }
}

template <PanelKind KIND>
void widen_panel(const std::uint8_t* block, std::size_t blocks, std::uint8_t* out) {
  for (std::size_t b = 0; b < blocks; ++b, block += panel_block_bytes(KIND), out += kTileBytes) {
    for (int line = 0; line < panel_block_bytes(KIND); line += 64) __builtin_prefetch(block + 4096 + line);
    widen<KIND>(block, reinterpret_cast<IntVector*>(out));
  }
}

void widen_panel(PanelKind kind, const std::uint8_t* block, std::size_t blocks, std::uint8_t* out) {
  switch (kind) {
    case PanelKind::Q4: return widen_panel<PanelKind::Q4>(block, blocks, out);
    case PanelKind::Q4Min: return widen_panel<PanelKind::Q4Min>(block, blocks, out);
    case PanelKind::Q5: return widen_panel<PanelKind::Q5>(block, blocks, out);
    case PanelKind::Q5Min: return widen_panel<PanelKind::Q5Min>(block, blocks, out);
    case PanelKind::Q6: return widen_panel<PanelKind::Q6>(block, blocks, out);
    case PanelKind::Q8: return widen_panel<PanelKind::Q8>(block, blocks, out);
  }
}

// 32 floats as bfloat16, pairs in the lanes of a vector.
template <Format FORMAT>
inline __m512i brains_of(const std::uint8_t* from) {
  if constexpr (FORMAT == Format::BF16) return _mm512_loadu_si512(from);
  Vector first, second;
  if constexpr (FORMAT == Format::F16) {
    first = load_half(reinterpret_cast<const std::uint16_t*>(from));
    second = load_half(reinterpret_cast<const std::uint16_t*>(from) + kLanes);
  } else {
    first = (Vector)_mm512_loadu_ps(from);
    second = (Vector)_mm512_loadu_ps(from + 64);
  }
  return (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}

template <Format FORMAT>
void widen_rows(const std::uint8_t* from, std::size_t stride, int count, std::size_t blocks, std::uint8_t* out) {
  constexpr std::size_t kBytes = FORMAT == Format::F32 ? 4 * kBlock : 2 * kBlock;
  __m512i rows[16] = {};
  for (std::size_t b = 0; b < blocks; ++b, from += kBytes, out += kTileBytes) {
    for (int row = 0; row < count; ++row) rows[row] = brains_of<FORMAT>(from + static_cast<std::size_t>(row) * stride);
    transpose(rows, out);
  }
}

// `blocks` blocks of panel `i` of a job, from block `first` on.
void widen_part(const BrainPanels& job, int i, std::size_t first, std::size_t blocks, std::uint8_t* out) {
  const FloatRows& floats = job.floats;
  if (!floats.stride) {
    const std::size_t bytes = static_cast<std::size_t>(panel_block_bytes(job.kind));
    return widen_panel(job.kind, job.panels[i] + first * bytes, blocks, out);
  }
  const std::uint8_t* from = job.panels[i] + row_bytes(floats.format, first * kBlock);
  switch (floats.format) {
    case Format::BF16: return widen_rows<Format::BF16>(from, floats.stride, floats.rows[i], blocks, out);
    case Format::F16: return widen_rows<Format::F16>(from, floats.stride, floats.rows[i], blocks, out);
    default: return widen_rows<Format::F32>(from, floats.stride, floats.rows[i], blocks, out);
  }
}

// Sums of tiles [TALL, WIDE] in memory: floats from one tile of rows to the next and from one panel to
// the next, bytes from one row to the next. Without `at`, zeros to begin with.
struct Sums {
  float* at = nullptr;
  std::size_t down = 0, across = 0, pitch = 0;
};

// Copied tile by tile.
template <int WIDE>
Sums packed_sums(float* at) {
  return {at, WIDE * kTileFloats, kTileFloats, 64};
}

template <int TALL, int WIDE>
inline void begin_sums(const Sums& before) {
  if (!before.at) {
    _tile_zero(0);
    if constexpr (WIDE == 2) _tile_zero(1);
    if constexpr (TALL == 2) _tile_zero(2);
    if constexpr (TALL == 2 && WIDE == 2) _tile_zero(3);
  } else {
    _tile_loadd(0, before.at, before.pitch);
    if constexpr (WIDE == 2) _tile_loadd(1, before.at + before.across, before.pitch);
    if constexpr (TALL == 2) _tile_loadd(2, before.at + before.down, before.pitch);
    if constexpr (TALL == 2 && WIDE == 2) _tile_loadd(3, before.at + before.down + before.across, before.pitch);
  }
}

// One block of columns of two tiles of rows and two panels.
struct Operands {
  const std::uint8_t* activations;
  std::size_t tile_bytes;  // from one tile of rows to the next
  const std::uint8_t* weights;
  std::size_t panel_bytes;  // from one panel to the next
  std::size_t blocks;
};

// `out` [TALL, WIDE] tiles = `before` + activations · weights; `beside` is called once a block, and
// what it does costs little while the tiles are at work. Activations come from the L2 cache and go past
// the L1 cache, which the weights fill.
template <int TALL, int WIDE, typename Beside>
void multiply(Operands of, const Sums& before, const Sums& out, Beside&& beside) {
  begin_sums<TALL, WIDE>(before);
  for (std::size_t b = 0; b < of.blocks; ++b, of.activations += kTileBytes, of.weights += kTileBytes) {
    _tile_stream_loadd(4, of.activations, 64);
    _tile_loadd(6, of.weights, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (WIDE == 2) {
      _tile_loadd(7, of.weights + of.panel_bytes, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (TALL == 2) {
      _tile_stream_loadd(5, of.activations + of.tile_bytes, 64);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (TALL == 2 && WIDE == 2) _tile_dpbf16ps(3, 5, 7);
    beside();
  }
  _tile_stored(0, out.at, out.pitch);
  if constexpr (WIDE == 2) _tile_stored(1, out.at + out.across, out.pitch);
  if constexpr (TALL == 2) _tile_stored(2, out.at + out.down, out.pitch);
  if constexpr (TALL == 2 && WIDE == 2) _tile_stored(3, out.at + out.down + out.across, out.pitch);
}

// The lanes of a vector whose columns the job has, from `column` on.
inline __mmask16 lanes_of(const BrainPanels& job, int column) {
  const int left = job.cols - column;
  return static_cast<__mmask16>(left < kLanes ? (1 << left) - 1 : 0xffff);
}

// Rows of a tile from `row` on, those of [job.begin, job.end) alone, from `sums` to where they belong.
void write(const BrainPanels& job, std::size_t row, const float* sums) {
  for (std::size_t r = 0; r < kTileRows; ++r) {
    if (row + r < job.begin || row + r >= job.end) continue;
    float* out = job.out + (row + r) * job.stride;
    for (int column = 0; column < job.cols; column += kLanes) {
      const __mmask16 mask = lanes_of(job, column);
      const float* packed = sums + static_cast<std::size_t>(column) / kLanes * kTileFloats + r * kLanes;
      _mm512_mask_storeu_ps(out + column, mask, _mm512_load_ps(packed));
    }
  }
}

// 16 values to the nearest bfloat16, ties to even.
inline void store_brains(std::uint16_t* to, Vector value) {
  const IntVector bits = (IntVector)value;
  const IntVector rounded = bits + 0x7fff + ((bits >> 16) & 1);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)rounded, 16)));
}

// Sums of a gate and of what it multiplies, row after row on their way to bfloat16.
class Gating {
 public:
  explicit Gating(const BrainPanels& job) : job_(job) {}

  // Two tiles of rows from `row` on, whose sums stay at `sums` until they are through.
  void start(std::size_t row, const float* sums) {
    finish();
    sums_ = sums;
    row_ = row;
    left_ = 2 * kTileRows;
  }

  void advance(std::size_t rows) {
    for (; rows && left_; --rows) one();
  }

  void finish() { advance(left_); }

 private:
  void one() {
    const GatedColumns& gated = job_.gated;
    if (row_ >= job_.begin && row_ < job_.end) {
      std::uint16_t* to = gated.out.brains + gated.out.block_index(row_, gated.column / kBlock) * kBlock;
      store_brains(to + gated.column % kBlock, activate(load(sums_), gated.kind) * load(sums_ + kTileFloats));
    }
    sums_ += --left_ == kTileRows ? kTileFloats + kLanes : kLanes;  // the second tile lies behind what is multiplied
    ++row_;
  }

  const BrainPanels& job_;
  const float* sums_ = nullptr;
  std::size_t row_ = 0, left_ = 0;
};

// How a job's columns are cut: into `count` parts of `blocks` blocks at most.
struct Parts {
  std::size_t all, count, blocks;
  explicit Parts(std::size_t columns)
      : all(columns / kBlock), count((all + kBrainBlocks - 1) / kBrainBlocks), blocks((all + count - 1) / count) {}
};

template <int WIDE>
class Panels {
 public:
  Panels(const BrainPanels& job, float* scratch)
      : job_(job),
        parts_(job.source.columns),
        weights_(reinterpret_cast<std::uint8_t*>(scratch)),
        sums_(scratch + 2 * kBrainBlocks * kTileFloats),
        from_(job.begin / kTileRows * kTileRows) {}

  template <typename Part>
  void each_part(Part&& part) {
    for (std::size_t at = 0; at < parts_.all; at += parts_.blocks) {
      const std::size_t count = parts_.all - at < parts_.blocks ? parts_.all - at : parts_.blocks;
      for (int i = 0; i < WIDE; ++i) {
        widen_part(job_, i, at, count, weights_ + static_cast<std::size_t>(i) * count * kTileBytes);
      }
      settle();
      for (std::size_t row = from_; row < job_.end; row += 2 * kTileRows) part(at, count, row);
    }
  }

  template <typename Beside>
  void multiply_rows(std::size_t at, std::size_t count, std::size_t row, const Sums& before, const Sums& out,
                     Beside&& beside) const {
    const std::size_t tile_bytes = parts_.all * kTileBytes;
    const auto* activations = reinterpret_cast<const std::uint8_t*>(job_.source.brains) +
                              row / kTileRows * tile_bytes + at * kTileBytes;
    const Operands of = {activations, tile_bytes, weights_, count * kTileBytes, count};
    if (row + kTileRows < job_.end) {
      multiply<2, WIDE>(of, before, out, beside);
    } else {
      multiply<1, WIDE>(of, before, out, beside);
    }
  }

  // Sums of the rows from `row` on in the scratch: of all rows where there are parts to add up.
  Sums kept(std::size_t row) const {
    const std::size_t pair = (row - from_) / kTileRows / 2;
    return packed_sums<WIDE>(sums_ + (parts_.count > 1 ? pair : pair % 2) * 2 * WIDE * kTileFloats);
  }

  void plain() {
    const bool whole_columns = job_.cols == WIDE * kPanelRows;
    each_part([&](std::size_t at, std::size_t count, std::size_t row) {
      const bool both = row + kTileRows < job_.end;
      const bool whole = row >= job_.begin && row + (both ? 2 : 1) * kTileRows <= job_.end;
      const bool straight = whole && whole_columns;  // tiles go to their place as they are
      const Sums there = {job_.out + row * job_.stride, kTileRows * job_.stride, kPanelRows,
                          job_.stride * sizeof(float)};
      const Sums sums = straight ? there : kept(row);
      const Sums bias = job_.bias ? Sums{const_cast<float*>(job_.bias), 0, kPanelRows, 0} : Sums{};
      const Sums before = at ? sums : bias;
      multiply_rows(at, count, row, before, sums, [] {});
      if (straight || at + count < parts_.all) return;
      write(job_, row, sums.at);
      if (both) write(job_, row + kTileRows, sums.at + sums.down);
    });
  }

  void gated() {
    Gating gating(job_);
    each_part([&](std::size_t at, std::size_t count, std::size_t row) {
      const Sums sums = kept(row);
      const std::size_t rows = (2 * kTileRows + count - 1) / count;
      multiply_rows(at, count, row, at ? sums : Sums{}, sums, [&] { gating.advance(rows); });
      if (at + count == parts_.all) gating.start(row, sums.at);
    });
    gating.finish();
  }

 private:
  const BrainPanels& job_;
  const Parts parts_;
  std::uint8_t* weights_;
  float* sums_;
  const std::size_t from_;
};

template <int WIDE>
void panels(const BrainPanels& job, float* scratch) {
  Panels<WIDE> of(job, scratch);
  if constexpr (WIDE == 2) {
    if (job.gated.out.brains) return of.gated();
  }
  of.plain();
}

}  // namespace

void brain_panels(const BrainPanels& job, float* scratch) {
  shape_tiles({});
  job.cols > kPanelRows ? panels<2>(job, scratch) : panels<1>(job, scratch);
  _tile_release();
}

void round_to_brain(const float* source, std::size_t blocks, const Activations& out, std::size_t row, std::size_t first) {
  for (std::size_t b = 0; b < blocks; ++b, source += kBlock) {
    std::uint16_t* to = out.brains + out.block_index(row, first + b) * kBlock;
    for (int i = 0; i < kBlock; i += kLanes) store_brains(to + i, load(source + i));
  }
}

#endif

}  // namespace headrace::HEADRACE_LEVEL
