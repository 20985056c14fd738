// SPDX-License-Identifier: MIT
// Modifiers in every form: a change of the probabilities acts, or the call does not compile; none is
// copied below the call; one object may serve calls of several threads.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <thread>
#include <vector>

#include "heed/heed.hpp"
#include "support/attention_oracle.hpp"

namespace {

using heed::index;
using heed::position;

heed::tensor<float, 4> numbers(const std::array<index, 4>& extents, unsigned seed) {
  return oracle::random_tensor<float, 4>(extents, seed);
}

/// p -> f(p) of the textbook's probabilities under `visible`.
template <class F, class Visible>
heed::tensor<double, 4> changed(const heed::tensor<float, 4>& q, const heed::tensor<float, 4>& k,
                                const heed::tensor<float, 4>& v, index offset, F f,
                                Visible visible) {
  const index n = q.extent(2);
  const index group = q.extent(1) / k.extent(1);
  heed::tensor<double, 4> out({q.extent(0), q.extent(1), n, v.extent(3)});
  std::vector<double> s(static_cast<std::size_t>(k.extent(2)));
  oracle::each_index({q.extent(0), q.extent(1), n, 1}, [&](index b, index h, index i, index) {
    double sum = 0;
    for (index j = 0; j < k.extent(2); ++j) {
      double dot = 0;
      for (index c = 0; c < q.extent(3); ++c) {
        dot += static_cast<double>(q(b, h, i, c)) * static_cast<double>(k(b, h / group, j, c));
      }
      const position p{b, h, h / group, offset + i, j, i};
      dot /= std::sqrt(static_cast<double>(q.extent(3)));
      s[static_cast<std::size_t>(j)] = visible(p) ? std::exp(dot) : 0;
      sum += s[static_cast<std::size_t>(j)];
    }
    for (index j = 0; j < k.extent(2); ++j) {
      const position p{b, h, h / group, offset + i, j, i};
      if (!visible(p)) continue;
      const double w = f(s[static_cast<std::size_t>(j)] / sum, p);
      for (index c = 0; c < v.extent(3); ++c) {
        out(b, h, i, c) += w * static_cast<double>(v(b, h / group, j, c));
      }
    }
  });
  return out;
}

template <class Got>
double farthest(const Got& got, const heed::tensor<double, 4>& want) {
  const auto wide = oracle::widened(got);
  double most = 0;
  for (index i = 0; i < want.size(); ++i) {
    const double d = std::abs(wide.data()[i] - want.data()[i]);
    most = !(d <= most) ? d : most;
  }
  return most;
}

// f(0) is not 0: a masked pair must contribute nothing all the same.
TEST(ModifierForms, ProbabilitiesAreChangedInEveryFormThatSeesWholeRows) {
  const auto f = [](double p, const position& at) {
    return 0.01 + p * p * (1 + static_cast<double>(at.key % 3));
  };
  const auto modifier = heed::probability(f);
  const auto causal = [](const position& p) { return p.key <= p.query; };
  // |out| is at most some 30 keys of 0.01 + 3 p, each p known to 30 eps.
  constexpr double allowed = 2e-5;
  for (const index n : {1, 2, 40}) {
    const index keys = 50;
    const auto q = numbers({2, 4, n, 16}, 1);
    const auto k = numbers({2, 2, keys, 16}, 2);
    auto v = numbers({2, 2, keys, 9}, 3);
    const heed::attention_options o{.offset = keys - n};
    const auto want = changed(q, k, v, keys - n, f, causal);
    EXPECT_LE(farthest(heed::naive_attention(q, k, v, o, heed::causal(), modifier), want), allowed);
    EXPECT_LE(farthest(heed::attention(q, k, v, o, heed::causal(), modifier), want), allowed) << n;
    const auto both = heed::attention_with_lse(q, k, v, o, heed::causal(), modifier);
    const auto plain = heed::naive_attention_with_lse(q, k, v, o, heed::causal());
    for (index i = 0; i < plain.log_sum_exp.size(); ++i) {
      EXPECT_NEAR(both.log_sum_exp.data()[i], plain.log_sum_exp.data()[i], 1e-5);
    }
    heed::contiguous_cache<float> cache(
        {.batch = 2, .kv_heads = 2, .capacity = keys, .head_dim = 16, .value_dim = 9});
    cache.append(k, v);
    EXPECT_LE(farthest(heed::decode(q, cache, {}, heed::causal(), modifier), want), allowed) << n;
    const std::vector<index> cu_seqlens_q{0, n};
    const std::vector<index> cu_seqlens_k{0, keys};
    heed::tensor<double, 4> first({1, 4, n, 9});
    for (index i = 0; i < first.size(); ++i) first.data()[i] = want.data()[i];
    const auto ragged =
        heed::ragged_attention(heed::as_view(q)[0], heed::as_view(k)[0], heed::as_view(v)[0],
                               cu_seqlens_q, cu_seqlens_k, o, heed::causal(), modifier);
    EXPECT_LE(farthest(ragged, first), allowed) << n;
    // What hidden values hold does not matter.
    if (n < keys) {
      const auto short_keys = [=](const position& p) { return p.key < keys - 1; };
      const auto hidden = changed(q, k, v, 0, f, short_keys);
      for (index c = 0; c < 9; ++c) v(0, 0, keys - 1, c) = std::nanf("");
      EXPECT_LE(farthest(heed::attention(q, k, v, {}, short_keys, modifier), hidden), allowed);
      EXPECT_LE(farthest(heed::naive_attention(q, k, v, {}, short_keys, modifier), hidden),
                allowed);
    }
  }
}

/// A table that counts how often it is copied; as a score modifier, and as a mask.
struct counted_table {
  static inline std::atomic<int> copies = 0;
  std::vector<float> values;
  explicit counted_table(index n) : values(static_cast<std::size_t>(n), 0.25F) {}
  counted_table(const counted_table& other) : values(other.values) { ++copies; }
  counted_table& operator=(const counted_table&) = delete;
  ~counted_table() = default;
};
struct table_score : counted_table {
  using counted_table::counted_table;
  float operator()(float s, const position& p) const {
    return s + values[static_cast<std::size_t>(p.key)];
  }
};
struct table_mask : counted_table {
  using counted_table::counted_table;
  bool operator()(const position& p) const {
    return values[static_cast<std::size_t>(p.key)] > 0 && p.key != 1;
  }
};

TEST(ModifierForms, NoneIsCopiedBelowTheCall) {
  const index n = 200;
  const auto q = numbers({1, 2, n, 16}, 1);
  const auto few = heed::as_view(q).slice(2, 0, 2);
  const table_score score(n);
  const table_mask mask(n);
  heed::contiguous_cache<float> cache({.kv_heads = 2, .capacity = n, .head_dim = 16});
  cache.append(q, q);
  const heed::block_pattern pattern({.queries = n, .keys = n, .query_block = 64, .key_block = 64},
                                    std::vector<std::vector<index>>(4, {0, 1, 2, 3}));
  const auto combined = heed::causal() && mask;
  const auto either = heed::causal() || !combined;
  const auto pattern_of_mask = heed::blocks(pattern, mask);
  heed::tensor<index, 4> chosen({1, 1, n, 50});
  heed::tensor<index, 4> bucket({1, 1, 1, n});
  heed::tensor<index, 4> cluster({1, 1, 1, n});
  for (index i = 0; i < chosen.size(); ++i) chosen.data()[i] = i % 50;
  for (index i = 0; i < n; ++i) cluster(0, 0, 0, i) = i;
  counted_table::copies = 0;
  (void)heed::attention(q, q, q, {}, score, mask, combined, either, pattern_of_mask);
  (void)heed::attention(few, q, q, {}, score, mask, combined, pattern_of_mask);
  (void)heed::naive_attention(few, q, q, {}, score, mask, combined);
  (void)heed::decode(few, cache, {}, score, mask, combined);
  const std::vector<index> starts{0, 3, n};
  (void)heed::ragged_attention(heed::as_view(q)[0], heed::as_view(q)[0], heed::as_view(q)[0],
                               starts, starts, {}, score, mask);
  (void)heed::selected_attention(q, q, q, chosen, 1, {}, score, mask);
  (void)heed::selected_attention(q, q, q, chosen, 4, {}, score, mask);
  (void)heed::lsh_attention(q, q, q, bucket, bucket, {.chunk = n}, {}, score, mask);
  (void)heed::routing_attention(q, q, q, cluster, cluster, {}, score, mask);
  heed::serial_executor exec;
  (void)heed::attention_recall(exec, q, q, combined);
  EXPECT_EQ(counted_table::copies, 0);
}

// Calls of different batch, heads and lengths share one modifier: what a call learns is its own.
TEST(ParallelModifiers, OneObjectServesCallsOfSeveralShapes) {
  const std::vector<index> ids(96, 0);
  const heed::documents documents(std::span<const index>(ids).first(48));
  const heed::documents documents_of_batches(ids);
  const heed::alibi slopes;
  const heed::block_pattern pattern(
      {.heads = 2, .queries = 48, .keys = 48, .query_block = 16, .key_block = 16},
      std::vector<std::vector<index>>(6, {0, 2}));
  const auto blocks = heed::blocks(pattern);
  const auto combined = documents && heed::causal();
  const auto run = [&](index batch, index heads) {
    const auto q = numbers({batch, heads, 48, 8}, 5);
    const auto k = numbers({batch, 2, 48, 8}, 6);
    if (batch == 2) {
      return heed::attention(q, k, k, {}, slopes, blocks, combined, documents_of_batches);
    }
    return heed::attention(q, k, k, {}, slopes, blocks, combined);
  };
  const auto a = run(1, 2);
  const auto b = run(2, 4);
  bool same[2] = {true, true};
  std::thread threads[2];
  for (int t = 0; t < 2; ++t) {
    threads[t] = std::thread([&, t] {
      for (int n = 0; n < 30; ++n) {
        same[t] = same[t] && oracle::same_bits(t == 0 ? run(1, 2) : run(2, 4), t == 0 ? a : b);
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_TRUE(same[0]);
  EXPECT_TRUE(same[1]);
}

}  // namespace
