// Linear over packed weights for many rows, by AMX: as linear_integer.cpp, and equal to it to the bit,
// since products are summed in integers a block and scaled in float in the same order.
//
// A panel is unpacked once, to signed bytes in the layout of a tile's right side, and meets all rows,
// sixteen at a time. A step multiplies the columns that share a scale: 32, or 16 where a block has two.
#include "level.h"
#include "unpack.h"

namespace headrace::HEADRACE_LEVEL {

#if defined(__AMX_INT8__)

namespace {

static_assert(kLanes == kPanelRows && kTileRows == 16);

// The compiler does not know what the tile instructions read: what was written before must be in memory.
inline void settle() { asm volatile("" ::: "memory"); }

// Of the eight tiles, 0..3 are sums, 4 and 5 the two planes of activations, 6 the weights.
struct alignas(64) TileShapes {
  std::uint8_t palette = 1;
  std::uint8_t start = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

void configure(int columns) {
  TileShapes shapes;
  for (int tile = 0; tile < 8; ++tile) {
    const bool activations = tile == 4 || tile == 5, weights = tile == 6;
    shapes.row_bytes[tile] = static_cast<std::uint16_t>(activations ? columns : 64);
    shapes.rows[tile] = static_cast<std::uint8_t>(weights ? columns / 4 : 16);
  }
  settle();
  _tile_loadconfig(&shapes);
}

// Sums of one step's products for 16 rows, one vector a row.
struct alignas(64) Products {
  IntVector upper[kTileRows], lower[kTileRows];
};

constexpr int kRowBytes = kPlanes * kBlock;

// Step `step` is begun (multiplied) two steps before its sums are read, and finished (stored) one step
// before: tile instructions take long, and the processor must not stand and wait for any of them. The
// sums of even and odd steps are in tiles of their own.
inline void begin(std::size_t step, const std::int8_t* activations, const std::int8_t* weights) {
  _tile_loadd(6, weights, 64);
  _tile_loadd(4, activations, kRowBytes);
  _tile_loadd(5, activations + kBlock, kRowBytes);
  if (step % 2) {
    _tile_zero(2);
    _tile_zero(3);
    _tile_dpbssd(2, 4, 6);
    _tile_dpbssd(3, 5, 6);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 5, 6);
  }
}

inline void finish(std::size_t step, Products* out) {
  if (step % 2) {
    _tile_stored(2, out[1].upper, 64);
    _tile_stored(3, out[1].lower, 64);
  } else {
    _tile_stored(0, out[0].upper, 64);
    _tile_stored(1, out[0].lower, 64);
  }
}

// A panel as the tiles read it: [blocks] weights of 32 columns, [blocks] scales, two vectors each.
struct Unpacked {
  const std::int8_t* weights;
  const float* scales;
};

template <PanelKind KIND>
Unpacked unpack_panel(const IntegerPanel& job, std::size_t blocks, float* scratch) {
  auto* weights = reinterpret_cast<std::int8_t*>(scratch);
  float* scales = scratch + blocks * kPanelRows * kBlock / sizeof(float);
  const std::uint8_t* at = job.panel;
  for (std::size_t b = 0; b < blocks; ++b, at += panel_block_bytes(KIND)) {
    IntVector codes[8];
    unpack<KIND>(at + header_bytes(KIND), codes);
    for (int g = 0; g < 8; ++g) {
      const __m512i values = _mm512_sub_epi8((__m512i)codes[g], _mm512_set1_epi8(static_cast<char>(zero_code(KIND))));
      _mm512_store_si512(weights + (8 * b + g) * 64, values);
    }
    const auto* halves = reinterpret_cast<const std::uint16_t*>(at);
    store(scales + 2 * b * kLanes, load_half(halves));
    if constexpr (header_bytes(KIND) == 64) store(scales + (2 * b + 1) * kLanes, load_half(halves + 16));
  }
  settle();
  return {weights, scales};
}

// Adds one step's products to the sums.
template <PanelKind KIND>
inline void accumulate(const Products& products, const float* scales, int step, const ActivationBlock* blocks,
                       Vector (&sums)[kTileRows]) {
  const Vector scale = load(scales + step * kLanes);
  const Vector minimum = has_minimum(KIND) ? load(scales + kLanes) : Vector{};
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kTileRows; ++r) {
    const IntVector all = (products.upper[r] << kPlaneBits) + products.lower[r];
    sums[r] += __builtin_convertvector(all, Vector) * (scale * blocks[r].scale);
    if constexpr (has_minimum(KIND)) sums[r] += minimum * blocks[r].sum;
  }
}

inline void write(const IntegerPanel& job, std::size_t row, Vector sums) {
  float* out = job.out + row * job.stride;
  if (job.cols == kLanes) return store(out, sums);
  float line[kLanes];
  store(line, sums);
  for (int i = 0; i < job.cols; ++i) out[i] = line[i];
}

// Fetch weights in advance: the next panel's, while this one is multiplied.
inline void fetch(const std::uint8_t* from, int bytes) {
  for (int line = 0; line < bytes; line += 64) __builtin_prefetch(from + line);
}

template <PanelKind KIND>
void sixteen_rows(const IntegerPanel& job, const Unpacked& panel, std::size_t first, std::size_t count) {
  constexpr int kSteps = two_scales(KIND) ? 2 : 1;
  constexpr int kStepColumns = kBlock / kSteps;
  const std::size_t steps = job.source.columns / kStepColumns;
  const std::size_t start = job.source.block_index(first, 0);
  const std::int8_t* activations = job.source.codes + start * kRowBytes;
  const ActivationBlock* blocks = job.source.blocks + start;
  const auto begin_step = [&](std::size_t step) {
    const std::size_t block = step / kSteps, column = step % kSteps * kStepColumns;
    begin(step, activations + block * kTileRows * kRowBytes + column,
          panel.weights + step * kStepColumns * kPanelRows);
  };
  const std::uint8_t* next = job.panel + job.source.columns / kBlock * panel_block_bytes(KIND);
  Vector sums[kTileRows] = {};
  Products products[2];
  begin_step(0);
  if (steps > 1) begin_step(1);
  finish(0, products);
  for (std::size_t step = 0; step < steps; ++step) {
    if (step + 2 < steps) begin_step(step + 2);
    if (step + 1 < steps) finish(step + 1, products);
    const std::size_t block = step / kSteps;
    if (first == job.begin) fetch(next + block * panel_block_bytes(KIND), panel_block_bytes(KIND));
    accumulate<KIND>(products[step % 2], panel.scales + 2 * block * kLanes, static_cast<int>(step % kSteps),
                     blocks + block * kTileRows, sums);
  }
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kTileRows; ++r) {  // no index that varies: the sums stay in registers
    if (r < count) write(job, first + r, sums[r]);
  }
}

template <PanelKind KIND>
void panel(const IntegerPanel& job, float* scratch) {
  const Unpacked unpacked = unpack_panel<KIND>(job, job.source.columns / kBlock, scratch);
  configure(two_scales(KIND) ? kBlock / 2 : kBlock);
  for (std::size_t row = job.begin; row < job.end; row += kTileRows) {
    sixteen_rows<KIND>(job, unpacked, row, job.end - row < kTileRows ? job.end - row : kTileRows);
  }
  _tile_release();
}

}  // namespace

void tile_panel(const IntegerPanel& job, float* scratch) {
  switch (job.kind) {
    case PanelKind::Q4: return panel<PanelKind::Q4>(job, scratch);
    case PanelKind::Q4Min: return panel<PanelKind::Q4Min>(job, scratch);
    case PanelKind::Q5: return panel<PanelKind::Q5>(job, scratch);
    case PanelKind::Q5Min: return panel<PanelKind::Q5Min>(job, scratch);
    case PanelKind::Q6: return panel<PanelKind::Q6>(job, scratch);
    case PanelKind::Q8: return panel<PanelKind::Q8>(job, scratch);
  }
}

#endif

}  // namespace headrace::HEADRACE_LEVEL
