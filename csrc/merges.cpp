// Splits, found by looking up every beginning of a piece and, where there is one, the rest.
#include "merges.h"

#include <algorithm>
#include <stdexcept>
#include <string_view>
#include <unordered_map>

namespace headrace {

std::vector<std::pair<std::int32_t, std::int32_t>> merges(const std::vector<std::string>& pieces,
                                                          const std::vector<std::int32_t>& order) {
  std::unordered_map<std::string_view, std::int32_t> numbers;
  numbers.reserve(pieces.size());
  for (std::size_t i = 0; i < pieces.size(); ++i) numbers[pieces[i]] = static_cast<std::int32_t>(i);
  std::vector<std::pair<std::int32_t, std::int32_t>> found;
  found.reserve(2 * pieces.size());
  for (const std::int32_t number : order) {
    if (number < 0 || static_cast<std::size_t>(number) >= pieces.size()) {
      throw std::invalid_argument("there is no piece " + std::to_string(number));
    }
    const std::string_view piece = pieces[static_cast<std::size_t>(number)];
    const auto first = static_cast<std::ptrdiff_t>(found.size());
    for (std::size_t at = 1; at < piece.size(); ++at) {
      if ((piece[at] & 0xC0) == 0x80) continue;  // within a character
      const auto left = numbers.find(piece.substr(0, at));
      if (left == numbers.end()) continue;
      const auto right = numbers.find(piece.substr(at));
      if (right != numbers.end()) found.emplace_back(left->second, right->second);
    }
    std::sort(found.begin() + first, found.end());
  }
  return found;
}

}  // namespace headrace
