// SPDX-License-Identifier: MIT
// Each allocation of a call fails once: the call throws std::bad_alloc, and outputs and caches
// are as they were. `operator new` of this program counts down; tensors come from Eigen's malloc.
#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "heed/attention.hpp"
#include "heed/parallel.hpp"
#include "heed/sparse.hpp"
#include "heed/tensor.hpp"

namespace {

thread_local long until_failure = -1;  // allocations that still succeed; negative: all
thread_local long failed = 0;

void* take(std::size_t bytes, std::size_t alignment) {
  if (until_failure == 0) {
    ++failed;
    throw std::bad_alloc();
  }
  if (until_failure > 0) --until_failure;
  const std::size_t whole = (bytes + alignment - 1) / alignment * alignment;
  void* const p = std::aligned_alloc(alignment, whole > 0 ? whole : alignment);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

}  // namespace

void* operator new(std::size_t bytes) { return take(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t a) {
  return take(bytes, static_cast<std::size_t>(a));
}
// g++ takes the pair of new and free for a mistake where it has inlined one of the two.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
#endif
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

namespace {

using heed::index;
template <int R>
using tensor = heed::tensor<float, R>;

template <int R>
tensor<R> numbers(const std::array<index, static_cast<std::size_t>(R)>& extents,
                  std::uint32_t seed) {
  tensor<R> t(extents);
  for (index i = 0; i < t.size(); ++i) {
    seed = seed * 1664525U + 1013904223U;
    t.data()[i] = static_cast<float>(seed >> 8U) / 8388608.0F - 1.0F;
  }
  return t;
}

/// Runs `operation` on what `fresh` makes with the n-th allocation failing, n = 1, 2, ..., until
/// none fails; `same(x)` says whether nothing was written. At least `least` allocations are met.
template <class Fresh, class Operation, class Same>
void check(const char* name, int least, const Fresh& fresh, const Operation& operation,
           const Same& same) {
  constexpr int most = 200;
  for (int n = 0; n < most; ++n) {
    auto x = fresh();
    bool refused = false;
    failed = 0;
    until_failure = n;
    try {
      operation(*x);
    } catch (const std::bad_alloc&) {
      refused = true;
    }
    until_failure = -1;
    if (failed == 0) {
      EXPECT_GE(n, least) << name;
      return;
    }
    ASSERT_TRUE(refused) << name << ", allocation " << n + 1;
    ASSERT_TRUE(same(*x)) << name << ", allocation " << n + 1 << " failed, results were written";
  }
  FAIL() << name << " allocates more than " << most << " times";
}

constexpr float untouched = 77;

template <int R>
tensor<R> filled(const std::array<index, static_cast<std::size_t>(R)>& extents) {
  tensor<R> t(extents);
  for (index i = 0; i < t.size(); ++i) t.data()[i] = untouched;
  return t;
}
template <class T>
bool holds(const T& t, double value) {
  for (index i = 0; i < t.size(); ++i) {
    if (static_cast<double>(t.data()[i]) != value) return false;
  }
  return true;
}

struct operands {
  tensor<4> q = numbers<4>({2, 4, 40, 16}, 1);
  tensor<4> few = numbers<4>({2, 4, 3, 16}, 4);
  tensor<4> k = numbers<4>({2, 2, 50, 16}, 2);
  tensor<4> v = numbers<4>({2, 2, 50, 8}, 3);
  tensor<4> out = filled<4>({2, 4, 40, 8});
  tensor<4> few_out = filled<4>({2, 4, 3, 8});
  tensor<3> lse = filled<3>({2, 4, 40});
  heed::contiguous_cache<float> cache{
      {.batch = 2, .kv_heads = 2, .capacity = 60, .head_dim = 16, .value_dim = 8}};
  heed::tensor<index, 4> chosen{{2, 4, 40, 3}};
  heed::serial_executor exec;
  operands() { cache.append(k, v); }
};

template <class F>
void check_operands(const char* name, int least, const F& operation) {
  check(
      name, least, [] { return std::make_unique<operands>(); }, operation,
      [](const operands& x) {
        return holds(x.out, untouched) && holds(x.few_out, untouched) && holds(x.lse, untouched) &&
               holds(x.chosen, 0) && x.cache.length() == 50;
      });
}

/// A runtime of OpenMP that starts while allocations fail never lets go of its own lock. So the
/// default executor has its threads before.
class AllocationFailure : public ::testing::Test {
 protected:
  void SetUp() override { (void)heed::attention(x_.q, x_.k, x_.v); }

 private:
  operands x_;
};

TEST_F(AllocationFailure, LeavesDenseResultsAsTheyWere) {
  check_operands("attention, tiled", 1, [](operands& x) {
    heed::attention_into(heed::into(x.out, x.lse), x.q, x.k, x.v, {}, heed::causal());
  });
  check_operands("attention, few queries", 1,
                 [](operands& x) { heed::attention_into(x.few_out, x.few, x.k, x.v); });
  check_operands("naive", 1, [](operands& x) { heed::naive_attention_into(x.out, x.q, x.k, x.v); });
  check_operands("decode", 1, [](operands& x) {
    heed::decode_into(x.few_out, x.few, x.cache, {}, heed::causal());
  });
  check_operands("decode that appends", 1, [](operands& x) {
    const auto tokens = numbers<4>({2, 2, 3, 16}, 5);
    const auto values = numbers<4>({2, 2, 3, 8}, 6);
    heed::decode_into(x.few_out, x.few, tokens, values, x.cache);
  });
  check_operands("linformer", 1, [](operands& x) {
    const auto e = numbers<2>({7, 50}, 1);
    heed::linformer_attention_into(x.out, x.q, x.k, x.v, e, e);
  });
}

TEST_F(AllocationFailure, LeavesSparseResultsAsTheyWere) {
  const heed::tensor<index, 4> blocks({1, 1, 40, 2});
  const heed::tensor<index, 4> of_q({1, 1, 2, 40});
  const heed::tensor<index, 4> of_k({1, 1, 2, 50});
  check_operands("selected rows", 1, [&](operands& x) {
    heed::selected_attention_into(x.out, x.q, x.k, x.v, blocks, 1);
  });
  check_operands("selected blocks", 1, [&](operands& x) {
    heed::selected_attention_into(x.out, x.q, x.k, x.v, blocks, 32);
  });
  check_operands("lsh", 1, [&](operands& x) {
    heed::lsh_attention_into(x.out, x.q, x.k, x.v, of_q, of_k, {});
  });
  check_operands("routing", 1, [&](operands& x) {
    heed::routing_attention_into(x.out, x.q, x.k, x.v, of_q, of_q);
  });
  check_operands("native sparse", 1, [](operands& x) {
    heed::native_sparse_attention_into(
        x.out, x.q, x.k, x.v, heed::nsa::ungated,
        {.compression = {.length = 8, .stride = 4}, .block = 8, .count = 4});
  });
  check_operands("page bounds", 1, [](operands& x) {
    heed::page_bounds<float> bounds({.batch = 2, .kv_heads = 2, .capacity = 60, .head_dim = 16}, 8);
    bounds.update(x.exec, x.cache);
    (void)heed::select_pages(x.exec, x.q, bounds, {.count = 3});
  });
  check_operands("mixture of blocks", 1, [](operands& x) {
    heed::mixture_of_blocks_into(x.exec, x.chosen, x.q, x.k, {.count = 3, .block = 4});
  });
  check_operands("top keys", 1, [](operands& x) {
    heed::top_k_keys_into(x.exec, x.chosen, x.q, x.k, {.count = 3});
  });
  check_operands("patterns", 3, [](operands& x) {
    heed::block_pattern a(x.exec, {.queries = 600, .keys = 600}, heed::causal());
    const auto b = a | transpose(heed::big_bird({.queries = 600, .keys = 600}));
  });
}

}  // namespace
