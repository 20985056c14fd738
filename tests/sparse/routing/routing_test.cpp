// SPDX-License-Identifier: MIT
// Attention within clusters: the textbook in double under the mask "some cluster holds both"; and
// the routes that make clusters, against plain loops.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "heed/attention.hpp"
#include "heed/parallel.hpp"
#include "heed/score.hpp"
#include "heed/sparse.hpp"
#include "heed/sparse/routing/naive.hpp"
#include "support/attention_oracle.hpp"
#include "support/masked_gather.hpp"

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

/// Routing attention as a gather under its mask.
struct routing_gather {
  const lists& queries;
  const lists& keys;
  index heads;

  [[nodiscard]] auto mask() const {
    return heed::cluster_mask<index, index>{heed::view<const index, 4>(heed::as_view(queries)),
                                            heed::view<const index, 4>(heed::as_view(keys)), heads};
  }
  [[nodiscard]] index merges() const { return queries.extent(2); }
  template <class E, class Target, class Q, class K, class V, class... M>
  void operator()(E& exec, Target&& target, const Q& q, const K& k, const V& v,
                  const heed::attention_options& options, const M&... mods) const {
    heed::routing_attention_into(exec, target, q, k, v, queries, keys, options, mods...);
  }
};

/// f(tokens, gather) of random clusters.
template <class F>
void with_clusters(const shapes& s, F&& f) {
  const lists queries =
      random_lists(s.list_batch, s.query_heads, s.clusters, s.window, s.queries, 4);
  const lists keys = random_lists(1, s.key_heads, s.clusters, s.key_window, s.keys, 5);
  f(masked_gather::shapes{.batch = s.batch,
                          .heads = s.heads,
                          .kv_heads = s.kv_heads,
                          .queries = s.queries,
                          .keys = s.keys},
    routing_gather{queries, keys, s.heads});
}

template <class T, class... M>
void check(const shapes& s, const heed::attention_options& options, const M&... mods) {
  with_clusters(s, [&](const auto& tokens, const auto& gather) {
    masked_gather::check<T>(tokens, gather, options, mods...);
  });
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
  with_clusters({}, [](const auto&... x) { masked_gather::check_scalars(x...); });
}

TEST(Routing, ItsOptionsAllApply) {
  with_clusters({}, [](const auto&... x) { masked_gather::check_options(x...); });
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

/// A token as routing compares it.
template <class T>
std::vector<double> direction(const heed::tensor<T, 4>& x, index b, index h, index i) {
  std::vector<double> to;
  double mean = 0;
  for (index c = 0; c < x.extent(3); ++c) to.push_back(static_cast<double>(x(b, h, i, c)));
  for (const double a : to) mean += a / static_cast<double>(to.size());
  double square = 0;
  for (double& a : to) {
    a -= mean;
    square += a * a;
  }
  for (double& a : to) a = square > 1e-20 ? a / std::sqrt(square) : 0;
  return to;
}

double dot_with(const heed::tensor<float, 3>& centroids, index h, index m,
                const std::vector<double>& x) {
  double dot = 0;
  for (std::size_t c = 0; c < x.size(); ++c) {
    dot += static_cast<double>(centroids(h, m, static_cast<index>(c))) * x[c];
  }
  return dot;
}

template <class T>
void check_routes(index tokens, index clusters, index window) {
  heed::thread_pool pool(3);
  heed::serial_executor serial;
  auto x = oracle::random_tensor<T, 4>({2, 4, tokens, 19}, 1);
  // Twins: of two equal scores the lower token is taken.
  for (index i = 1; i < tokens; i += 2) {
    for (index c = 0; c < 19; ++c) x(0, 1, i, c) = x(0, 1, i - 1, c);
  }
  const auto centroids = oracle::random_tensor<float, 3>({2, clusters, 19}, 2);
  const auto got = heed::route_tokens(pool, x, centroids, window);
  EXPECT_TRUE(oracle::same_bits(got, heed::route_tokens(serial, x, centroids, window)));
  const index taken = window > 0 ? window : clusters > 0 ? heed::ceil_div(tokens, clusters) : 0;
  ASSERT_EQ(got.extents(), (oracle::extents4{2, 4, clusters, taken}));
  oracle::each_index({2, 4, clusters, 1}, [&](index b, index h, index m, index) {
    std::vector<bool> in(static_cast<std::size_t>(tokens), false);
    for (index i = 0; i < taken; ++i) {
      const index t = got(b, h, m, i);
      EXPECT_EQ(t >= 0, i < tokens);
      if (t < 0) continue;
      if (i > 0) {
        EXPECT_LT(got(b, h, m, i - 1), t);
      }
      in[static_cast<std::size_t>(t)] = true;
    }
    double worst = oracle::infinity;
    double best = -oracle::infinity;
    for (index i = 0; i < tokens; ++i) {
      const double score = dot_with(centroids, h / 2, m, direction(x, b, h, i));
      (in[static_cast<std::size_t>(i)] ? worst : best) =
          in[static_cast<std::size_t>(i)] ? std::min(worst, score) : std::max(best, score);
      if (b == 0 && h == 1 && i % 2 == 1) {
        EXPECT_GE(in[static_cast<std::size_t>(i - 1)], in[static_cast<std::size_t>(i)]);
      }
    }
    // Sums of 19 products of size 1, and their mean taken off: some 40 roundings of float.
    EXPECT_GE(worst, best - 40 * 6e-8 * std::sqrt(19.0) * 3);
  });
}

TEST(RouteTokens, TakesTheNearest) {
  for (const index tokens : {0, 1, 7, 130, 1031}) {
    for (const index clusters : {0, 1, 5, 18}) {
      check_routes<float>(tokens, clusters, 0);
      check_routes<heed::bfloat16>(tokens, clusters, 11);
    }
  }
}

TEST(RoutingCentroids, AStepIsTheMeanOfTheNearest) {
  heed::thread_pool pool(3);
  heed::serial_executor serial;
  const auto q = oracle::random_tensor<float, 4>({2, 4, 101, 19}, 1);
  auto k = oracle::random_tensor<float, 4>({2, 2, 67, 19}, 2);
  for (index c = 0; c < 19; ++c) k(0, 0, 3, c) = 2.3F;  // without a direction
  const auto start = heed::routing_centroids(pool, {.clusters = 6, .steps = 2, .seed = 4}, q, k);
  auto moved = start;
  heed::update_centroids(pool, moved, 0.75, q, k);
  auto same = start;
  heed::update_centroids(serial, same, 0.75, q, k);
  EXPECT_TRUE(oracle::same_bits(moved, same));
  for (index h = 0; h < 2; ++h) {
    std::vector<std::vector<double>> sum(6, std::vector<double>(19, 0.0));
    std::vector<double> count(6, 0.0);
    double close = oracle::infinity;  // how near any token is to two clusters at once
    const auto add = [&](const auto& x, index head, index b, index i) {
      const auto at = direction(x, b, head, i);
      if (std::all_of(at.begin(), at.end(), [](double a) { return a == 0; })) return;
      std::vector<std::pair<double, std::size_t>> near;
      for (index m = 0; m < 6; ++m) {
        near.emplace_back(-dot_with(start, h, m, at), static_cast<std::size_t>(m));
      }
      std::sort(near.begin(), near.end());
      close = std::min(close, near[1].first - near[0].first);
      for (std::size_t c = 0; c < 19; ++c) sum[near[0].second][c] += at[c];
      ++count[near[0].second];
    };
    for (index b = 0; b < 2; ++b) {
      for (index i = 0; i < 101; ++i) {
        add(q, 2 * h, b, i);
        add(q, 2 * h + 1, b, i);
      }
      for (index i = 0; i < 67; ++i) add(k, h, b, i);
    }
    ASSERT_GT(close, 1e-6);
    for (index m = 0; m < 6; ++m) {
      const auto at = static_cast<std::size_t>(m);
      ASSERT_GT(count[at], 0);
      std::vector<double> want(19);
      double square = 0;
      for (std::size_t c = 0; c < 19; ++c) {
        want[c] = 0.75 * static_cast<double>(start(h, m, static_cast<index>(c))) +
                  0.25 * sum[at][c] / count[at];
        square += want[c] * want[c];
      }
      for (std::size_t c = 0; c < 19; ++c) {
        EXPECT_NEAR(moved(h, m, static_cast<index>(c)), want[c] / std::sqrt(square), 1e-6);
      }
    }
  }
}

/// Tokens around eight directions: every cluster becomes one of them.
TEST(RoutingCentroids, FindWhatWasPlanted) {
  heed::thread_pool pool(2);
  const auto centre = oracle::random_tensor<double, 4>({1, 1, 8, 24}, 1);
  auto x = oracle::random_tensor<double, 4>({1, 1, 800, 24}, 2, 0.05);
  for (index i = 0; i < 800; ++i) {
    for (index c = 0; c < 24; ++c) x(0, 0, i, c) += centre(0, 0, i / 100, c);
  }
  const auto centroids = heed::routing_centroids(pool, {.clusters = 8}, x);
  const auto routes = heed::route_tokens(pool, x, centroids);
  for (index m = 0; m < 8; ++m) {
    for (index i = 0; i < 100; ++i) EXPECT_EQ(routes(0, 0, m, i), 100 * m + i);
  }
  // A cluster sees all of its kind: attention that is sharp enough sees no difference.
  const auto k = heed::unit_keys(x);
  const auto near = heed::routing_attention(pool, x, k, x, routes, routes, {.scale = 40.0});
  const auto all = heed::attention(pool, x, k, x, {.scale = 40.0});
  for (index i = 0; i < all.size(); ++i) EXPECT_NEAR(near.data()[i], all.data()[i], 1e-6);
}

TEST(Routing, AnyLayoutAndKeptMemory) {
  const auto q = oracle::random_tensor<float, 4>({2, 4, 45, 18}, 1);
  const auto k = oracle::random_tensor<float, 4>({2, 2, 45, 18}, 2);
  const auto v = oracle::random_tensor<float, 4>({2, 2, 45, 21}, 3);
  const lists clusters = random_lists(1, 1, 4, 20, 45, 4);
  const auto run = [&](const auto& to, const auto& a, const auto& b, const auto& c) {
    heed::routing_attention_into(to, a, b, c, clusters, clusters, {}, heed::causal());
  };
  heed::tensor<float, 4> want({2, 4, 45, 21});
  run(heed::as_view(want), q, k, v);
  const oracle::layout odd{{0, 2, 1, 3}, {0, 3, 0, 0}, {false, true, false, false}, 2};
  const oracle::layout permuted{{3, 1, 2, 0}, {0, 0, 0, 1}, {false, false, true, true}, 0};
  const oracle::laid_out<float> q2(q, odd);
  const oracle::laid_out<float> k2(k, permuted);
  const oracle::laid_out<float> v2(v, permuted);
  const oracle::laid_out<float> out({2, 4, 45, 21}, permuted);
  run(out.view(), q2.cview(), k2.cview(), v2.cview());
  EXPECT_EQ(out.overwritten(), 0);
  oracle::each_index(want.extents(), [&](index b, index h, index i, index c) {
    EXPECT_EQ(out.view()(b, h, i, c), want(b, h, i, c));
  });
}

TEST(RoutingErrors, NameTheTokens) {
  heed::serial_executor serial;
  const auto x = oracle::random_tensor<float, 4>({1, 4, 37, 8}, 1);
  auto three = heed::tensor<float, 3>({3, 5, 8});
  auto narrow = heed::tensor<float, 3>({2, 5, 7});
  auto good = heed::tensor<float, 3>({2, 5, 8});
  EXPECT_THROW((void)heed::route_tokens(serial, x, three), heed::shape_error);
  EXPECT_THROW((void)heed::route_tokens(serial, x, narrow), heed::shape_error);
  EXPECT_THROW((void)heed::route_tokens(serial, x, good, -1), heed::option_error);
  EXPECT_THROW(heed::update_centroids(serial, three, 0.5, x), heed::shape_error);
  EXPECT_THROW(heed::update_centroids(serial, good, 1.5, x), heed::option_error);
  EXPECT_THROW((void)heed::routing_centroids(serial, {.clusters = 0}, x), heed::option_error);
  EXPECT_THROW((void)heed::routing_centroids(serial, {.steps = -1}, x), heed::option_error);
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
