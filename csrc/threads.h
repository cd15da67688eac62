// A team of threads that runs one function together, step after step.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace headrace {

// Returns when `value` is `target`; it must get there by add_and_wake.
void await(const std::atomic<std::uint32_t>& value, std::uint32_t target);

// Adds, and wakes those who await `target` if it is reached.
void add_and_wake(std::atomic<std::uint32_t>& value, std::uint32_t amount, std::uint32_t target);

// Spins for some hundred microseconds at most, then sleeps in the kernel: an idle team uses no processor time.
// Threads are not pinned: where several processes share a machine, the kernel places them better.
class Team {
 public:
  // The calling thread is member 0; size - 1 threads are started. Throws std::system_error.
  explicit Team(int size);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Every member calls work(member); returns when all have. `work` must not throw.
  void run(std::function<void(int)> work);

  // The same in two parts: from `start` on the other members work, and the caller may do something
  // else; in `join` it does what is left with them. One thread at a time, `join` after each `start`.
  void start(std::function<void(int)> work);
  void join();

 private:
  void member(int index);
  void barrier();
  void stop();

  const int size_;
  std::vector<std::thread> threads_;
  std::function<void(int)> work_;
  bool ending_ = false;
  alignas(64) std::atomic<std::uint32_t> round_{0};    // counts calls of run
  alignas(64) std::atomic<std::uint32_t> arrived_{0};  // members at the barrier
  alignas(64) std::atomic<std::uint32_t> phase_{0};    // counts barriers
};

}  // namespace headrace
