// One step's rows, as the host planned them, and the check that they cannot hurt.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "sample.h"

namespace headrace {

// Copies of the caller's arrays, so that nobody can change them between the check and the use.
struct Batch {
  std::vector<std::int32_t> tokens, positions, slots;  // [rows]
  std::vector<std::int32_t> types;                     // [rows] or empty: all 0
  std::vector<std::int32_t> row_starts;                // [sequences + 1]
  std::vector<std::int32_t> context_lengths;           // [sequences]
  std::vector<std::int32_t> given;                     // [sequences] tokens that were given, or empty
  std::vector<std::int32_t> block_tables;              // [sequences, widest]
  std::vector<std::int32_t> sampled_rows;              // [samples]
  std::vector<std::int32_t> adapters;                  // [sequences] of a number or -1; or empty: none
  Sampling sampling;
  bool open = false;  // `sampling` comes later
  std::size_t widest = 0;

  std::size_t rows() const { return tokens.size(); }
  std::size_t sequences() const { return context_lengths.size(); }
  std::size_t samples() const { return sampled_rows.size(); }
};

struct BatchLimits {
  std::size_t tokens;  // that can be read
  std::size_t vocabulary;  // that can be sampled
  std::size_t positions, types;  // that there are embeddings of
  bool pools;  // a sequence without rows has no mean
  std::size_t blocks, block_size;
};

// All but `sampling`. Throws std::invalid_argument that names the field and what was expected.
void check(const Batch& batch, const BatchLimits& limits);

// `sampling` alone.
void check_sampling(const Batch& batch, const BatchLimits& limits);

}  // namespace headrace
