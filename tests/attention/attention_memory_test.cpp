// SPDX-License-Identifier: MIT
// Memory, measured: every allocation of the process is counted. 100,000 tokens never take N x M;
// a kept workspace takes nothing.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <vector>

#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/parallel.hpp"
#include "heed/score.hpp"
#include "heed/tensor.hpp"
#include "support/attention_oracle.hpp"

#if __has_include(<malloc.h>) && defined(__GLIBC__)
#include <malloc.h>
#endif

#if __has_include(<sys/resource.h>)
#include <sys/resource.h>
#endif

namespace {

using heed::index;

std::atomic<std::size_t> allocations{0};
std::atomic<std::size_t> live{0};
std::atomic<std::size_t> peak{0};

void grow(std::size_t bytes) {
  allocations.fetch_add(1);
  const std::size_t now = live.fetch_add(bytes) + bytes;
  std::size_t most = peak.load();
  while (now > most && !peak.compare_exchange_weak(most, now)) {
  }
}

// A header before each block holds its size; it is as large as the alignment wanted.
void* take(std::size_t bytes, std::size_t alignment) {
  const std::size_t header = std::max(alignment, alignof(std::max_align_t));
  const std::size_t whole = (header + bytes + header - 1) / header * header;
  auto* const block = static_cast<std::byte*>(std::aligned_alloc(header, whole));
  if (block == nullptr) throw std::bad_alloc();
  ::new (static_cast<void*>(block)) std::size_t(bytes);
  grow(bytes);
  return block + header;
}

void give_back(void* p, std::size_t alignment) {
  if (p == nullptr) return;
  const std::size_t header = std::max(alignment, alignof(std::max_align_t));
  auto* const block = static_cast<std::byte*>(p) - header;
  live.fetch_sub(*std::launder(reinterpret_cast<std::size_t*>(block)));
  std::free(block);
}

/// What a call allocates: how often, and how much more is live at the worst moment than before.
struct use {
  std::size_t times = 0;
  std::size_t bytes = 0;
};

template <class F>
use measure(F&& f) {
  const std::size_t before = live.load();
  const std::size_t times = allocations.load();
  peak.store(before);
  f();
  return {allocations.load() - times, peak.load() - before};
}

}  // namespace

void* operator new(std::size_t bytes) { return take(bytes, alignof(std::max_align_t)); }
void* operator new[](std::size_t bytes) { return take(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t a) {
  return take(bytes, static_cast<std::size_t>(a));
}
void* operator new[](std::size_t bytes, std::align_val_t a) {
  return take(bytes, static_cast<std::size_t>(a));
}
void operator delete(void* p) noexcept { give_back(p, alignof(std::max_align_t)); }
void operator delete[](void* p) noexcept { give_back(p, alignof(std::max_align_t)); }
void operator delete(void* p, std::size_t) noexcept { give_back(p, alignof(std::max_align_t)); }
void operator delete[](void* p, std::size_t) noexcept { give_back(p, alignof(std::max_align_t)); }
void operator delete(void* p, std::align_val_t a) noexcept {
  give_back(p, static_cast<std::size_t>(a));
}
void operator delete[](void* p, std::align_val_t a) noexcept {
  give_back(p, static_cast<std::size_t>(a));
}
void operator delete(void* p, std::size_t, std::align_val_t a) noexcept {
  give_back(p, static_cast<std::size_t>(a));
}
void operator delete[](void* p, std::size_t, std::align_val_t a) noexcept {
  give_back(p, static_cast<std::size_t>(a));
}

namespace {

/// The program's use of the heap behind malloc, where the C library tells (Eigen and C code).
[[maybe_unused]] std::size_t heap_in_use() {
#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 33)
  const auto info = mallinfo2();
  return info.uordblks + info.hblkhd;
#else
  return 0;
#endif
}

/// The most memory the process ever had in use, in bytes, where the system tells: whoever asked
/// for it, and however.
std::size_t most_resident() {
#if defined(RUSAGE_SELF) && defined(__linux__)
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::size_t>(usage.ru_maxrss) * 1024;
#else
  return 0;
#endif
}

TEST(Memory, TheCountCounts) {
  const use u = measure([] {
    std::vector<char> a(1000);
    std::vector<char> b(5000);
    a.swap(b);
  });
  EXPECT_EQ(u.times, 2U);
  EXPECT_EQ(u.bytes, 6000U);
  heed::workspace w;
  EXPECT_EQ(measure([&] { (void)w.reserve(777); }).bytes, 777U);
}

/// Scratch as the header promises it, for each worker of the default executor: 320 numbers for each
/// channel of the keys, 512 for each of the values, a block of scores, and room for rounding up.
template <class A>
std::size_t promised(index head_dim, index value_dim) {
  using plan = heed::kernel::tile_plan<A>;
  const index worker = 320 * head_dim + 512 * value_dim + plan::keys * plan::group + 4096;
  return static_cast<std::size_t>(worker * heed::default_executor{}.concurrency()) * sizeof(A);
}

// Scores of 100,000 x 100,000 would be 40 GB.
TEST(Memory, AHundredThousandTokensInAWindow) {
  constexpr index n = 100000;
  const auto q = oracle::random_tensor<float, 2>({n, 8}, 1);
  const auto k = oracle::random_tensor<float, 2>({n, 8}, 2);
  heed::tensor<float, 2> out({n, 8});
  heed::tensor<float, 1> lse({n});
  const std::size_t resident = most_resident();
  // Threads start with the first call and stay: theirs is not what a call leaves behind.
  heed::attention_into(heed::into(out, lse), q, k, k, {}, heed::causal(),
                       heed::window{.left = 255});
  const std::size_t heap = heap_in_use();
  std::size_t heap_during = 0;
  const use u = measure([&] {
    heed::attention_into(heed::into(out, lse), q, k, k, {}, heed::causal(),
                         heed::window{.left = 255});
    heap_during = heap_in_use();
  });
  EXPECT_LE(u.bytes, promised<float>(8, 8));
  EXPECT_LE(heap_during, heap + promised<float>(8, 8)) << "left behind";
  EXPECT_LE(most_resident(), resident + (std::size_t{64} << 20U)) << "64 MB, results included";
  // Its rows are right at both ends and between: each against its own window alone.
  for (const index i : {index{0}, index{255}, index{256}, index{50001}, n - 1}) {
    const index first = std::max<index>(0, i - 255);
    const auto e = oracle::expected(heed::as_view(q).slice(0, i, i + 1),
                                    heed::as_view(k).slice(0, first, i + 1),
                                    heed::as_view(k).slice(0, first, i + 1), {});
    EXPECT_EQ(oracle::difference<float>(heed::as_view(out).slice(0, i, i + 1), e.output, e.sizes),
              "");
  }
}

// No window: every query of a few sees all of 100,000 keys, and a thousand queries do.
TEST(Memory, AHundredThousandKeys) {
  constexpr index m = 100000;
  const auto k = oracle::random_tensor<float, 2>({m, 8}, 2);
  for (const index n : {1, 1000}) {
    const auto q = oracle::random_tensor<float, 2>({n, 8}, 1);
    heed::tensor<float, 2> out({n, 8});
    const use u = measure([&] { heed::attention_into(out, q, k, k); });
    if (n == 1) {
      // Few queries: a partial result per 2048 keys, and blocks of 512 keys.
      EXPECT_LE(u.bytes, 400000U);
    } else {
      EXPECT_LE(u.bytes, promised<float>(8, 8));
    }
    const auto last = heed::as_view(q).slice(0, n - 1, n);
    const auto e = oracle::expected(last, k, k, {});
    EXPECT_EQ(oracle::difference<float>(heed::as_view(out).slice(0, n - 1, n), e.output, e.sizes),
              "");
  }
}

// The scratch does not know the number of tokens, and grows with the workers alone.
TEST(Memory, ScratchOfManyQueriesIsThatOfFew) {
  const auto scratch = [](auto& exec, index n) {
    const auto q = oracle::random_tensor<float, 3>({2, n, 16}, 1);
    heed::tensor<float, 3> out({2, n, 16});
    heed::workspace w;
    heed::attention_into(exec, out, q, q, q, {.scratch = &w}, heed::causal());
    return w.size();
  };
  heed::serial_executor serial;
  const std::size_t one = scratch(serial, 200);
  EXPECT_EQ(scratch(serial, 1600), one);
  heed::thread_pool pool(3);
  EXPECT_EQ(scratch(pool, 1600), 3 * one);
}

// The textbook does hold its scores: the measure sees them.
TEST(Memory, TheTextbookHoldsItsScores) {
  const auto q = oracle::random_tensor<float, 2>({300, 8}, 1);
  heed::tensor<float, 2> out({300, 8});
  const use u = measure([&] { heed::naive_attention_into(out, q, q, q); });
  EXPECT_GE(u.bytes, 300U * 300U * sizeof(float));
}

TEST(Memory, AKeptWorkspaceAllocatesNothing) {
  const auto q = oracle::random_tensor<float, 3>({4, 300, 16}, 1);
  const auto k = oracle::random_tensor<float, 3>({2, 300, 16}, 2);
  const auto half_k = oracle::random_tensor<heed::half, 3>({2, 300, 16}, 2);
  const auto bias = oracle::random_tensor<float, 2>({300, 300}, 3);
  heed::tensor<float, 3> out({4, 300, 16});
  heed::workspace scratch;
  const auto twice = [&](const char* what, auto&& call) {
    call();
    EXPECT_EQ(measure(call).times, 0U) << what;
  };
  twice("many queries", [&] {
    heed::attention_into(out, q, k, k, {.scratch = &scratch}, heed::causal(), heed::bias(bias));
  });
  twice("keys that are copied", [&] {
    heed::attention_into(out, q, half_k, half_k, {.scratch = &scratch}, heed::softcap(3));
  });
  const auto few = heed::as_view(q).slice(1, 0, 2);
  twice("few queries", [&] {
    heed::attention_into(heed::as_view(out).slice(1, 0, 2), few, k, k, {.scratch = &scratch});
  });
  twice("the textbook", [&] { heed::naive_attention_into(out, q, k, k, {.scratch = &scratch}); });
  // Appending to a cache takes none either.
  heed::contiguous_cache<float> cache({.kv_heads = 2, .capacity = 600, .head_dim = 16});
  twice("append", [&] { cache.append(k, k); });
  // A step of a decode, whose positions come from the cache: on one thread, and on several.
  const auto step = [&](const char* what, auto& exec, index tokens) {
    twice(what, [&] {
      cache.truncate(200);
      const auto at = [tokens](auto& t) { return heed::as_view(t).slice(1, 0, tokens); };
      heed::decode_into(exec, at(out), at(q), at(k), at(k), cache, {.scratch = &scratch},
                        heed::causal());
    });
  };
  heed::serial_executor serial;
  heed::thread_pool pool(3);
  step("decode of a token", serial, 1);
  step("decode of a token by threads", pool, 1);
  step("decode of a chunk", serial, 100);
  step("decode of a chunk by threads", pool, 100);
}

// Many packed sequences: scratch is that of the longest, not of all.
TEST(Memory, PackedSequences) {
  std::vector<index> starts = {0};
  for (index s = 0; s < 200; ++s) starts.push_back(starts.back() + 20 + s % 7);
  const auto q = oracle::random_tensor<float, 2>({starts.back(), 8}, 1);
  heed::tensor<float, 2> out({starts.back(), 8});
  const use u = measure([&] { heed::ragged_attention_into(out, q, q, q, starts, starts); });
  EXPECT_LE(u.bytes, promised<float>(8, 8));
}

}  // namespace
