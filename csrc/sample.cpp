// Sampling without sorting the vocabulary: the most likely candidates are sorted in growing portions
// until the cut and the chosen token lie within them.
#include "sample.h"

#include <algorithm>
#include <cmath>

namespace headrace {

namespace {

bool likelier(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

// Candidates in order, sorted as far as asked.
class Ranked {
 public:
  Ranked(Candidate* all, std::size_t count) : all_(all), count_(count) {}
  const Candidate& operator[](std::size_t index) {
    while (index >= sorted_) {
      const std::size_t portion = std::min(count_ - sorted_, std::max<std::size_t>(64, 3 * sorted_));
      Candidate* from = all_ + sorted_;
      if (sorted_ + portion < count_) std::nth_element(from, from + portion, all_ + count_, likelier);
      std::sort(from, from + portion, likelier);
      sorted_ += portion;
    }
    return all_[index];
  }

 private:
  Candidate* all_;
  std::size_t count_;
  std::size_t sorted_ = 0;
};

}  // namespace

std::int32_t sample(const Kernels& kernels, const float* logits, std::size_t count, const SamplingRow& row,
                    Candidate* candidates, float* logprob) {
  const std::size_t best = kernels.largest(logits, count);
  const float normaliser = kernels.log_sum_exp(logits, count, logits[best]);
  if (row.temperature == 0) {
    *logprob = logits[best] - normaliser;
    return static_cast<std::int32_t>(best);
  }
  const float top = logits[best];
  const auto mass = [&](float logit) { return std::exp(static_cast<double>((logit - top) / row.temperature)); };
  for (std::size_t i = 0; i < count; ++i) {
    // A logit that is no number must not break the order that sorting relies on.
    candidates[i] = {std::isnan(logits[i]) ? -INFINITY : logits[i], static_cast<std::int32_t>(i)};
  }
  Ranked ranked(candidates, count);
  std::size_t kept = count;
  if (row.top_k > 0) kept = std::min(kept, static_cast<std::size_t>(row.top_k));
  double total = 0;
  if (kept < count) {
    for (std::size_t i = 0; i < kept; ++i) total += mass(ranked[i].logit);
  } else {
    for (std::size_t i = 0; i < count; ++i) total += mass(candidates[i].logit);
  }
  if (row.top_p < 1) {
    const double wanted = static_cast<double>(row.top_p) * total;
    double reached = 0;
    std::size_t size = 0;
    while (size < kept && (size == 0 || reached < wanted)) reached += mass(ranked[size++].logit);
    kept = size;
    total = reached;
  }
  const double target = static_cast<double>(row.uniform) * total;
  double reached = 0;
  std::size_t chosen = 0;
  for (std::size_t i = 0; i < kept; ++i) {
    const double weight = mass(ranked[i].logit);
    if (weight > 0) chosen = i;  // rounding at the end must not choose an impossible token
    reached += weight;
    if (reached > target) break;
  }
  *logprob = ranked[chosen].logit - normaliser;
  return ranked[chosen].token;
}

}  // namespace headrace
