// SPDX-License-Identifier: MIT
// Attention within clusters: the textbook in double under the mask "some cluster holds both"; and
// the routes that make clusters, against plain loops.

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "attention_oracle.hpp"
#include "heed/attention.hpp"
#include "heed/parallel.hpp"
#include "heed/score.hpp"

namespace {

using heed::index;
using heed::position;

struct shapes {
  index batch = 2;
  index heads = 4;
  index kv_heads = 2;
  index queries = 61;
  index keys = 83;
  index list_batch = 2;
  index query_heads = 4;  // of the lists
  index key_heads = 2;
  index clusters = 5;
  index window = 20;
  index key_window = 30;
};

using lists = heed::tensor<index, 4>;

/// Tokens in any order, some of them none, some of them twice in a cluster, many in several.
lists random_lists(index batch, index heads, index clusters, index window, index tokens,
                   unsigned seed) {
  lists t({batch, heads, clusters, window});
  std::mt19937 draw(seed);
  for (index i = 0; i < t.size(); ++i) {
    t.data()[i] = static_cast<index>(draw() % static_cast<unsigned>(tokens + 2)) - 1;
    if (t.data()[i] == tokens) t.data()[i] = -1;
  }
  return t;
}

/// The clusters as a mask, pair by pair.
struct clustered {
  const lists& queries;
  const lists& keys;
  shapes s;

  static bool holds(const lists& l, const shapes& s, const position& p, index cluster,
                    index token) {
    const index b = l.extent(0) == 1 ? 0 : p.batch;
    const index h = l.extent(1) == 1 ? 0 : l.extent(1) == s.heads ? p.head : p.kv_head;
    for (index i = 0; i < l.extent(3); ++i) {
      if (l(b, h, cluster, i) == token) return true;
    }
    return false;
  }
  bool operator()(const position& p) const {
    for (index c = 0; c < s.clusters; ++c) {
      if (holds(queries, s, p, c, p.row) && holds(keys, s, p, c, p.key)) return true;
    }
    return false;
  }
};

template <class T, class... M>
void check(const shapes& s, const heed::attention_options& options, const M&... mods) {
  const auto q = oracle::random_tensor<T, 4>({s.batch, s.heads, s.queries, 18}, 1);
  const auto k = oracle::random_tensor<T, 4>({s.batch, s.kv_heads, s.keys, 18}, 2);
  const auto v = oracle::random_tensor<T, 4>({s.batch, s.kv_heads, s.keys, 21}, 3);
  const lists queries =
      random_lists(s.list_batch, s.query_heads, s.clusters, s.window, s.queries, 4);
  const lists keys = random_lists(1, s.key_heads, s.clusters, s.key_window, s.keys, 5);
  auto want = oracle::expected(q, k, v, options, mods..., clustered{queries, keys, s});
  want.sizes.keys += 4 * s.clusters;  // a row's parts merge: two more roundings each
  heed::tensor<T, 4> out({s.batch, s.heads, s.queries, 21});
  heed::tensor<heed::accumulate_t<T>, 3> lse({s.batch, s.heads, s.queries});
  heed::serial_executor serial;
  heed::routing_attention_into(serial, heed::into(out, lse), q, k, v, queries, keys, options,
                               mods...);
  EXPECT_EQ(oracle::difference<T>(out, want.output, want.sizes), "");
  EXPECT_EQ(oracle::lse_difference<T>(lse, want.log_sum_exp, want.sizes), "");
  for (const index threads : {2, 7}) {
    heed::thread_pool pool(threads);
    EXPECT_TRUE(oracle::same_bits(
        out, heed::routing_attention(pool, q, k, v, queries, keys, options, mods...)));
  }
}

TEST(Routing, IsAttentionUnderItsMask) {
  for (const index query_heads : {1, 2, 4}) {
    for (const index key_heads : {1, 2, 4}) {
      shapes s;
      s.query_heads = query_heads;
      s.key_heads = key_heads;
      check<float>(s, {});
      s.list_batch = 1;
      check<float>(s, {.scale = 0.5, .offset = 20}, heed::causal());
    }
  }
}

TEST(Routing, EveryScalar) {
  const shapes s;
  check<double>(s, {}, heed::causal());
  check<heed::half>(s, {}, heed::causal());
  check<heed::bfloat16>(s, {}, heed::causal());
}

TEST(Routing, ItsOptionsAllApply) {
  const std::vector<float> sinks{0.5F, -1.0F, 2.0F, 0.0F};
  const shapes s;
  const std::vector<index> offsets{5, -7};
  const std::vector<index> lengths{83, 40};
  const auto bias = oracle::random_tensor<float, 4>({2, 1, 61, 80}, 6);
  check<float>(s, {.offset = offsets}, heed::causal(), heed::softcap(3.0), heed::alibi(),
               heed::sink(sinks));
  check<float>(
      s, {}, heed::window{.left = 30, .right = 3}, heed::dropout{0.25, 7},
      [](auto x, const position& p) { return x + decltype(x)(0.1) * decltype(x)(p.key % 5); });
  check<double>(s, {}, heed::bias(bias), heed::lengths(lengths));
}

TEST(Routing, AnyCountOfTokensClustersAndListed) {
  for (const index queries : {0, 1, 53}) {
    for (const index keys : {1, 130}) {
      for (const index clusters : {0, 1, 70}) {
        for (const index window : {0, 1, 400}) {
          shapes s;
          s.queries = queries;
          s.keys = keys;
          s.clusters = clusters;
          s.window = window;
          s.key_window = clusters == 70 ? 5 : 150;
          check<float>(s, {});
        }
      }
    }
  }
}

TEST(Routing, WhatIsBehindTheMaskStaysThere) {
  const auto q = oracle::random_tensor<float, 4>({1, 1, 40, 8}, 1);
  auto k = oracle::random_tensor<float, 4>({1, 1, 40, 8}, 2);
  auto v = oracle::random_tensor<float, 4>({1, 1, 40, 8}, 3);
  // Row 3 and key 5 are in clusters 0 and 1: the pair counts once. Key 9 is in cluster 1 alone.
  lists queries({1, 1, 2, 2});
  lists keys({1, 1, 2, 3});
  const index rows[] = {3, 4, 3, 7};
  const index listed[] = {5, 6, 8, 5, 9, -1};
  std::copy_n(rows, 4, queries.data());
  std::copy_n(listed, 6, keys.data());
  const auto clean = heed::routing_attention(q, k, v, queries, keys);
  for (index c = 0; c < 8; ++c) {
    k(0, 0, 9, c) = v(0, 0, 9, c) = std::numeric_limits<float>::quiet_NaN();
    k(0, 0, 11, c) = v(0, 0, 11, c) = std::numeric_limits<float>::infinity();
  }
  const auto out = heed::routing_attention(q, k, v, queries, keys);
  for (index c = 0; c < 8; ++c) {
    EXPECT_EQ(out(0, 0, 4, c), clean(0, 0, 4, c));
    EXPECT_TRUE(std::isnan(out(0, 0, 3, c)));
    EXPECT_TRUE(std::isnan(out(0, 0, 7, c)));
    EXPECT_EQ(out(0, 0, 5, c), 0.0F);
  }
}

TEST(RoutingErrors, NameTheLists) {
  const auto q = oracle::random_tensor<float, 4>({2, 4, 37, 8}, 1);
  const auto k = oracle::random_tensor<float, 4>({2, 2, 83, 8}, 2);
  const lists queries = random_lists(2, 4, 3, 10, 37, 3);
  const lists keys = random_lists(1, 2, 3, 10, 83, 3);
  EXPECT_NO_THROW((void)heed::routing_attention(q, k, k, queries, keys));
  EXPECT_THROW((void)heed::routing_attention(q, k, k, keys, keys), heed::shape_error);
  for (const auto& wrong : {lists({2, 3, 3, 10}), lists({3, 2, 3, 10}), lists({2, 2, 4, 10})}) {
    EXPECT_THROW((void)heed::routing_attention(q, k, k, queries, wrong), heed::shape_error);
  }
}

}  // namespace
