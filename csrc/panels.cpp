// Packing at load: each format's blocks to the one panel layout.
#include "panels.h"

#include <cmath>
#include <cstring>

namespace headrace {

namespace {

// One row's block of 32 columns, taken apart.
struct Block {
  std::uint16_t scale = 0;
  std::uint16_t second = 0;  // minimum, or the scale of the upper 16 columns
  std::uint8_t codes[kBlock] = {};
};

bool is_k(Format format) { return size_of(format).values == 256; }

void unpack_small(Format format, const std::uint8_t* block, Block* out) {
  if (format == Format::MXFP4) {
    out->scale = float_to_half(std::ldexp(1.0f, block[0] - 128));
    for (int i = 0; i < 16; ++i) {
      out->codes[i] = static_cast<std::uint8_t>(kE2M1[block[1 + i] & 15]);
      out->codes[i + 16] = static_cast<std::uint8_t>(kE2M1[block[1 + i] >> 4]);
    }
    return;
  }
  out->scale = load16(block);
  const bool minimum = format == Format::Q4_1 || format == Format::Q5_1;
  const bool five = format == Format::Q5_0 || format == Format::Q5_1;
  const std::uint8_t* at = block + 2;
  if (minimum) {
    out->second = load16(at);
    at += 2;
  }
  if (format == Format::Q8_0) {
    std::memcpy(out->codes, at, kBlock);
    return;
  }
  std::uint32_t high = 0;
  if (five) {
    std::memcpy(&high, at, 4);
    at += 4;
  }
  for (int i = 0; i < 16; ++i) {
    out->codes[i] = static_cast<std::uint8_t>((at[i] & 15) | (high >> i & 1) << 4);
    out->codes[i + 16] = static_cast<std::uint8_t>(at[i] >> 4 | (high >> (i + 16) & 1) << 4);
  }
}

// The scales of sub-block `sub` (of 8, 32 columns each) of a K block.
void k_scales(Format format, const std::uint8_t* block, int sub, float* scale, float* second) {
  if (format == Format::Q6_K) {
    const float step = half_to_float(load16(block + 208));
    *scale = step * static_cast<float>(static_cast<std::int8_t>(block[192 + 2 * sub]));
    *second = step * static_cast<float>(static_cast<std::int8_t>(block[193 + 2 * sub]));
    return;
  }
  int scale_code, minimum_code;
  k_scale_min(block + 4, sub, &scale_code, &minimum_code);
  *scale = half_to_float(load16(block)) * static_cast<float>(scale_code);
  *second = -half_to_float(load16(block + 2)) * static_cast<float>(minimum_code);
}

// The code that stands for zero.
std::uint8_t zero_code(PanelKind kind) {
  switch (kind) {
    case PanelKind::Q4: return 8;
    case PanelKind::Q5: return 16;
    case PanelKind::Q6: return 32;
    default: return 0;
  }
}

// Scales of 0 become 1, over codes of zero: the kernels multiply a scale by adding to its exponent.
Block without_zero_scales(PanelKind kind, Block block) {
  constexpr std::uint16_t kOne = 0x3c00, kMagnitude = 0x7fff;
  const auto settle = [&](std::uint16_t& scale, int begin, int end) {
    if (scale & kMagnitude) return;
    scale = kOne;
    std::memset(block.codes + begin, zero_code(kind), static_cast<std::size_t>(end - begin));
  };
  const bool two = kind == PanelKind::Q6;
  settle(block.scale, 0, two ? 16 : kBlock);
  if (two) settle(block.second, 16, kBlock);
  return block;
}

// Put a row's block into its lane.
void place(PanelKind kind, const Block& given, int row, std::uint8_t* out) {
  const Block block = without_zero_scales(kind, given);
  std::memcpy(out + 2 * row, &block.scale, 2);
  out += 32;
  if (kind == PanelKind::Q4Min || kind == PanelKind::Q5Min || kind == PanelKind::Q6) {
    std::memcpy(out + 2 * row, &block.second, 2);
    out += 32;
  }
  if (kind == PanelKind::Q8) {
    for (int group = 0; group < 8; ++group) std::memcpy(out + 64 * group + 4 * row, block.codes + 4 * group, 4);
    return;
  }
  std::uint8_t* high = out + 256;
  for (int group = 0; group < 4; ++group) {
    for (int j = 0; j < 4; ++j) {
      const int first = block.codes[4 * group + j];
      const int second = block.codes[16 + 4 * group + j];
      const int at = 4 * row + j;
      out[64 * group + at] = static_cast<std::uint8_t>((first & 15) | (second & 15) << 4);
      if (kind == PanelKind::Q6) {
        high[at] = static_cast<std::uint8_t>(high[at] | (first >> 4) << 2 * group);
        high[64 + at] = static_cast<std::uint8_t>(high[64 + at] | (second >> 4) << 2 * group);
      } else if (kind == PanelKind::Q5 || kind == PanelKind::Q5Min) {
        high[at] = static_cast<std::uint8_t>(high[at] | (first >> 4) << 2 * group | (second >> 4) << (2 * group + 1));
      }
    }
  }
}

// Codes of these formats lie in the bytes of a panel as they do in their block, four at a time.
bool same_words(Format format) {
  return format == Format::Q4_0 || format == Format::Q4_1 || format == Format::Q8_0;
}

// A panel of such a format: block by block, so that it is written once and in order.
void place_words(Format format, const std::uint8_t* weight, std::size_t rows, std::size_t stride, std::size_t blocks,
                 std::uint8_t* out) {
  PanelKind kind{};
  panel_kind(format, &kind);
  constexpr std::uint16_t kOne = 0x3c00, kMagnitude = 0x7fff;
  const std::uint8_t zero = kind == PanelKind::Q4 ? 0x88 : 0;
  const int words = kind == PanelKind::Q8 ? 8 : 4;
  const std::size_t scales = kind == PanelKind::Q4Min ? 2 : 1;
  const std::size_t bytes = static_cast<std::size_t>(size_of(format).bytes);
  for (std::size_t i = 0; i < blocks; ++i, out += panel_block_bytes(kind)) {
    for (std::size_t row = 0; row < kPanelRows; ++row) {
      const std::uint8_t* from = weight + row * stride + i * bytes;
      std::uint8_t* codes = out + 32 * scales + 4 * row;
      const bool none = row >= rows || !(load16(from) & kMagnitude);
      const std::uint16_t scale = none ? kOne : load16(from);  // see without_zero_scales
      std::memcpy(out + 2 * row, &scale, 2);
      if (scales == 2) {
        const std::uint16_t minimum = row >= rows ? std::uint16_t{0} : load16(from + 2);
        std::memcpy(out + 32 + 2 * row, &minimum, 2);
      }
      for (int word = 0; word < words; ++word) {
        if (none) {
          std::memset(codes + 64 * word, zero, 4);
        } else {
          std::memcpy(codes + 64 * word, from + 2 * scales + 4 * word, 4);
        }
      }
    }
  }
}

}  // namespace

bool panel_kind(Format format, PanelKind* kind) {
  switch (format) {
    case Format::Q4_0: *kind = PanelKind::Q4; return true;
    case Format::Q4_1:
    case Format::Q4_K: *kind = PanelKind::Q4Min; return true;
    case Format::Q5_0: *kind = PanelKind::Q5; return true;
    case Format::Q5_1:
    case Format::Q5_K: *kind = PanelKind::Q5Min; return true;
    case Format::Q6_K: *kind = PanelKind::Q6; return true;
    case Format::MXFP4:
    case Format::Q8_0: *kind = PanelKind::Q8; return true;
    default: return false;
  }
}

bool scales_fit(Format format, const std::uint8_t* weight, std::size_t rows, std::size_t columns) {
  const std::size_t bytes = static_cast<std::size_t>(size_of(format).bytes);
  if (format == Format::MXFP4) {
    for (std::size_t i = 0; i < rows * columns / kBlock; ++i) {
      const int exponent = weight[i * bytes] - 128;
      if (exponent < -24 || exponent > 15) return false;
    }
    return true;
  }
  if (!is_k(format)) return true;
  const std::size_t blocks = rows * columns / 256;
  for (std::size_t i = 0; i < blocks; ++i) {
    for (int sub = 0; sub < 8; ++sub) {
      float scale, second;
      k_scales(format, weight + i * bytes, sub, &scale, &second);
      if (std::fabs(scale) > 65504 || std::fabs(second) > 65504) return false;
    }
  }
  return true;
}

void pack_panel(Format format, const std::uint8_t* weight, std::size_t rows, std::size_t columns,
                std::size_t panel, std::uint8_t* out) {
  PanelKind kind{};
  panel_kind(format, &kind);
  const std::size_t step = static_cast<std::size_t>(panel_block_bytes(kind));
  const std::size_t stride = row_bytes(format, columns);
  const std::size_t bytes = static_cast<std::size_t>(size_of(format).bytes);
  const std::size_t blocks = columns / kBlock;
  if (same_words(format)) {
    const std::size_t first = panel * kPanelRows;
    return place_words(format, weight + first * stride, rows - first, stride, blocks, out);
  }
  std::memset(out, 0, blocks * step);
  for (int row = 0; row < kPanelRows; ++row) {
    const std::uint8_t* from = weight + (panel * kPanelRows + row) * stride;
    Block block;
    if (panel * kPanelRows + row >= rows) {
      for (std::size_t i = 0; i < blocks; ++i) place(kind, block, row, out + i * step);
      continue;
    }
    if (!is_k(format)) {
      for (std::size_t i = 0; i < blocks; ++i) {
        unpack_small(format, from + i * bytes, &block);
        place(kind, block, row, out + i * step);
      }
      continue;
    }
    std::uint8_t codes[256];
    for (std::size_t i = 0; i < blocks; ++i) {
      const int sub = static_cast<int>(i % 8);
      const std::uint8_t* at = from + i / 8 * bytes;
      if (sub == 0) k_codes(format, at, codes);
      float scale, second;
      k_scales(format, at, sub, &scale, &second);
      block.scale = float_to_half(scale);
      block.second = float_to_half(second);
      std::memcpy(block.codes, codes + kBlock * sub, kBlock);
      place(kind, block, row, out + i * step);
    }
  }
}

}  // namespace headrace
