// Choosing a token from logits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"

namespace headrace {

struct SamplingRow {
  float temperature;  // 0: the most likely token
  std::int32_t top_k;  // 0: all
  float top_p;
  float uniform;  // in [0, 1)
};

// A candidate in a sort buffer of `count` of them, one for each token of the vocabulary.
struct Candidate {
  float logit;
  std::int32_t token;
};

// Returns the token; *logprob is its natural log-probability under the untempered softmax.
std::int32_t sample(const Kernels& kernels, const float* logits, std::size_t count, const SamplingRow& row,
                    Candidate* candidates, float* logprob);

}  // namespace headrace
