// Which instruction levels this build has and this processor can run.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace headrace {

// The levels that can run here, the best first; "portable" is always the last.
std::vector<const Kernels*> available_levels();

// The level of that name; "" is the best. Throws std::invalid_argument where it cannot run here.
const Kernels& find_level(const std::string& name);

}  // namespace headrace
