// Waiting: spin first, since the others are usually microseconds away, then sleep on the value.
#include "threads.h"

#include <chrono>
#include <utility>

namespace headrace {

namespace {

constexpr auto kSpin = std::chrono::microseconds(50);
// Between two steps there is what the host cannot do beforehand; to wake a thread takes as long again.
constexpr auto kSpinBetween = std::chrono::microseconds(250);

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Returns when ready(value).
template <typename Ready>
void wait(const std::atomic<std::uint32_t>& value, Ready ready, std::chrono::microseconds spin = kSpin) {
  const auto end = std::chrono::steady_clock::now() + spin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready(value.load(std::memory_order_acquire))) return;
      relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  for (std::uint32_t seen; !ready(seen = value.load(std::memory_order_acquire));) {
    value.wait(seen, std::memory_order_acquire);
  }
}

}  // namespace

void await(const std::atomic<std::uint32_t>& value, std::uint32_t target) {
  if (value.load(std::memory_order_acquire) == target) return;
  wait(value, [target](std::uint32_t seen) { return seen == target; });
}

void add_and_wake(std::atomic<std::uint32_t>& value, std::uint32_t amount, std::uint32_t target) {
  if (value.fetch_add(amount, std::memory_order_acq_rel) + amount == target) value.notify_all();
}

Team::Team(int size) : size_(size) {
  threads_.reserve(static_cast<std::size_t>(size));
  try {
    for (int i = 1; i < size; ++i) threads_.emplace_back([this, i] { member(i); });
  } catch (...) {
    stop();
    throw;
  }
}

Team::~Team() { stop(); }

void Team::stop() {
  ending_ = true;
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Team::member(int index) {
  std::uint32_t round = 0;
  for (;;) {
    wait(round_, [round](std::uint32_t seen) { return seen != round; }, kSpinBetween);
    ++round;
    if (ending_) return;
    work_(index);
    barrier();
  }
}

void Team::run(std::function<void(int)> work) {
  start(std::move(work));
  join();
}

void Team::start(std::function<void(int)> work) {
  work_ = std::move(work);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
}

void Team::join() {
  work_(0);
  barrier();
}

void Team::barrier() {
  if (size_ == 1) return;
  const std::uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<std::uint32_t>(size_)) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.fetch_add(1, std::memory_order_release);
    phase_.notify_all();
  } else {
    wait(phase_, [phase](std::uint32_t seen) { return seen != phase; });
  }
}

}  // namespace headrace
