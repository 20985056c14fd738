// SPDX-License-Identifier: MIT
// The same bits for any number of threads and any batch size, in every kernel.
#include <gtest/gtest.h>

#include <array>
#include <thread>
#include <vector>

#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/parallel.hpp"
#include "heed/score.hpp"
#include "heed/tensor.hpp"
#include "support/attention_oracle.hpp"
#include "support/scalars.hpp"

namespace {

using heed::index;

/// f(executor) on serial and on pools of 1, 2 and 7 threads: the same result, bit by bit.
template <class F>
void expect_same_bits(F&& f) {
  heed::serial_executor serial;
  const auto want = f(serial);
  for (const index threads : {1, 2, 7}) {
    heed::thread_pool pool(threads);
    for (int again = 0; again < 2; ++again) {
      const auto got = f(pool);
      EXPECT_TRUE(oracle::same_bits(got.output, want.output)) << threads << " threads";
      EXPECT_TRUE(oracle::same_bits(got.log_sum_exp, want.log_sum_exp)) << threads << " threads";
    }
  }
}

template <class T>
class ParallelAttention : public testing::Test {};
using scalars = test_scalars::some;
TYPED_TEST_SUITE(ParallelAttention, scalars);

TYPED_TEST(ParallelAttention, ManyQueries) {
  using T = TypeParam;
  const auto q = oracle::random_tensor<T, 4>({2, 4, 420, 24}, 1);
  const auto k = oracle::random_tensor<T, 4>({2, 2, 300, 24}, 2);
  const auto v = oracle::random_tensor<T, 4>({2, 2, 300, 24}, 3);
  expect_same_bits([&](auto& exec) {
    return heed::attention_with_lse(exec, q, k, v, {.offset = -50}, heed::causal());
  });
}

// Decode over more than four splits of the keys.
TYPED_TEST(ParallelAttention, FewQueriesAndManyKeys) {
  using T = TypeParam;
  const auto q = oracle::random_tensor<T, 4>({2, 6, 2, 24}, 1);
  const auto k = oracle::random_tensor<T, 4>({2, 2, 4700, 24}, 2);
  const auto v = oracle::random_tensor<T, 4>({2, 2, 4700, 24}, 3);
  expect_same_bits([&](auto& exec) {
    return heed::attention_with_lse(exec, q, k, v, {.offset = 4698}, heed::causal());
  });
  heed::contiguous_cache<T> cache({.batch = 2, .kv_heads = 2, .capacity = 5000, .head_dim = 24});
  cache.append(k, v);
  heed::serial_executor serial;
  const auto want = heed::decode(serial, q, cache, {}, heed::causal());
  for (const index threads : {1, 2, 7}) {
    heed::thread_pool pool(threads);
    EXPECT_TRUE(oracle::same_bits(heed::decode(pool, q, cache, {}, heed::causal()), want));
  }
}

TYPED_TEST(ParallelAttention, PackedSequences) {
  using T = TypeParam;
  const std::vector<index> cu_seqlens_q = {0, 1, 1, 130, 133, 333};
  const std::vector<index> cu_seqlens_k = {0, 1500, 1510, 1700, 1701, 2000};
  const auto q = oracle::random_tensor<T, 3>({4, 333, 16}, 1);
  const auto k = oracle::random_tensor<T, 3>({2, 2000, 16}, 2);
  expect_same_bits([&](auto& exec) {
    heed::attention_result<heed::tensor<T, 3>, heed::tensor<heed::accumulate_t<T>, 2>> r{
        heed::tensor<T, 3>({4, 333, 16}), heed::tensor<heed::accumulate_t<T>, 2>({4, 333})};
    heed::ragged_attention_into(exec, heed::into(r.output, r.log_sum_exp), q, k, k, cu_seqlens_q,
                                cu_seqlens_k);
    return r;
  });
}

// Each of a batch as if it were alone, whatever number there are; each head too.
TYPED_TEST(ParallelAttention, ABatchOfOneAndABatchOfMany) {
  using T = TypeParam;
  for (const index queries : {1, 3, 200}) {
    const auto q = oracle::random_tensor<T, 4>({5, 4, queries, 24}, 1);
    const auto k = oracle::random_tensor<T, 4>({5, 2, 1100, 24}, 2);
    const auto v = oracle::random_tensor<T, 4>({5, 2, 1100, 20}, 3);
    heed::thread_pool pool(3);
    const auto all = heed::attention(pool, q, k, v, {.offset = 1100 - queries}, heed::causal());
    for (index b = 0; b < 5; ++b) {
      const auto one =
          heed::attention(heed::as_view(q)[b], heed::as_view(k)[b], heed::as_view(v)[b],
                          {.offset = 1100 - queries}, heed::causal());
      oracle::each_index({1, 4, queries, 20}, [&](index, index h, index i, index c) {
        ASSERT_EQ(static_cast<double>(one(h, i, c)), static_cast<double>(all(b, h, i, c)))
            << queries << " queries, batch " << b;
      });
    }
  }
}

// A packed sequence gives the same bits beside short sequences, beside long ones and alone.
TYPED_TEST(ParallelAttention, APackedSequenceAloneAndAmongOthers) {
  using T = TypeParam;
  for (const index own : {1, 3, 60}) {
    const auto q = oracle::random_tensor<T, 3>({4, own + 150, 16}, 1);
    const auto k = oracle::random_tensor<T, 3>({2, 1300 + 150, 16}, 2);
    const auto alone =
        heed::attention(heed::as_view(q).slice(1, 0, own), heed::as_view(k).slice(1, 0, 1300),
                        heed::as_view(k).slice(1, 0, 1300));
    const auto expect_as_alone = [&](index others, index count) {
      std::vector<index> cu_seqlens_q = {0, own};
      std::vector<index> cu_seqlens_k = {0, 1300};
      for (index n = 0; n < count; ++n) {
        cu_seqlens_q.push_back(cu_seqlens_q.back() + others);
        cu_seqlens_k.push_back(cu_seqlens_k.back() + others);
      }
      const auto got = heed::ragged_attention(heed::as_view(q).slice(1, 0, cu_seqlens_q.back()),
                                              heed::as_view(k).slice(1, 0, cu_seqlens_k.back()),
                                              heed::as_view(k).slice(1, 0, cu_seqlens_k.back()),
                                              cu_seqlens_q, cu_seqlens_k);
      oracle::each_index({1, 4, own, 16}, [&](index, index h, index i, index c) {
        ASSERT_EQ(static_cast<double>(got(h, i, c)), static_cast<double>(alone(h, i, c)))
            << own << " queries beside " << count << " sequences of " << others;
      });
    };
    expect_as_alone(1, 0);
    expect_as_alone(1, 5);
    expect_as_alone(150, 1);
  }
}

TYPED_TEST(ParallelAttention, TheTextbookToo) {
  using T = TypeParam;
  const auto q = oracle::random_tensor<T, 4>({3, 4, 20, 8}, 1);
  const auto k = oracle::random_tensor<T, 4>({3, 2, 30, 8}, 2);
  expect_same_bits([&](auto& exec) { return heed::naive_attention_with_lse(exec, q, k, k); });
}

// Dropout, bias and documents decide by position, not by thread.
TEST(ParallelModifiers, SameBits) {
  const auto q = oracle::random_tensor<float, 4>({2, 4, 300, 16}, 1);
  const auto k = oracle::random_tensor<float, 4>({2, 2, 300, 16}, 2);
  const auto bias = oracle::random_tensor<float, 2>({300, 300}, 3);
  std::vector<index> ids(300);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<index>(i / 77);
  const std::vector<float> logits = {0.5F, -1.0F, 2.0F, 0.0F};
  expect_same_bits([&](auto& exec) {
    return heed::attention_with_lse(exec, q, k, k, {}, heed::softcap(5), heed::alibi(),
                                    heed::bias(bias), heed::documents(ids), heed::sink(logits),
                                    heed::dropout{.probability = 0.2, .seed = 5});
  });
}

// A workspace grows with the number of threads and serves fewer again.
TEST(ParallelWorkspace, ServesAnyNumberOfThreads) {
  const auto q = oracle::random_tensor<float, 4>({2, 4, 300, 16}, 1);
  const auto want = heed::attention(q, q, q);
  heed::workspace scratch;
  for (const index threads : {1, 7, 2}) {
    heed::thread_pool pool(threads);
    EXPECT_TRUE(oracle::same_bits(heed::attention(pool, q, q, q, {.scratch = &scratch}), want));
  }
}

// One pool, several threads that call at once, each with results of its own.
TEST(ParallelPool, SharedBySeveralCallers) {
  heed::thread_pool pool(3);
  constexpr std::size_t callers = 4;
  std::array<int, callers> wrong{};
  std::vector<std::thread> threads;
  for (std::size_t caller = 0; caller < callers; ++caller) {
    threads.emplace_back([&, caller] {
      const auto seed = static_cast<unsigned>(10 * caller);
      const auto q = oracle::random_tensor<float, 3>({4, 200, 16}, seed);
      const auto k = oracle::random_tensor<float, 3>({2, 250, 16}, seed + 1);
      const auto one = heed::as_view(q).slice(1, 0, 1);
      const auto want = heed::attention(q, k, k, {}, heed::causal());
      const auto want_one = heed::attention(one, k, k);
      heed::workspace scratch;
      for (int n = 0; n < 10; ++n) {
        const auto got = heed::attention(pool, q, k, k, {.scratch = &scratch}, heed::causal());
        const auto got_one = heed::attention(pool, one, k, k);
        if (!oracle::same_bits(got, want) || !oracle::same_bits(got_one, want_one)) ++wrong[caller];
      }
    });
  }
  for (auto& t : threads) t.join();
  for (const int n : wrong) EXPECT_EQ(n, 0);
}

/// An executor of three lines over fresh threads, as a user would write it.
struct fresh_threads {
  [[nodiscard]] static index concurrency() { return 4; }
  template <class Body>
  static void run(index workers, Body&& body) {
    std::vector<std::thread> threads;
    for (index w = 0; w < workers; ++w) threads.emplace_back([&body, w] { body(w); });
    for (auto& t : threads) t.join();
  }
};

TEST(ParallelExecutor, OfTheUsersOwn) {
  const auto q = oracle::random_tensor<float, 3>({4, 200, 16}, 1);
  const auto few = heed::as_view(q).slice(1, 0, 2);
  EXPECT_TRUE(oracle::same_bits(heed::attention(fresh_threads{}, q, q, q, {}, heed::causal()),
                                heed::attention(q, q, q, {}, heed::causal())));
  EXPECT_TRUE(
      oracle::same_bits(heed::attention(fresh_threads{}, few, q, q), heed::attention(few, q, q)));
}

}  // namespace
