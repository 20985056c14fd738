// SPDX-License-Identifier: MIT
// Tests of the executors: every worker and task runs exactly once, whoever runs them.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "heed/parallel.hpp"

namespace {

using heed::index;

// A user's executor over plain threads: the few lines that the concept needs.
struct thread_per_worker {
  index threads = 3;
  [[nodiscard]] index concurrency() const { return threads; }
  template <class Body>
  void run(index workers, Body&& body) {
    std::vector<std::thread> crew;
    for (index w = 0; w < workers; ++w) crew.emplace_back([&body, w] { body(w); });
    for (std::thread& t : crew) t.join();
  }
};

struct no_run {
  [[nodiscard]] index concurrency() const { return 1; }
};

static_assert(heed::executor<heed::serial_executor>);
static_assert(heed::executor<heed::thread_pool>);
static_assert(heed::executor<heed::default_executor>);
static_assert(heed::executor<thread_per_worker>);
static_assert(!heed::executor<no_run>);
static_assert(!heed::executor<int>);

class counters {
 public:
  explicit counters(index n) : counts_(static_cast<std::size_t>(n)) {}
  void hit(index i) { counts_[static_cast<std::size_t>(i)].fetch_add(1); }
  [[nodiscard]] bool all_are(int expected) const {
    for (const auto& c : counts_) {
      if (c.load() != expected) return false;
    }
    return true;
  }

 private:
  std::vector<std::atomic<int>> counts_;
};

template <class Executor>
void runs_every_worker_once(Executor& executor) {
  for (const index workers : {0, 1, 2, 3, 5, 64}) {
    counters seen(workers);
    executor.run(workers, [&](index w) {
      ASSERT_GE(w, 0);
      ASSERT_LT(w, workers);
      seen.hit(w);
    });
    EXPECT_TRUE(seen.all_are(1)) << workers << " workers";
  }
}

template <class Executor>
void runs_every_task_once(Executor& executor) {
  for (const index workers : {0, 1, 2, 3, 7}) {
    for (const index tasks : {0, 1, 2, 3, 7, 100, 1009}) {
      counters seen(tasks);
      heed::for_each_task(executor, workers, tasks, [&](index worker, index t) {
        ASSERT_GE(worker, 0);
        ASSERT_LT(worker, std::max<index>(workers, 1));
        seen.hit(t);
      });
      EXPECT_TRUE(seen.all_are(1)) << workers << " workers, " << tasks << " tasks";
    }
  }
}

TEST(ParallelSerial, RunsEachWorkerInOrderOnTheCallingThread) {
  std::vector<index> order;
  const auto caller = std::this_thread::get_id();
  heed::serial_executor::run(4, [&](index w) {
    EXPECT_EQ(std::this_thread::get_id(), caller);
    order.push_back(w);
  });
  EXPECT_EQ(order, (std::vector<index>{0, 1, 2, 3}));
  EXPECT_EQ(heed::serial_executor::concurrency(), 1);
}

TEST(ParallelExecutors, EveryWorkerRunsExactlyOnce) {
  heed::serial_executor serial;
  runs_every_worker_once(serial);
  heed::default_executor fallback;
  runs_every_worker_once(fallback);
  thread_per_worker own;
  runs_every_worker_once(own);
  for (const index threads : {1, 2, 3, 7}) {
    heed::thread_pool pool(threads);
    EXPECT_EQ(pool.concurrency(), threads);
    runs_every_worker_once(pool);
  }
}

TEST(ParallelExecutors, EveryTaskRunsExactlyOnce) {
  heed::serial_executor serial;
  runs_every_task_once(serial);
  heed::default_executor fallback;
  runs_every_task_once(fallback);
  thread_per_worker own;
  runs_every_task_once(own);
  for (const index threads : {1, 2, 3, 7}) {
    heed::thread_pool pool(threads);
    runs_every_task_once(pool);
  }
}

TEST(ParallelExecutors, AWorkerHasItsScratchForItself) {
  heed::thread_pool pool(4);
  std::vector<index> busy(4, 0);  // plain memory: a race shows in the thread sanitizer
  std::vector<index> done(4, 0);
  heed::for_each_task(pool, 4, 2000, [&](index worker, index) {
    index& mine = busy[static_cast<std::size_t>(worker)];
    ASSERT_EQ(mine, 0);
    mine = 1;
    ++done[static_cast<std::size_t>(worker)];
    mine = 0;
  });
  EXPECT_EQ(done[0] + done[1] + done[2] + done[3], 2000);
}

TEST(ParallelThreadPool, WhatTasksWroteIsVisibleAfterTheRun) {
  heed::thread_pool pool(3);
  std::vector<index> written(513, 0);
  for (index round = 1; round <= 50; ++round) {
    heed::for_each_task(pool, 3, 513,
                        [&](index, index t) { written[static_cast<std::size_t>(t)] += t + round; });
  }
  for (index t = 0; t < 513; ++t) {
    ASSERT_EQ(written[static_cast<std::size_t>(t)], 50 * t + 50 * 51 / 2);
  }
}

TEST(ParallelThreadPool, ManyShortRunsEndAndLeaveNothingBehind) {
  heed::thread_pool pool(3);
  for (index run = 0; run < 20000; ++run) {
    // The counter dies with each run: a late thread that touched it would be caught.
    auto count = std::make_unique<std::atomic<index>>(0);
    pool.run(3, [&](index) { count->fetch_add(1, std::memory_order_relaxed); });
    ASSERT_EQ(count->load(), 3);
  }
}

TEST(ParallelThreadPool, ARunInsideATaskOfTheSamePoolEnds) {
  heed::thread_pool pool(3);
  std::atomic<index> leaves{0};
  pool.run(4, [&](index) {
    pool.run(4, [&](index) { pool.run(4, [&](index) { leaves.fetch_add(1); }); });
  });
  EXPECT_EQ(leaves.load(), 64);
}

TEST(ParallelThreadPool, CallsFromSeveralThreadsAtOnceDoNotMix) {
  heed::thread_pool pool(3);
  constexpr index callers = 4;
  std::vector<std::atomic<index>> sums(callers);
  std::vector<std::thread> crew;
  for (index c = 0; c < callers; ++c) {
    crew.emplace_back([&pool, &sums, c] {
      for (int run = 0; run < 200; ++run) {
        heed::for_each_task(pool, 3, 17, [&](index, index t) {
          sums[static_cast<std::size_t>(c)].fetch_add(t, std::memory_order_relaxed);
        });
      }
    });
  }
  for (std::thread& t : crew) t.join();
  for (const auto& sum : sums) EXPECT_EQ(sum.load(), 200 * 17 * 16 / 2);
}

TEST(ParallelThreadPool, TheCallerWorksItself) {
  // With every other thread held up, the caller must finish alone.
  heed::thread_pool pool(2);
  std::atomic<bool> held{false};
  std::atomic<bool> release{false};
  std::thread holder([&] {
    pool.run(2, [&](index) {
      held.store(true);
      while (!release.load()) std::this_thread::yield();
    });
  });
  while (!held.load()) std::this_thread::yield();
  std::atomic<index> count{0};
  pool.run(8, [&](index) { count.fetch_add(1); });
  EXPECT_EQ(count.load(), 8);
  release.store(true);
  holder.join();
}

TEST(ParallelThreadPool, RefusesFewerThanOneThread) {
  for (const index threads : {0, -3}) {
    try {
      const heed::thread_pool pool(threads);
      FAIL() << "no exception for " << threads;
    } catch (const heed::option_error& error) {
      EXPECT_EQ(std::string(error.what()),
                "thread_pool has " + std::to_string(threads) + " threads, needs at least 1");
    }
  }
}

TEST(ParallelThreadPool, DefaultsToTheMachine) {
  EXPECT_GE(heed::thread_pool::hardware_threads(), 1);
  EXPECT_EQ(heed::thread_pool().concurrency(), heed::thread_pool::hardware_threads());
}

#if defined(_OPENMP)
TEST(ParallelOpenmp, InsideAParallelRegionItOffersOneWorker) {
  std::atomic<bool> one{true};
#pragma omp parallel num_threads(2)
  {
    if (omp_get_num_threads() > 1 && heed::openmp_executor::concurrency() != 1) one = false;
  }
  EXPECT_TRUE(one.load());
}
#endif

}  // namespace
