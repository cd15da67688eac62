// The packed form of a quantised weight that the integer kernels read.
//
// A panel holds 16 output rows, so that a vector lane is an output row and a panel is read once
// from its first byte to its last. For each block of 32 columns it has, in this order:
//   16 scales (binary16); 16 minima or, for Q6_K, the scales of columns 16..31;
//   the low four bits: 4 groups of 64 bytes; byte 4 · row + j of group g has columns 4g + j (low
//     nibble) and 16 + 4g + j (high nibble). Eight-bit codes: 8 groups, columns 4g + j;
//   the high bits. One a code (Q5): 64 bytes, bit 2g + half of byte 4 · row + j is that of column
//     16 · half + 4g + j. Two a code (Q6_K): 64 bytes a half, bits 2g and 2g + 1.
// MXFP4 is eight-bit codes, twice its elements, under half its scale.
// A value is scale · (code - zero) or scale · code + minimum. No scale is 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quants.h"

namespace headrace {

constexpr int kPanelRows = 16;
constexpr int kBlock = 32;

enum class PanelKind : std::uint8_t { Q4, Q4Min, Q5, Q5Min, Q6, Q8 };

constexpr int kPanelKinds = 6;

constexpr int panel_block_bytes(PanelKind kind) {
  switch (kind) {
    case PanelKind::Q4: return 32 + 256;
    case PanelKind::Q4Min: return 64 + 256;
    case PanelKind::Q5: return 32 + 256 + 64;
    case PanelKind::Q5Min: return 64 + 256 + 64;
    case PanelKind::Q6: return 64 + 256 + 128;
    case PanelKind::Q8: return 32 + 512;
  }
  return 0;
}

// The kind that holds `format`; false where there is none (F32, F16, BF16).
bool panel_kind(Format format, PanelKind* kind);

// Whether every scale of the weight fits binary16, as packing a K format or MXFP4 needs.
bool scales_fit(Format format, const std::uint8_t* weight, std::size_t rows, std::size_t columns);

// Pack rows 16 · panel and on of a weight [rows, columns] into `out`, columns / 32 blocks of
// panel_block_bytes; rows past the last are zero.
void pack_panel(Format format, const std::uint8_t* weight, std::size_t rows, std::size_t columns,
                std::size_t panel, std::uint8_t* out);

}  // namespace headrace
