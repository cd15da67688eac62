// The crossover, measured on one panel of a usual width that lies in the cache.
#include "crossover.h"

#include <algorithm>
#include <chrono>

#include "memory.h"

namespace headrace {

namespace {

constexpr std::size_t kColumns = 1024;
constexpr int kRepetitions = 15;
constexpr double kClearly = 1.1;  // times as quick: where both are near, vectors wait less for memory

// The quickest of several, in seconds: whatever else runs can only add.
template <typename Work>
double seconds(Work work) {
  using Clock = std::chrono::steady_clock;
  double best = 1e9;
  for (int i = 0; i < kRepetitions; ++i) {
    const auto begin = Clock::now();
    work();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return best;
}

}  // namespace

std::size_t measure_crossover(const Kernels& kernels) {
  if (!kernels.tile_panels) return kTileRows + 1;
  constexpr std::size_t kBlocks = kColumns / kBlock;
  const Region panel(kBlocks * static_cast<std::size_t>(panel_block_bytes(PanelKind::Q4Min)));
  const Region codes(kTileRows * kColumns * kPlanes), blocks(kTileRows * kBlocks * sizeof(ActivationBlock));
  const Region out(kTileRows * kPanelRows * sizeof(float)), scratch(kTileScratch * sizeof(float));
  const auto job = [&](std::size_t rows) {
    const Activations source = {codes.as<std::int8_t>(), blocks.as<ActivationBlock>(), nullptr, nullptr, kColumns};
    return IntegerPanels{PanelKind::Q4Min, panel.data(), source, 0, rows, out.as<float>(), kPanelRows, kPanelRows};
  };
  const auto quicker = [&](std::size_t rows) {
    const double tile = seconds([&] { kernels.tile_panels(job(rows), scratch.as<float>()); });
    return seconds([&] { kernels.integer_panels(job(rows)); }) > kClearly * tile;
  };
  std::size_t rows = kTileRows + 1;
  while (rows > 1 && quicker(rows - 1)) --rows;
  return rows;
}

}  // namespace headrace
