// Choosing tokens from logits; `SamplingRows` of the host's contract says how.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"

namespace headrace {

struct SamplingRow {
  float temperature;  // 0: the most likely token
  std::int32_t top_k;  // 0: all
  float top_p;
  float min_p;
  float uniform;         // in [0, 1)
  std::int32_t target;  // the token, where it is not to be chosen; -1
};

// Changes to single logits of a row: (logit / divisor where it is positive, logit · divisor where not) + addend.
struct Edits {
  std::vector<std::int32_t> starts;  // [samples + 1], or empty: no row has any
  std::vector<std::int32_t> tokens;  // [entries]
  std::vector<float> divisors, addends;
};

// Which tokens a row may choose from: bit t % 32 of word t / 32 is token t's.
struct Masks {
  std::vector<std::int32_t> rows;  // [samples] mask of the row, or -1; empty: no row has one
  std::vector<std::uint32_t> allowed;  // [masks, words]
  std::size_t words = 0;

  std::size_t count() const { return words ? allowed.size() / words : 0; }
};

struct Sampling {
  std::vector<SamplingRow> rows;  // [samples]
  Edits edits;
  Masks masks;
  std::size_t ranked = 0;  // most likely tokens to report of every row
};

// A candidate in a sort buffer of `count` of them, one for each token of the vocabulary.
struct Candidate {
  float logit;
  std::int32_t token;
};

// Of one vocabulary each.
struct SampleScratch {
  Candidate* candidates;
  float* edited;
};

// Natural log-probabilities are under the softmax of the logits as they came. `ranked` places are
// written to the last two, most likely first.
struct SampleResult {
  std::int32_t* token;
  float* logprob;
  std::int32_t* ranked_tokens;
  float* ranked_logprobs;
};

// Row `index` of the step; logits [count].
void sample(const Kernels& kernels, const float* logits, std::size_t count, const Sampling& sampling,
            std::size_t index, const SampleScratch& scratch, const SampleResult& out);

}  // namespace headrace
