// Linear over packed weights for many rows, by AMX: as linear_integer.cpp, and equal to it to the bit,
// since products are summed in integers a block and scaled in float in the same order.
//
// Four-bit weights meet both planes of a block's activations in one product: a row of the left side is
// the block's 64 bytes as they lie, upper plane and lower, and the right side has the weights twice,
// first times 16, so that the tile sums 16 · upper · weight + lower · weight exactly. Wider weights do
// not fit a byte times 16: they take a product a plane, and where a block has two scales two of these.
//
// A few blocks of a panel are unpacked at a time and meet all rows, sixteen at a time, while the next
// few are unpacked; panels beside each other take turns, so that the activations of these blocks are
// read from the L1 cache. Sums wait in memory meanwhile.
#include "level.h"
#include "tiles.h"
#include "unpack.h"

namespace headrace::HEADRACE_LEVEL {

#if defined(__AMX_INT8__)

namespace {

static_assert(kLanes == kPanelRows && kTileRows == 16);

constexpr int kRowBytes = kPlanes * kBlock;
// Weights are fetched to the L2 cache so many turns before they are unpacked: memory answers late, and
// while tiles are multiplied nothing else asks it.
constexpr int kTurnsAhead = 4;

constexpr bool one_product(PanelKind kind) { return kind == PanelKind::Q4 || kind == PanelKind::Q4Min; }

// Steps that a block takes: one for each scale.
constexpr std::size_t steps_of(PanelKind kind) { return two_scales(kind) ? 2 : 1; }

// A tile of up to eight rows is taken as half a tile.
constexpr std::size_t kHalfTile = kTileRows / 2;

// Of the eight tiles, 0..3 are sums, 4 and 5 activations, 6 the weights.
template <PanelKind KIND>
void configure(std::size_t rows) {
  constexpr int kColumns = one_product(KIND) ? kRowBytes : kBlock / static_cast<int>(steps_of(KIND));
  TileShapes shapes;
  for (int tile = 0; tile < 8; ++tile) {
    const bool activations = tile == 4 || tile == 5, weights = tile == 6;
    shapes.row_bytes[tile] = static_cast<std::uint16_t>(activations ? kColumns : 64);
    shapes.rows[tile] = static_cast<std::uint8_t>(weights ? kColumns / 4 : rows);
  }
  shape_tiles(shapes);
}

// Sums of one step's products for 16 rows, one vector a row. `lower` is not used where one product has both.
struct alignas(64) Products {
  IntVector upper[kTileRows], lower[kTileRows];
};

// What a pass reads: weights of a few blocks, and a group's activations of the same blocks.
struct Pass {
  const std::int8_t* activations;
  const std::int8_t* weights;
};

// A step is begun (multiplied) two steps before its sums are read, and finished (stored) one step before:
// tile instructions take long, and the processor must not stand and wait for any of them. The sums of
// even and odd steps are in tiles of their own.
template <PanelKind KIND, int ODD>
inline void begin(const Pass& from) {
  _tile_loadd(6, from.weights, 64);
  _tile_loadd(4, from.activations, kRowBytes);
  if constexpr (KIND == PanelKind::Q4Min) {
    if constexpr (ODD) { _tile_zero(1); _tile_dpbsud(1, 4, 6); } else { _tile_zero(0); _tile_dpbsud(0, 4, 6); }
  } else {
    if constexpr (ODD) { _tile_zero(1); _tile_dpbssd(1, 4, 6); } else { _tile_zero(0); _tile_dpbssd(0, 4, 6); }
  }
  if constexpr (!one_product(KIND)) {
    _tile_loadd(5, from.activations + kBlock, kRowBytes);
    if constexpr (ODD) { _tile_zero(3); _tile_dpbssd(3, 5, 6); } else { _tile_zero(2); _tile_dpbssd(2, 5, 6); }
  }
}

template <PanelKind KIND, int ODD>
inline void finish(Products* out) {
  if constexpr (ODD) _tile_stored(1, out->upper, 64); else _tile_stored(0, out->upper, 64);
  if constexpr (!one_product(KIND)) {
    if constexpr (ODD) _tile_stored(3, out->lower, 64); else _tile_stored(2, out->lower, 64);
  }
}

// A few blocks of a panel as the tiles read them.
struct alignas(64) Unpacked {
  std::int8_t weights[kTileBlocks][kTileBytes];
  float scales[kTileBlocks][2 * kLanes];
};

// What the kernel's scratch holds.
struct Scratch {
  Unpacked unpacked[2];
  Vector sums[kTilePanels * kTileGroups][kTileRows];
};
static_assert(sizeof(Scratch) == kTileScratch * sizeof(float));

// What it holds where there is one tile of rows: blocks of weights, in a ring.
constexpr std::size_t kRing = 8, kLead = 4;
struct alignas(64) Stream {
  std::int8_t weights[kRing][kTileBytes];
  float scales[kRing][2 * kLanes];
};
static_assert(sizeof(Stream) <= sizeof(Scratch));

// Bytes of weights from which on they are fetched to the L2 cache, and to the L1 cache.
constexpr std::size_t kAhead = 3200, kNear = 960;

template <int ODD>
struct Parity {
  static constexpr int value = ODD;
};
using Even = Parity<0>;
using Odd = Parity<1>;

template <PanelKind KIND>
inline void fetch(const std::uint8_t* block) {
  for (int line = 0; line < panel_block_bytes(KIND); line += 64) _mm_prefetch(block + line, _MM_HINT_T1);
}

template <PanelKind KIND>
inline void unpack_block(const std::uint8_t* from, std::int8_t* weights, float* scales) {
  constexpr int kHeader = header_bytes(KIND);
  IntVector codes[8];
  unpack<KIND>(from + kHeader, codes);
  const __m512i zero = _mm512_set1_epi8(static_cast<char>(zero_code(KIND)));
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g) {
    const auto code = (__m512i)codes[g];
    if constexpr (one_product(KIND)) {
      // Four bits by 16, as unsigned bytes; with the upper bit turned, as signed ones of (code - 8) · 16.
      const __m512i times16 = (__m512i)((IntVector)code << 4);
      const __m512i upper = KIND == PanelKind::Q4 ? _mm512_xor_si512(times16, _mm512_set1_epi8(-128)) : times16;
      _mm512_store_si512(weights + g * 64, upper);
      _mm512_store_si512(weights + (8 + g) * 64, KIND == PanelKind::Q4 ? _mm512_sub_epi8(code, zero) : code);
    } else {
      _mm512_store_si512(weights + g * 64, _mm512_sub_epi8(code, zero));
    }
  }
  const auto* halves = reinterpret_cast<const std::uint16_t*>(from);
  store(scales, load_half(halves));
  if constexpr (kHeader == 64) store(scales + kLanes, load_half(halves + 16));
}

// Adds one step's products to the sums.
template <PanelKind KIND, std::size_t ROWS>
inline void accumulate(const Products& products, const float* scales, std::size_t half, const ActivationBlock* blocks,
                       Vector (&sums)[ROWS]) {
  const Vector scale = load(scales + half * kLanes);
  const Vector minimum = has_minimum(KIND) ? load(scales + kLanes) : Vector{};
#pragma GCC unroll 16
  for (std::size_t r = 0; r < ROWS; ++r) {
    IntVector all = products.upper[r];
    if constexpr (!one_product(KIND)) all = (all << kPlaneBits) + products.lower[r];
    sums[r] += __builtin_convertvector(all, Vector) * scaled(scale, blocks[r].exponent);
    if constexpr (has_minimum(KIND)) sums[r] += minimum * blocks[r].sum;
  }
}

// Up to kTileGroups · 16 rows and kTilePanels panels of a job, whose blocks are taken in parts of equal size.
struct Patch {
  const IntegerPanels& job;
  std::size_t begin, end;  // rows
  std::size_t panels, groups;
  std::size_t blocks, parts;
  std::size_t part_size = blocks / parts, longer = blocks % parts;  // so many parts have a block more

  std::size_t size(std::size_t part) const { return part_size + (part < longer); }
  std::size_t block(std::size_t part) const { return part * part_size + (part < longer ? part : longer); }
};

// A part of a panel, which takes its turn.
struct Turn {
  std::size_t first;  // panel of the patch
  std::size_t panel = 0, part = 0;

  // The one after it; after the last, the first of the patch that lies behind this one.
  void next(const Patch& patch) {
    if (++panel < patch.panels) return;
    panel = 0;
    if (++part < patch.parts) return;
    part = 0;
    first += patch.panels;
  }
  const std::uint8_t* packed(const Patch& patch) const {
    const std::size_t block = (first + panel) * patch.blocks + patch.block(part);
    return patch.job.panel + block * static_cast<std::size_t>(panel_block_bytes(patch.job.kind));
  }
};

inline void write(const IntegerPanels& job, std::size_t row, std::size_t panel, Vector sums) {
  float* out = job.out + row * job.stride + panel * kPanelRows;
  const std::size_t left = job.cols - panel * kPanelRows;
  _mm512_mask_storeu_ps(out, static_cast<__mmask16>(left < kLanes ? (1 << left) - 1 : 0xffff), (__m512)sums);
}

// What a step of the pass reads.
template <PanelKind KIND>
inline Pass at(const Pass& pass, std::size_t step) {
  constexpr std::size_t kColumns = kBlock / steps_of(KIND);
  const std::size_t block = step / steps_of(KIND), column = step % steps_of(KIND) * kColumns;
  return {pass.activations + block * kTileBytes + column, pass.weights + block * kTileBytes + column * kPanelRows};
}

// Multiplies the blocks of `pass`, whose first two steps are begun and first is finished, and as much
// of `next`. `meanwhile(i)` is called once a block.
template <PanelKind KIND, std::size_t ROWS, typename Meanwhile>
inline void multiply_pass(const Pass& pass, const Pass& next, std::size_t blocks, const float (*scales)[2 * kLanes],
                          const ActivationBlock* about, Products (&products)[2], Vector (&sums)[ROWS],
                          Meanwhile meanwhile) {
  constexpr std::size_t kSteps = steps_of(KIND);
  const std::size_t steps = blocks * kSteps;
  for (std::size_t step = 0; step < steps; step += 2) {
    const bool last = step + 2 >= steps;
    const Pass from = last ? next : at<KIND>(pass, step + 2);
    // Where the count is odd there is no step after the last, and what lies behind it must not be read.
    const Pass after = last || step + 3 < steps ? at<KIND>(from, 1) : from;
    meanwhile(step / kSteps);
    settle();
    begin<KIND, 0>(from);
    finish<KIND, 1>(&products[1]);
    accumulate<KIND, ROWS>(products[0], scales[step / kSteps], 0, about + step / kSteps * kTileRows, sums);
    if (kSteps == 1 && step + 1 < steps) meanwhile(step + 1);
    settle();
    begin<KIND, 1>(after);
    finish<KIND, 0>(&products[0]);
    if (kSteps == 1 && step + 1 == steps) break;
    const std::size_t block = (step + 1) / kSteps;
    accumulate<KIND, ROWS>(products[1], scales[block], kSteps - 1, about + block * kTileRows, sums);
  }
}

template <PanelKind KIND, std::size_t ROWS>
void multiply(const Patch& patch, std::size_t first, Scratch& scratch) {
  constexpr std::size_t kBytes = panel_block_bytes(KIND);
  alignas(64) Products products[2];
  Turn turn{first}, later{first}, far{first};  // what is multiplied, unpacked and fetched
  for (int i = 0; i < kTurnsAhead; ++i) far.next(patch);
  std::size_t left = patch.panels * patch.parts;
  const Activations& source = patch.job.source;
  const auto index = [&](std::size_t group, std::size_t part) {
    return source.block_index(patch.begin + group * kTileRows, patch.block(part));
  };
  for (std::size_t block = 0; block < patch.size(0); ++block) {
    Unpacked& unpacked = scratch.unpacked[left % 2];
    unpack_block<KIND>(later.packed(patch) + block * kBytes, unpacked.weights[block], unpacked.scales[block]);
    fetch<KIND>(far.packed(patch) + block * kBytes);
  }
  settle();
  Pass pass{source.codes + index(0, 0) * kRowBytes, scratch.unpacked[left % 2].weights[0]};
  begin<KIND, 0>(pass);
  begin<KIND, 1>(at<KIND>(pass, 1));
  finish<KIND, 0>(&products[0]);
  for (; left; --left, turn.next(patch)) {
    const std::size_t count = patch.size(turn.part);
    const Unpacked& unpacked = scratch.unpacked[left % 2];
    later.next(patch);
    far.next(patch);
    const std::uint8_t *packed = later.packed(patch), *fetched = far.packed(patch);
    Unpacked& other = scratch.unpacked[(left - 1) % 2];
    const std::size_t wanted = left > 1 ? patch.size(later.part) : 0;
    for (std::size_t group = 0; group < patch.groups; ++group) {
      const bool ends = group + 1 == patch.groups;
      const Pass next = {source.codes + index(ends ? 0 : group + 1, ends ? later.part : turn.part) * kRowBytes,
                         ends ? other.weights[0] : unpacked.weights[0]};
      const std::size_t unpacks = group ? 0 : wanted;
      Vector* kept = scratch.sums[turn.panel * patch.groups + group];
      Vector sums[ROWS] = {};
      if (turn.part) {
#pragma GCC unroll 16
        for (std::size_t r = 0; r < ROWS; ++r) sums[r] = kept[r];
      }
      const auto unpack_one = [&](std::size_t block) {
        if (block >= unpacks) return;
        unpack_block<KIND>(packed + block * kBytes, other.weights[block], other.scales[block]);
        fetch<KIND>(fetched + block * kBytes);
      };
      multiply_pass<KIND, ROWS>(pass, next, count, unpacked.scales, source.blocks + index(group, turn.part), products,
                                sums, unpack_one);
      unpack_one(count);  // parts differ by up to one block
      pass = next;
      if (turn.part + 1 < patch.parts) {
#pragma GCC unroll 16
        for (std::size_t r = 0; r < ROWS; ++r) kept[r] = sums[r];
        continue;
      }
      const std::size_t row = patch.begin + group * kTileRows;
#pragma GCC unroll 16
      for (std::size_t r = 0; r < ROWS; ++r) {  // no index that varies: the sums stay in registers
        if (row + r < patch.end) write(patch.job, row + r, turn.first + turn.panel, sums[r]);
      }
    }
  }
}

// One tile of rows: panels follow one another in memory, and are taken as one run of blocks.
template <PanelKind KIND>
struct Run {
  static constexpr std::size_t kSteps = steps_of(KIND), kBytes = panel_block_bytes(KIND);
  const IntegerPanels& job;
  Stream& stream;
  const std::size_t blocks = job.source.columns / kBlock, count = blocks * job.count();
  const std::size_t start = job.source.block_index(job.begin, 0);
  std::size_t unpacked = 0;             // blocks
  std::size_t begun = 0, column = 0;    // steps; of a panel

  void unpack_next() {
    if (unpacked == count) return;
    const std::uint8_t* from = job.panel + unpacked * kBytes;
    for (std::size_t line = 0; line < kBytes; line += 64) {
      _mm_prefetch(from + kAhead + line, _MM_HINT_T1);
      _mm_prefetch(from + kNear + line, _MM_HINT_T0);
    }
    unpack_block<KIND>(from, stream.weights[unpacked % kRing], stream.scales[unpacked % kRing]);
    ++unpacked;
  }
  // Past the last step it multiplies what it multiplied before: nobody reads that.
  template <int ODD>
  void begin_next() {
    const Pass first = {job.source.codes + start * kRowBytes + column / kSteps * kTileBytes,
                        stream.weights[begun / kSteps % kRing]};
    begin<KIND, ODD>(at<KIND>(first, begun % kSteps));
    ++begun;
    if (++column == blocks * kSteps) column = 0;
  }
  template <std::size_t ROWS>
  void own_outputs(std::size_t panel) const {
    float* out = job.out + job.begin * job.stride + panel * kPanelRows;
    for (std::size_t r = 0; r < ROWS; ++r) __builtin_prefetch(out + r * job.stride, 1);
  }
};

template <PanelKind KIND, std::size_t ROWS>
void multiply_run(const IntegerPanels& job, Stream& stream) {
  constexpr std::size_t kSteps = steps_of(KIND);
  alignas(64) Products products[2];
  Run<KIND> run{job, stream};
  for (std::size_t i = 0; i < kLead; ++i) run.unpack_next();
  settle();
  run.template begin_next<0>();
  run.template begin_next<1>();
  finish<KIND, 0>(&products[0]);
  std::size_t added = 0;
  for (std::size_t panel = 0; panel < job.count(); ++panel) {
    run.template own_outputs<ROWS>(panel);
    Vector sums[ROWS] = {};
    const ActivationBlock* about = job.source.blocks + run.start;
    for (std::size_t step = 0; step < run.blocks * kSteps; step += 2) {
      run.unpack_next();
      settle();
      run.template begin_next<0>();
      finish<KIND, 1>(&products[1]);
      accumulate<KIND, ROWS>(products[0], stream.scales[added % kRing], 0, about, sums);
      if (kSteps == 1) ++added, about += kTileRows, run.unpack_next();
      settle();
      run.template begin_next<1>();
      finish<KIND, 0>(&products[0]);
      accumulate<KIND, ROWS>(products[1], stream.scales[added % kRing], kSteps - 1, about, sums);
      ++added, about += kTileRows;
    }
#pragma GCC unroll 16
    for (std::size_t r = 0; r < ROWS; ++r) {
      if (job.begin + r < job.end) write(job, job.begin + r, panel, sums[r]);
    }
  }
}

template <PanelKind KIND>
void panels(const IntegerPanels& job, float* scratch) {
  const std::size_t blocks = job.source.columns / kBlock, parts = (blocks + kTileBlocks - 1) / kTileBlocks;
  const auto least = [](std::size_t a, std::size_t b) { return a < b ? a : b; };
  const bool half = job.end - job.begin <= kHalfTile;
  configure<KIND>(half ? kHalfTile : kTileRows);
  if (job.end - job.begin <= kTileRows && blocks * steps_of(KIND) % 2 == 0) {
    Stream& mine = *reinterpret_cast<Stream*>(scratch);
    half ? multiply_run<KIND, kHalfTile>(job, mine) : multiply_run<KIND, kTileRows>(job, mine);
    return _tile_release();
  }
  for (std::size_t first = 0; first < job.count(); first += kTilePanels) {
    const std::size_t panels = least(kTilePanels, job.count() - first);
    for (std::size_t row = job.begin; row < job.end; row += kTileGroups * kTileRows) {
      const std::size_t end = least(row + kTileGroups * kTileRows, job.end);
      const Patch patch = {job, row, end, panels, (end - row + kTileRows - 1) / kTileRows, blocks, parts};
      multiply<KIND, kTileRows>(patch, first, *reinterpret_cast<Scratch*>(scratch));
    }
  }
  _tile_release();
}

}  // namespace

void tile_panels(const IntegerPanels& job, float* scratch) {
  switch (job.kind) {
    case PanelKind::Q4: return panels<PanelKind::Q4>(job, scratch);
    case PanelKind::Q4Min: return panels<PanelKind::Q4Min>(job, scratch);
    case PanelKind::Q5: return panels<PanelKind::Q5>(job, scratch);
    case PanelKind::Q5Min: return panels<PanelKind::Q5Min>(job, scratch);
    case PanelKind::Q6: return panels<PanelKind::Q6>(job, scratch);
    case PanelKind::Q8: return panels<PanelKind::Q8>(job, scratch);
  }
}

#endif

}  // namespace headrace::HEADRACE_LEVEL
