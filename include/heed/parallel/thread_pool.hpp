// SPDX-License-Identifier: MIT
// Eigen's thread pool as an executor.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <type_traits>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/parallel/executor.hpp"

namespace heed::inline HEED_TARGET {

/// `threads` threads in all, the caller's included: `thread_pool pool(4)` starts three.
/// Calls from several threads at once are safe; a call from inside a task of the same pool is too,
/// since the calling thread always works itself. A call allocates nothing: its tasks are kept in a
/// ring of the pool's own, of which more calls at once than it has places run on their own threads
/// alone. To wake a sleeping thread is the operating system's.
class thread_pool {
 public:
  explicit thread_pool(index threads = hardware_threads())
      : threads_(checked(threads)), pool_(static_cast<int>(threads - 1)) {}

  [[nodiscard]] index concurrency() const noexcept { return threads_; }

  template <class Body>
  void run(index workers, Body&& body) noexcept {
    if (workers <= 0) return;
    call* const mine = threads_ == 1 || workers == 1 ? nullptr : take_place();
    if (mine == nullptr) {
      serial_executor::run(workers, body);
      return;
    }
    using bare = std::remove_reference_t<Body>;
    mine->begin(workers, std::addressof(body),
                [](const void* b, index w) { (*static_cast<bare*>(const_cast<void*>(b)))(w); });
    const index helpers = (std::min)(workers, threads_) - 1;
    mine->users.fetch_add(helpers, std::memory_order_relaxed);
    // One pointer, which std::function holds without memory of its own.
    for (index t = 0; t < helpers; ++t) {
      pool_.Schedule([mine] {
        mine->work();
        mine->release();
      });
    }
    mine->work();
    mine->wait();
    mine->release();
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

  /// One call of `run`. Workers are claimed from one counter and the caller waits for claimed ones
  /// only, so that it finishes alone when every thread is busy. A late thread finds nothing to claim
  /// and never touches `body`; the place is free again when the last has released it.
  struct call {
    std::atomic<index> users{0};
    std::atomic<index> next{0};
    std::atomic<index> done{0};
    index workers = 0;
    const void* body = nullptr;
    void (*invoke)(const void*, index) = nullptr;

    void begin(index count, const void* b, void (*f)(const void*, index)) noexcept {
      next.store(0, std::memory_order_relaxed);
      done.store(0, std::memory_order_relaxed);
      workers = count;
      body = b;
      invoke = f;
    }
    void work() noexcept {
      for (index w = next.fetch_add(1); w < workers; w = next.fetch_add(1)) {
        invoke(body, w);
        if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == workers) done.notify_all();
      }
    }
    void wait() const noexcept {
      for (index d = done.load(std::memory_order_acquire); d < workers;
           d = done.load(std::memory_order_acquire)) {
        done.wait(d, std::memory_order_acquire);
      }
    }
    void release() noexcept { users.fetch_sub(1, std::memory_order_release); }
  };

  /// A place for a call, with one user; null where there is none.
  [[nodiscard]] call* take_place() noexcept {
    for (call& c : calls_) {
      index none = 0;
      if (c.users.load(std::memory_order_relaxed) == 0 &&
          c.users.compare_exchange_strong(none, 1, std::memory_order_acquire,
                                          std::memory_order_relaxed)) {
        return &c;
      }
    }
    return nullptr;
  }

  index threads_;
  std::array<call, 32> calls_;  // outlives the threads
  Eigen::ThreadPool pool_;
};

}  // namespace heed::inline HEED_TARGET
