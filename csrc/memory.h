// Memory of a model: zeroed pages from the system, given back when the owner goes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace headrace {

// Pieces of `size` that hold `count`.
inline std::size_t chunks(std::size_t count, std::size_t size) { return (count + size - 1) / size; }

// Zeroed, page-aligned, not copied. Pages come into being when first touched; large regions ask for
// huge pages. Throws std::bad_alloc.
class Region {
 public:
  Region() = default;
  explicit Region(std::size_t bytes);
  ~Region();
  Region(Region&& other) noexcept : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Region& operator=(Region&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  std::uint8_t* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  // Replace by a larger region where `bytes` do not fit; the content is lost then.
  void grow(std::size_t bytes);

 private:
  std::uint8_t* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// Small regions beside each other in large ones, so that they lie in huge pages: a stream of weights
// that meets a new small page every few hundred nanoseconds waits for each. Given back all at once.
class Arena {
 public:
  // Zeroed, at a multiple of 64 bytes. Throws std::bad_alloc.
  std::uint8_t* take(std::size_t bytes);

 private:
  std::vector<Region> regions_;
  std::size_t used_ = 0;  // of the last
};

// a · b, or std::bad_alloc where it does not fit 47 bits: no machine has that.
std::size_t product(std::size_t a, std::size_t b);

}  // namespace headrace
