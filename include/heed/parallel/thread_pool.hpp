// SPDX-License-Identifier: MIT
// Eigen's thread pool as an executor.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/parallel/executor.hpp"

namespace heed::inline HEED_TARGET {

/// `threads` threads in all, the caller's included: `thread_pool pool(4)` starts three.
/// Calls from several threads at once are safe; a call from inside a task of the same pool is too,
/// since the calling thread always works itself.
class thread_pool {
 public:
  explicit thread_pool(index threads = hardware_threads())
      : threads_(checked(threads)), pool_(static_cast<int>(threads - 1)) {}

  [[nodiscard]] index concurrency() const noexcept { return threads_; }

  /// Terminates when no memory is left for the tasks: some may have begun by then.
  template <class Body>
  void run(index workers, Body&& body) noexcept {
    if (workers <= 0) return;
    if (threads_ == 1 || workers == 1) {
      serial_executor::run(workers, body);
      return;
    }
    // Workers are claimed from one counter and the caller waits for claimed ones only, so that it
    // finishes alone when every thread is busy. A late thread finds nothing to claim and never
    // touches `body`; the shared state outlives it.
    struct shared_state {
      std::atomic<index> next{0};
      std::atomic<index> done{0};
    };
    const auto state = std::make_shared<shared_state>();
    const auto work = [state, workers, &body] {
      for (index w = state->next.fetch_add(1); w < workers; w = state->next.fetch_add(1)) {
        body(w);
        if (state->done.fetch_add(1, std::memory_order_acq_rel) + 1 == workers) {
          state->done.notify_all();
        }
      }
    };
    for (index t = 1; t < (std::min)(workers, threads_); ++t) pool_.Schedule(work);
    work();
    for (index d = state->done.load(std::memory_order_acquire); d < workers;
         d = state->done.load(std::memory_order_acquire)) {
      state->done.wait(d, std::memory_order_acquire);
    }
  }

  [[nodiscard]] static index hardware_threads() noexcept {
    const auto n = static_cast<index>(std::thread::hardware_concurrency());
    return n > 0 ? n : 1;
  }

 private:
  static index checked(index threads) {
    if (threads < 1) {
      fail<option_error>("thread_pool has " + std::to_string(threads) +
                         " threads, needs at least 1");
    }
    return threads;
  }

  index threads_;
  Eigen::ThreadPool pool_;
};

}  // namespace heed::inline HEED_TARGET
