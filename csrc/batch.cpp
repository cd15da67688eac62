// Every index that a kernel will follow is checked here, once a step.
#include "batch.h"

#include <cmath>
#include <stdexcept>
#include <string>

namespace headrace {

namespace {

[[noreturn]] void refuse(const std::string& field, std::size_t index, double value, const std::string& expected) {
  std::string number = std::to_string(value);
  if (value == std::floor(value)) number = std::to_string(static_cast<long long>(value));
  throw std::invalid_argument(field + "[" + std::to_string(index) + "] is " + number + ", expected " + expected);
}

void check_range(const std::vector<std::int32_t>& values, const std::string& field, std::size_t end) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (values[i] < 0 || static_cast<std::size_t>(values[i]) >= end) {
      refuse(field, i, values[i], "0 to " + std::to_string(end - 1));
    }
  }
}

void check_length(std::size_t actual, const std::string& field, std::size_t expected) {
  if (actual != expected) {
    throw std::invalid_argument(field + " has " + std::to_string(actual) + " values, expected " +
                                std::to_string(expected));
  }
}

void check_sequence(const Batch& batch, const BatchLimits& limits, std::size_t index) {
  const std::int32_t first = batch.row_starts[index], last = batch.row_starts[index + 1];
  const std::int32_t length = batch.context_lengths[index];
  if (last < first) refuse("row_starts", index + 1, last, "no less than the one before");
  if (length < 0) refuse("context_lengths", index, length, "0 or more");
  const std::size_t needed = (static_cast<std::size_t>(length) + limits.block_size - 1) / limits.block_size;
  if (needed > batch.widest) {
    refuse("context_lengths", index, length, "a length that its block table covers");
  }
  for (std::size_t i = 0; i < needed; ++i) {
    const std::size_t at = index * batch.widest + i;
    const std::int32_t block = batch.block_tables[at];
    if (block < 0 || static_cast<std::size_t>(block) >= limits.blocks) {
      refuse("block_tables", at, block, "0 to " + std::to_string(limits.blocks - 1));
    }
  }
  if (limits.pools && last == first) refuse("row_starts", index + 1, last, "a row for every sequence");
  for (std::int32_t row = first; row < last; ++row) {
    const auto at = static_cast<std::size_t>(row);
    const std::int32_t position = batch.positions[at];
    if (position < 0 || position >= length) {
      refuse("positions", at, position, "0 to " + std::to_string(length - 1) + ", its sequence's context");
    }
    if (row > first && position <= batch.positions[at - 1]) refuse("positions", at, position, "ascending positions");
  }
}

void check_row(const SamplingRow& row, std::size_t i, std::size_t vocabulary) {
  if (!(row.temperature >= 0) || std::isinf(row.temperature)) {
    refuse("sampling.temperature", i, row.temperature, "a finite number from 0");
  }
  if (row.top_k < 0) refuse("sampling.top_k", i, row.top_k, "0 or more");
  if (!(row.top_p >= 0)) refuse("sampling.top_p", i, row.top_p, "a number from 0");
  if (!(row.min_p >= 0 && row.min_p <= 1)) refuse("sampling.min_p", i, row.min_p, "in [0, 1]");
  if (!(row.uniform >= 0 && row.uniform < 1)) refuse("sampling.uniform", i, row.uniform, "in [0, 1)");
  if (row.target < -1 || (row.target >= 0 && static_cast<std::size_t>(row.target) >= vocabulary)) {
    refuse("sampling.target", i, row.target, "-1 to " + std::to_string(vocabulary - 1));
  }
}

void check_edits(const Edits& edits, std::size_t samples, std::size_t vocabulary) {
  const std::size_t entries = edits.tokens.size();
  if (edits.starts.empty() && !entries) return;
  check_length(edits.starts.size(), "sampling.edits.starts", samples + 1);
  check_length(edits.divisors.size(), "sampling.edits.divisors", entries);
  check_length(edits.addends.size(), "sampling.edits.addends", entries);
  check_range(edits.starts, "sampling.edits.starts", entries + 1);
  if (edits.starts.front() != 0) refuse("sampling.edits.starts", 0, edits.starts.front(), "0");
  if (static_cast<std::size_t>(edits.starts.back()) != entries) {
    refuse("sampling.edits.starts", samples, edits.starts.back(), "the number of entries, " + std::to_string(entries));
  }
  check_range(edits.tokens, "sampling.edits.tokens", vocabulary);
  for (std::size_t i = 0; i < samples; ++i) {
    if (edits.starts[i + 1] < edits.starts[i]) {
      refuse("sampling.edits.starts", i + 1, edits.starts[i + 1], "no less than the one before");
    }
  }
  for (std::size_t i = 0; i < entries; ++i) {
    if (!(edits.divisors[i] > 0)) refuse("sampling.edits.divisors", i, edits.divisors[i], "a number above 0");
    if (!(edits.addends[i] < INFINITY)) refuse("sampling.edits.addends", i, edits.addends[i], "a number, or -inf");
  }
}

void check_masks(const Masks& masks, std::size_t samples, std::size_t vocabulary) {
  if (masks.rows.empty() && masks.allowed.empty()) return;
  check_length(masks.rows.size(), "sampling.masks.rows", samples);
  const std::size_t words = (vocabulary + 31) / 32;
  if (masks.count() && masks.words != words) {
    throw std::invalid_argument("sampling.masks.allowed has " + std::to_string(masks.words) +
                                " words a mask, expected " + std::to_string(words));
  }
  for (std::size_t i = 0; i < samples; ++i) {
    const std::int32_t mask = masks.rows[i];
    if (mask < -1 || (mask >= 0 && static_cast<std::size_t>(mask) >= masks.count())) {
      refuse("sampling.masks.rows", i, mask, "-1, or the index of a mask");
    }
  }
}

}  // namespace

void check(const Batch& batch, const BatchLimits& limits) {
  const std::size_t rows = batch.rows(), sequences = batch.sequences();
  check_length(batch.positions.size(), "positions", rows);
  check_length(batch.slots.size(), "slots", rows);
  check_length(batch.row_starts.size(), "row_starts", sequences + 1);
  if (!batch.given.empty()) check_length(batch.given.size(), "given", batch.sequences());
  check_length(batch.block_tables.size(), "block_tables", sequences * batch.widest);
  if (!batch.adapters.empty()) check_length(batch.adapters.size(), "adapters", sequences);
  if (!batch.types.empty()) check_length(batch.types.size(), "types", rows);
  check_range(batch.tokens, "tokens", limits.tokens);
  check_range(batch.types, "types", limits.types);
  check_range(batch.positions, "positions", limits.positions);
  check_range(batch.slots, "slots", limits.blocks * limits.block_size);
  check_range(batch.sampled_rows, "sampled_rows", rows);
  check_range(batch.row_starts, "row_starts", rows + 1);
  if (batch.row_starts.front() != 0) refuse("row_starts", 0, batch.row_starts.front(), "0");
  if (static_cast<std::size_t>(batch.row_starts.back()) != rows) {
    refuse("row_starts", sequences, batch.row_starts.back(), "the number of rows, " + std::to_string(rows));
  }
  for (std::size_t i = 0; i < sequences; ++i) check_sequence(batch, limits, i);
}

void check_sampling(const Batch& batch, const BatchLimits& limits) {
  const Sampling& sampling = batch.sampling;
  const std::size_t samples = batch.samples();
  check_length(sampling.rows.size(), "sampling", samples);
  for (std::size_t i = 0; i < samples; ++i) check_row(sampling.rows[i], i, limits.vocabulary);
  check_edits(sampling.edits, samples, limits.vocabulary);
  check_masks(sampling.masks, samples, limits.vocabulary);
}

}  // namespace headrace
