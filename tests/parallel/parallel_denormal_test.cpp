// SPDX-License-Identifier: MIT
// Denormal results become 0 inside tasks, on every worker, and the caller's own mode comes back.
#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "heed/parallel.hpp"
#include "heed/simd/flush_denormals.hpp"

namespace {

using heed::index;
using heed::simd::flush_denormals;

// Half of the smallest normal number, computed while the program runs.
[[gnu::noinline]] float half_of_smallest() {
  volatile float least = std::numeric_limits<float>::min();
  volatile float half = least * 0.5F;
  return half;
}

TEST(Denormals, FlushInsideTheScopeAlone) {
  ASSERT_GT(half_of_smallest(), 0.0F);
  {
    const flush_denormals scope;
    EXPECT_EQ(half_of_smallest() == 0.0F, flush_denormals::acts);
  }
  EXPECT_GT(half_of_smallest(), 0.0F);
}

TEST(Denormals, ScopesNestAndKeepAUsersOwnMode) {
  {
    const flush_denormals own;
    {
      const flush_denormals inner;
    }
    EXPECT_EQ(half_of_smallest() == 0.0F, flush_denormals::acts);
    heed::serial_executor serial;
    heed::for_each_task(serial, 1, 3, [](index, index) {});
    EXPECT_EQ(half_of_smallest() == 0.0F, flush_denormals::acts);
  }
  EXPECT_GT(half_of_smallest(), 0.0F);
}

template <class E>
void tasks_flush(E& exec, index workers) {
  std::vector<float> result(100, -1.0F);
  heed::for_each_task(exec, workers, 100, [&](index, index t) {
    result[static_cast<std::size_t>(t)] = half_of_smallest();
  });
  for (const float x : result) EXPECT_EQ(x == 0.0F, flush_denormals::acts);
  EXPECT_GT(half_of_smallest(), 0.0F);  // and the caller's mode is back
}

TEST(Denormals, EveryWorkerFlushes) {
  heed::serial_executor serial;
  tasks_flush(serial, 1);
  heed::thread_pool pool(3);
  tasks_flush(pool, 1);
  tasks_flush(pool, 3);
}

}  // namespace
