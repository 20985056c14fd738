// SPDX-License-Identifier: MIT
// Who runs the tasks of a kernel: the executor concept, and the serial executor.
//
// An executor runs `body(worker)` for worker = 0 .. workers-1, each once, possibly at the same
// time, and returns when all have ended. Kernels hand out their tasks among workers themselves (see
// `for_each_task`), so that an executor stays three lines over anybody's thread pool and each
// worker has scratch of its own.
#pragma once

#include <algorithm>
#include <atomic>
#include <concepts>

#include "heed/core/config.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/simd/flush_denormals.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {
struct probe_body {
  void operator()(index) const noexcept {}
};
}  // namespace detail

/// `concurrency()`: how many workers are worth starting, at least 1.
/// `run(workers, body)`: as above. `body` does not throw.
template <class E>
concept executor = requires(E& e, index workers, detail::probe_body body) {
  { e.concurrency() } -> std::convertible_to<index>;
  e.run(workers, body);
};

namespace detail {
/// Workers for `tasks` tasks: no more than there are tasks, at least 1.
template <class E>
[[nodiscard]] constexpr index worker_count(const E& exec, index tasks) {
  return std::max<index>(1, std::min<index>(tasks, static_cast<index>(exec.concurrency())));
}
}  // namespace detail

/// Runs everything on the calling thread.
struct serial_executor {
  [[nodiscard]] static constexpr index concurrency() noexcept { return 1; }
  template <class Body>
  static void run(index workers, Body&& body) {
    for (index w = 0; w < workers; ++w) body(w);
  }
};

/// Runs `task(worker, t)` for t = 0 .. tasks-1 on at most `workers` workers. Tasks start in order;
/// each runs once. Which worker takes a task must not change its result. Workers take `grain` tasks
/// at a time, for tasks that read on where the one before ended. Denormal results become 0 while
/// tasks run, whichever thread runs them; the thread's own mode is restored.
template <executor E, class Task>
void for_each_task(E& e, index workers, index tasks, Task&& task, index grain = 1) {
  if (workers > tasks) workers = tasks;
  if (workers <= 1) {
    const simd::flush_denormals scope;
    for (index t = 0; t < tasks; ++t) task(index{0}, t);
    return;
  }
  std::atomic<index> next{0};
  e.run(workers, [&](index worker) {
    const simd::flush_denormals scope;
    for (index t = next.fetch_add(grain, std::memory_order_relaxed); t < tasks;
         t = next.fetch_add(grain, std::memory_order_relaxed)) {
      for (index i = t; i < t + grain && i < tasks; ++i) task(worker, i);
    }
  });
}

}  // namespace heed::inline HEED_TARGET
