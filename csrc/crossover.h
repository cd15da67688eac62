// From how many rows on the tiles of a level are quicker than its vectors.
#pragma once

#include <cstddef>

#include "kernels/kernels.h"

namespace headrace {

// Rows of a tile (1 to 16) from which on tile_panels is quicker than integer_panels on this machine; 17:
// never. Takes a millisecond or two. Results do not depend on it: both are equal.
std::size_t measure_crossover(const Kernels& kernels);

}  // namespace headrace
