// Regions by mmap.
#include "memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>

namespace headrace {

namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kLarge = 1;  // an arena's pieces lie apart, so that each has bounds to check
#else
constexpr std::size_t kLarge = std::size_t{1} << 25;
#endif

}  // namespace

#if defined(__SANITIZE_ADDRESS__)

Region::Region(std::size_t bytes) {
  if (!bytes) return;
  constexpr std::size_t kLine = 64;
  void* at = nullptr;
  if (posix_memalign(&at, kLine, bytes)) throw std::bad_alloc();
  std::memset(at, 0, bytes);
  data_ = static_cast<std::uint8_t*>(at);
  bytes_ = bytes;
}

Region::~Region() { std::free(data_); }

#else

Region::Region(std::size_t bytes) {
  if (!bytes) return;
  constexpr std::size_t kHuge = std::size_t{1} << 21;
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) throw std::bad_alloc();
  if (bytes >= kHuge) madvise(at, bytes, MADV_HUGEPAGE);  // a hint; its failure costs speed only
  data_ = static_cast<std::uint8_t*>(at);
  bytes_ = bytes;
}

Region::~Region() {
  if (data_) munmap(data_, bytes_);
}

#endif

void Region::grow(std::size_t bytes) {
  if (bytes > bytes_) *this = Region(bytes);
}

std::uint8_t* Arena::take(std::size_t bytes) {
  constexpr std::size_t kLine = 64;
  if (regions_.empty() || regions_.back().bytes() - used_ < bytes) {
    regions_.emplace_back(bytes > kLarge ? bytes : kLarge);
    used_ = 0;
  }
  std::uint8_t* at = regions_.back().data() + used_;
  const std::size_t left = regions_.back().bytes() - used_, whole = (bytes + kLine - 1) / kLine * kLine;
  used_ += whole < left ? whole : left;
  return at;
}

std::size_t product(std::size_t a, std::size_t b) {
  std::size_t out;
  if (__builtin_mul_overflow(a, b, &out) || out >> 47) throw std::bad_alloc();
  return out;
}

}  // namespace headrace
