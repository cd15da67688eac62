// Splits, found by looking up every beginning of a piece and, where there is one, the rest.
#include "merges.h"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string_view>

namespace headrace {

namespace {

// FNV-1a, a byte at a time.
constexpr std::uint64_t kBasis = 0xcbf29ce484222325, kPrime = 0x100000001b3;

std::uint64_t hashed(std::uint64_t hash, char byte) { return (hash ^ static_cast<std::uint8_t>(byte)) * kPrime; }

std::uint64_t hashed(std::string_view text) {
  std::uint64_t hash = kBasis;
  for (const char byte : text) hash = hashed(hash, byte);
  return hash;
}

// The numbers of pieces, in one array: a lookup that finds nothing misses the cache once.
class Numbers {
 public:
  explicit Numbers(const std::vector<std::string>& pieces)
      : pieces_(pieces), slots_(std::bit_ceil(4 * pieces.size() + 1), Slot{0, -1}) {
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      const std::uint64_t hash = hashed(pieces[i]);
      slots_[place(hash, pieces[i])] = {static_cast<std::uint32_t>(hash >> 32), static_cast<std::int32_t>(i)};
    }
  }
  // -1: there is none.
  std::int32_t find(std::uint64_t hash, std::string_view piece) const { return slots_[place(hash, piece)].number; }

 private:
  struct Slot {
    std::uint32_t tag;
    std::int32_t number;
  };
  // Where a piece is, or would be.
  std::size_t place(std::uint64_t hash, std::string_view piece) const {
    const auto tag = static_cast<std::uint32_t>(hash >> 32);
    for (std::size_t at = hash;; ++at) {
      at &= slots_.size() - 1;
      const Slot& slot = slots_[at];
      if (slot.number < 0 || (slot.tag == tag && pieces_[static_cast<std::size_t>(slot.number)] == piece)) return at;
    }
  }

  const std::vector<std::string>& pieces_;
  std::vector<Slot> slots_;
};

}  // namespace

std::vector<std::pair<std::int32_t, std::int32_t>> merges(const std::vector<std::string>& pieces,
                                                          const std::vector<std::int32_t>& order) {
  const Numbers numbers(pieces);
  std::vector<std::pair<std::int32_t, std::int32_t>> found;
  found.reserve(2 * pieces.size());
  for (const std::int32_t number : order) {
    if (number < 0 || static_cast<std::size_t>(number) >= pieces.size()) {
      throw std::invalid_argument("there is no piece " + std::to_string(number));
    }
    const std::string_view piece = pieces[static_cast<std::size_t>(number)];
    const auto first = static_cast<std::ptrdiff_t>(found.size());
    std::uint64_t hash = kBasis;
    for (std::size_t at = 1; at < piece.size(); ++at) {
      hash = hashed(hash, piece[at - 1]);
      if ((piece[at] & 0xC0) == 0x80) continue;  // within a character
      const std::int32_t left = numbers.find(hash, piece.substr(0, at));
      if (left < 0) continue;
      const std::string_view rest = piece.substr(at);
      const std::int32_t right = numbers.find(hashed(rest), rest);
      if (right >= 0) found.emplace_back(left, right);
    }
    std::sort(found.begin() + first, found.end());
  }
  return found;
}

}  // namespace headrace
