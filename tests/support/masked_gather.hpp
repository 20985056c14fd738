// SPDX-License-Identifier: MIT
// What every sparse gather must be, written once: the textbook in double under the gather's mask,
// with every option and modifier, the same bits for any number of threads.
//
//   struct a_gather {
//     auto mask() const;                        // what it makes visible, pair by pair
//     index merges() const;                     // partial results that a row merges
//     template <class Target, class... A>
//     void operator()(auto& exec, Target&& target, const A&... q_k_v_options_modifiers) const;
//   };
#pragma once

#include <utility>
#include <vector>

#include "heed/parallel.hpp"
#include "heed/score.hpp"
#include "support/attention_oracle.hpp"

namespace masked_gather {

using heed::index;

struct shapes {
  index batch = 2;
  index heads = 4;
  index kv_heads = 2;
  index queries = 61;
  index keys = 83;
  index head_dim = 18;
  index value_dim = 21;
};

template <class T, class Gather, class... M>
void check(const shapes& s, const Gather& gather, const heed::attention_options& options,
           const M&... mods) {
  const auto q = oracle::random_tensor<T, 4>({s.batch, s.heads, s.queries, s.head_dim}, 1);
  const auto k = oracle::random_tensor<T, 4>({s.batch, s.kv_heads, s.keys, s.head_dim}, 2);
  const auto v = oracle::random_tensor<T, 4>({s.batch, s.kv_heads, s.keys, s.value_dim}, 3);
  auto want = oracle::expected(q, k, v, options, mods..., gather.mask());
  want.sizes.keys += 4 * gather.merges();  // two more roundings each, of two numbers
  const auto run = [&](auto& exec) {
    std::pair result(heed::tensor<T, 4>({s.batch, s.heads, s.queries, s.value_dim}),
                     heed::tensor<heed::accumulate_t<T>, 3>({s.batch, s.heads, s.queries}));
    gather(exec, heed::into(result.first, result.second), q, k, v, options, mods...);
    return result;
  };
  heed::thread_pool one(1);
  const auto got = run(one);
  EXPECT_EQ(oracle::difference<T>(got.first, want.output, want.sizes), "");
  EXPECT_EQ(oracle::lse_difference<T>(got.second, want.log_sum_exp, want.sizes), "");
  for (const index threads : {2, 7}) {
    heed::thread_pool pool(threads);
    const auto again = run(pool);
    EXPECT_TRUE(oracle::same_bits(got.first, again.first)) << threads << " threads";
    EXPECT_TRUE(oracle::same_bits(got.second, again.second)) << threads << " threads";
  }
}

/// Offsets, softcap, slopes, sinks; windows, dropout, a lambda; bias and lengths. For two batches of
/// four heads.
template <class Gather>
void check_options(const shapes& s, const Gather& gather) {
  const std::vector<float> sinks{0.5F, -1.0F, 2.0F, 0.0F};
  const std::vector<index> offsets{5, -7};
  const std::vector<index> lengths{s.keys, s.keys / 2};
  const auto bias = oracle::random_tensor<float, 4>({2, 1, s.queries, s.keys - 3}, 6);
  check<float>(s, gather, {.offset = offsets}, heed::causal(), heed::softcap(3.0), heed::alibi(),
               heed::sink(sinks));
  check<float>(s, gather, {.scale = 0.4}, heed::window{.left = 30, .right = 3},
               heed::dropout{0.25, 7}, [](auto x, const heed::position& p) {
                 return x + decltype(x)(0.1) * decltype(x)(p.key % 5);
               });
  check<double>(s, gather, {}, heed::bias(bias), heed::lengths(lengths));
}

template <class Gather>
void check_scalars(const shapes& s, const Gather& gather) {
  check<float>(s, gather, {}, heed::causal());
  check<double>(s, gather, {}, heed::causal());
  check<heed::half>(s, gather, {}, heed::causal());
  check<heed::bfloat16>(s, gather, {}, heed::causal());
}

}  // namespace masked_gather
