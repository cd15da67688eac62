// The merges of a SentencePiece BPE, which follow from its pieces and their order.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace headrace {

// Every way to split a piece into two pieces, as their numbers: the wholes in the given order, the splits of a
// whole by the numbers of its parts. Pieces are UTF-8 and split between characters; of equal ones the last counts.
// Throws std::invalid_argument where the order names no piece.
std::vector<std::pair<std::int32_t, std::int32_t>> merges(const std::vector<std::string>& pieces,
                                                          const std::vector<std::int32_t>& order);

}  // namespace headrace
