// Sampling without sorting the vocabulary: of the candidates near the most likely one, as many as the
// choice can fall on, the likeliest are sorted in growing portions until cut and choice lie within them.
#include "sample.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace headrace {

namespace {

// How far below the largest logit candidates are looked for at first, in temperatures; and from where on
// that is given up for all there are.
constexpr float kNear = 4, kFar = 100;

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

// Those of at least `floor`. A logit that is no number is none of them: it would break the order that
// sorting relies on.
std::size_t list(const float* logits, std::size_t count, float floor, Candidate* out) {
  std::size_t found = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (logits[i] >= floor) out[found++] = {logits[i], static_cast<std::int32_t>(i)};
  }
  return found;
}

// The row's logits after its edits and its mask: in place where it has none, else in `out`.
const float* edit(const float* logits, std::size_t count, const Sampling& sampling, std::size_t index, float* out) {
  const Edits& edits = sampling.edits;
  const Masks& masks = sampling.masks;
  const auto begin = edits.starts.empty() ? 0 : edits.starts[index];
  const auto end = edits.starts.empty() ? 0 : edits.starts[index + 1];
  const std::int32_t mask = masks.rows.empty() ? -1 : masks.rows[index];
  if (begin == end && mask < 0) return logits;
  std::copy_n(logits, count, out);
  for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
    const auto token = static_cast<std::size_t>(edits.tokens[i]);
    const float logit = logits[token];
    out[token] = (logit > 0 ? logit / edits.divisors[i] : logit * edits.divisors[i]) + edits.addends[i];
  }
  if (mask < 0) return out;
  const std::uint32_t* words = masks.allowed.data() + static_cast<std::size_t>(mask) * masks.words;
  for (std::size_t i = 0; i < count; i += 32) {
    const std::uint32_t allowed = words[i / 32];
    if (allowed == ~0u) continue;  // most words of a mask are all or nothing
    const std::size_t end = std::min(count - i, std::size_t{32});
    for (std::size_t bit = 0; bit < end; ++bit) {
      if (!(allowed >> bit & 1)) out[i + bit] = -INFINITY;
    }
  }
  return out;
}

// How likely a candidate is beside the one of the logit `top`.
struct Mass {
  float top, temperature;

  double operator()(const Candidate& candidate) const {
    return std::exp(static_cast<double>((candidate.logit - top) / temperature));
  }
};

// The likeliest candidates, in no order: as many as are `enough`, or all there are.
template <typename Enough>
std::size_t gather(const float* logits, std::size_t count, const Mass& mass, Candidate* out, Enough enough) {
  for (float depth = kNear; depth < kFar; depth *= 2) {
    const std::size_t found = list(logits, count, mass.top - depth * mass.temperature, out);
    if (enough(found, static_cast<double>(depth))) return found;
  }
  return list(logits, count, std::numeric_limits<float>::lowest(), out);
}

// A token by the row's cuts and its place on the cumulative distribution; `top`: the largest logit.
std::int32_t draw(const Kernels& kernels, const float* logits, std::size_t count, float top, const SamplingRow& row,
                  Candidate* candidates) {
  const Mass mass{top, row.temperature};
  const bool counted = row.top_k > 0 && static_cast<std::size_t>(row.top_k) < count;
  const std::size_t most = counted ? static_cast<std::size_t>(row.top_k) : count;
  const double least = static_cast<double>(row.min_p), share = static_cast<double>(row.top_p);
  double total = counted ? 0 : kernels.mass(logits, count, top, row.temperature);
  std::size_t kept = gather(logits, count, mass, candidates, [&](std::size_t found, double depth) {
    if (counted) return found >= most;
    if (share >= 1 && least > 0) return std::exp(-0.99 * depth) < least;
    double reached = 0;
    const double reach = total * (share < 1 ? share : static_cast<double>(row.uniform));
    for (std::size_t i = 0; i < found && reached <= reach; ++i) reached += mass(candidates[i]);
    return reached > reach;
  });
  if (!kept) return 0;  // nothing is allowed
  Ranked ranked(candidates, kept);
  if (counted) {
    kept = std::min(kept, most);
    for (std::size_t i = 0; i < kept; ++i) total += mass(ranked[i]);
  }
  // The likeliest that satisfy `more`, given the mass before them and their own; never none.
  const auto cut = [&](auto more) {
    double reached = 0;
    std::size_t size = 0;
    for (; size < kept; ++size) {
      const double weight = mass(ranked[size]);
      if (size && !more(reached, weight)) break;
      reached += weight;
    }
    kept = size;
    total = reached;
  };
  if (share < 1) {
    const double wanted = share * total;
    cut([&](double reached, double) { return reached < wanted; });
  }
  if (least > 0) cut([&](double, double weight) { return weight >= least; });
  const double target = static_cast<double>(row.uniform) * total;
  double reached = 0;
  std::size_t chosen = 0;
  for (std::size_t i = 0; i < kept; ++i) {
    const double weight = mass(ranked[i]);
    if (weight > 0) chosen = i;  // rounding at the end must not choose an impossible token
    reached += weight;
    if (reached > target) break;
  }
  return ranked[chosen].token;
}

}  // namespace

void sample(const Kernels& kernels, const float* logits, std::size_t count, const Sampling& sampling,
            std::size_t index, const SampleScratch& scratch, const SampleResult& out) {
  const SamplingRow& row = sampling.rows[index];
  const std::size_t best = kernels.largest(logits, count);
  const float normaliser = kernels.log_sum_exp(logits, count, logits[best]);
  if (row.target >= 0) {
    *out.token = row.target;
  } else {
    const float* edited = edit(logits, count, sampling, index, scratch.edited);
    const std::size_t likeliest = edited == logits ? best : kernels.largest(edited, count);
    if (row.temperature > 0) {
      *out.token = draw(kernels, edited, count, edited[likeliest], row, scratch.candidates);
    } else {
      *out.token = static_cast<std::int32_t>(likeliest);
    }
  }
  *out.logprob = logits[*out.token] - normaliser;
  if (!sampling.ranked) return;
  std::size_t found = gather(logits, count, {logits[best], 1}, scratch.candidates,
                             [&](std::size_t near, double) { return near >= sampling.ranked; });
  if (found < sampling.ranked) {  // those that are no numbers, too
    found = count;
    for (std::size_t i = 0; i < count; ++i) {
      const float logit = std::isnan(logits[i]) ? -INFINITY : logits[i];
      scratch.candidates[i] = {logit, static_cast<std::int32_t>(i)};
    }
  }
  Ranked ranked(scratch.candidates, found);
  for (std::size_t i = 0; i < sampling.ranked; ++i) {
    out.ranked_tokens[i] = ranked[i].token;
    out.ranked_logprobs[i] = ranked[i].logit - normaliser;
  }
}

}  // namespace headrace
