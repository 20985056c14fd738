// SPDX-License-Identifier: MIT
// Recall of a mask and of a selection against its definition in double; the verticals and slashes
// that an estimate finds against those sums in double, and against what was planted.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>
#include <vector>

#include "heed/attention.hpp"
#include "heed/parallel.hpp"
#include "heed/sparse.hpp"
#include "support/attention_oracle.hpp"
#include "support/scalars.hpp"

namespace {

using heed::index;
using heed::position;

/// Softmax in double of row i over the keys it may see, by definition.
template <class T>
std::vector<double> probabilities(const heed::tensor<T, 4>& q, const heed::tensor<T, 4>& k,
                                  double scale, index b, index h, index i, index keys) {
  const index kv = h / (q.extent(1) / k.extent(1));
  std::vector<double> p;
  double top = -oracle::infinity;
  for (index j = 0; j < keys; ++j) {
    double s = 0;
    for (index c = 0; c < q.extent(3); ++c) {
      s += static_cast<double>(q(b, h, i, c)) * static_cast<double>(k(b, kv, j, c));
    }
    p.push_back(s * scale);
    top = std::max(top, s * scale);
  }
  double sum = 0;
  for (double& x : p) sum += x = std::exp(x - top);
  for (double& x : p) x /= sum;
  return p;
}

/// The keys that row i may see.
index visible(bool causal, index offset, index i, index keys) {
  return causal ? std::clamp<index>(offset + i + 1, 0, keys) : keys;
}

/// What a sum of probabilities may be off by: each weight by the error of its score, the
/// probabilistic bound 4 sqrt(D) u of a sum of products, and of an exponential; twice, for the sum
/// it is divided by.
template <class T>
double tolerance(const heed::tensor<T, 4>& q, const heed::tensor<T, 4>& k, double scale) {
  using A = heed::accumulate_t<T>;
  const double u = oracle::unit_roundoff<A>() * (std::is_same_v<A, double> ? 2 : 1);
  const double product = scale * oracle::largest_row_norm(oracle::widened(q)) *
                         oracle::largest_row_norm(oracle::widened(k));
  return 2 * u * ((4 * std::sqrt(static_cast<double>(q.extent(3))) + 8) * product + 8);
}

/// The mean recall of a head over its sampled rows, of the keys that `keep(i, j)` keeps.
template <class T, class Keep>
double recall_by_definition(const heed::tensor<T, 4>& q, const heed::tensor<T, 4>& k,
                            const heed::recall_options& o, index b, index h, Keep&& keep) {
  const double scale = o.scale ? *o.scale : 1 / std::sqrt(static_cast<double>(q.extent(3)));
  double sum = 0;
  index rows = 0;
  for (index i = q.extent(2) - 1; i >= 0; i -= o.stride) {
    const auto p = probabilities(q, k, scale, b, h, i, visible(o.causal, o.offset, i, k.extent(2)));
    if (p.empty()) continue;
    ++rows;
    for (std::size_t j = 0; j < p.size(); ++j) sum += keep(i, static_cast<index>(j)) ? p[j] : 0.0;
  }
  return rows > 0 ? sum / static_cast<double>(rows) : 1.0;
}

template <class T>
class Recall : public testing::Test {};
using scalars = test_scalars::some;
TYPED_TEST_SUITE(Recall, scalars);

/// `keep(b, h, i, j)` is what the mask keeps.
template <class T, class M, class Keep>
void check_mask(const std::array<index, 3>& sizes, const heed::recall_options& o, const M& mask,
                Keep keep) {
  heed::thread_pool pool(3);
  heed::serial_executor serial;
  const auto q = oracle::random_tensor<T, 4>({2, 4, sizes[0], sizes[2]}, 1, 2.0);
  const auto k = oracle::random_tensor<T, 4>({2, 2, sizes[1], sizes[2]}, 2);
  const auto got = heed::attention_recall(pool, q, k, mask, o);
  EXPECT_TRUE(oracle::same_bits(got, heed::attention_recall(serial, q, k, mask, o)));
  const double scale = o.scale ? *o.scale : 1 / std::sqrt(static_cast<double>(sizes[2]));
  for (index b = 0; b < 2; ++b) {
    for (index h = 0; h < 4; ++h) {
      const double want =
          recall_by_definition(q, k, o, b, h, [&](index i, index j) { return keep(b, h, i, j); });
      EXPECT_NEAR(got(b, h), want, tolerance(q, k, scale)) << b << h;
    }
  }
}

TYPED_TEST(Recall, OfAMask) {
  using T = TypeParam;
  const auto window = [](index offset) {
    return [offset](index, index, index i, index j) {
      return offset + i - j <= 7 && j - offset - i <= 3;
    };
  };
  for (const bool causal : {false, true}) {
    for (const index stride : {1, 4, 100}) {
      const heed::recall_options o{.stride = stride, .causal = causal};
      check_mask<T>({41, 41, 19}, o, heed::window{.left = 7, .right = 3}, window(0));
      // A callable that says nothing of tiles, and tells batches and heads apart.
      check_mask<T>(
          {10, 300, 8}, {.stride = stride, .causal = causal, .offset = 290, .scale = 0.7},
          [](const position& p) { return (p.key + p.head + 3 * p.batch + p.kv_head) % 3 == 0; },
          [](index b, index h, index, index j) { return (j + h + 3 * b + h / 2) % 3 == 0; });
    }
  }
  // Rows in front of the first key see nothing and do not count.
  check_mask<T>({41, 30, 8}, {.offset = -20}, heed::window{.left = 7, .right = 3}, window(-20));
  check_mask<T>({5, 30, 8}, {.offset = -20}, heed::window{.left = 7, .right = 3}, window(-20));
}

TYPED_TEST(Recall, OfAPatternWithHeads) {
  using T = TypeParam;
  const heed::block_pattern pattern = heed::big_bird(
      {.batch = 1, .heads = 4, .queries = 300, .keys = 300, .query_block = 16, .key_block = 16},
      {.random = 2, .seed = 5});
  check_mask<T>({300, 300, 16}, {.stride = 7}, heed::blocks(pattern),
                [&](index, index h, index i, index j) {
                  return pattern.at(0, h, i / 16, j / 16) != heed::coverage::empty;
                });
}

TEST(RecallEnds, OneForAllAndZeroForNone) {
  heed::serial_executor serial;
  const auto q = oracle::random_tensor<float, 4>({1, 2, 50, 8}, 1);
  const auto k = oracle::random_tensor<float, 4>({1, 1, 50, 8}, 2);
  const auto all = heed::attention_recall(serial, q, k, heed::causal(), {.causal = true});
  const auto none = heed::attention_recall(serial, q, k, heed::window{.left = -1, .right = -1});
  const heed::tensor<float, 4> no_rows({1, 2, 0, 8});
  const auto of_nothing = heed::attention_recall(serial, no_rows, k, heed::causal());
  for (index h = 0; h < 2; ++h) {
    EXPECT_EQ(all(0, h), 1.0);
    EXPECT_EQ(none(0, h), 0.0);
    EXPECT_EQ(of_nothing(0, h), 1.0);
  }
  EXPECT_EQ(heed::mean_recall(all), 1.0);
  EXPECT_EQ(heed::mean_recall(none), 0.0);
  heed::tensor<double, 2> two({1, 2});
  two(0, 0) = 0.5;
  two(0, 1) = 1.0;
  EXPECT_EQ(heed::mean_recall(two), 0.75);
}

TEST(RecallEnds, ANaNOfOneHeadIsItsOwn) {
  heed::serial_executor serial;
  const auto q = oracle::random_tensor<float, 4>({1, 2, 50, 8}, 1);
  auto k = oracle::random_tensor<float, 4>({1, 2, 50, 8}, 2);
  k(0, 1, 20, 3) = std::numeric_limits<float>::quiet_NaN();
  const auto got = heed::attention_recall(serial, q, k, heed::causal(), {.causal = true});
  EXPECT_EQ(got(0, 0), 1.0);
  EXPECT_TRUE(std::isnan(got(0, 1)));
}

TYPED_TEST(Recall, OfASelection) {
  using T = TypeParam;
  heed::thread_pool pool(3);
  heed::serial_executor serial;
  const auto q = oracle::random_tensor<T, 4>({2, 4, 37, 19}, 1, 2.0);
  const auto k = oracle::random_tensor<T, 4>({2, 2, 83, 19}, 2);
  std::mt19937 draw(3);
  for (const index heads : {1, 2, 4}) {
    for (const index block : {1, 16, 90}) {
      heed::tensor<index, 4> selection({heads == 1 ? 1 : 2, heads, 37, 6});
      const auto blocks = static_cast<unsigned>(heed::ceil_div(83, block));
      for (index i = 0; i < selection.size(); ++i) {
        selection.data()[i] = static_cast<index>(draw() % (blocks + 1)) - 1;
      }
      const heed::recall_options o{.stride = 3, .causal = block != 90, .offset = 46};
      const auto got = heed::selection_recall(pool, q, k, selection, block, o);
      EXPECT_TRUE(
          oracle::same_bits(got, heed::selection_recall(serial, q, k, selection, block, o)));
      for (index b = 0; b < 2; ++b) {
        for (index h = 0; h < 4; ++h) {
          const double want = recall_by_definition(q, k, o, b, h, [&](index i, index j) {
            for (index c = 0; c < 6; ++c) {
              if (selection(heads == 1 ? 0 : b,
                            heads == 1   ? 0
                            : heads == 4 ? h
                                         : h / 2,
                            i, c) == j / block) {
                return true;
              }
            }
            return false;
          });
          EXPECT_NEAR(got(b, h), want, tolerance(q, k, 1 / std::sqrt(19.0))) << b << h;
        }
      }
    }
  }
}

// Products in another order of memory are the same products.
TEST(RecallLayouts, QueriesAndKeysOfAnyLayout) {
  heed::serial_executor serial;
  const auto q = oracle::random_tensor<float, 4>({1, 4, 60, 16}, 1, 2.0);
  const auto k = oracle::random_tensor<float, 4>({1, 2, 60, 16}, 2);
  const oracle::laid_out<float> permuted_q(q, {.order = {3, 1, 0, 2}, .backwards = {0, 1, 1, 0}});
  const oracle::laid_out<float> permuted_k(k, {.order = {0, 3, 2, 1}, .gap = {0, 0, 2, 1}});
  const heed::window window{.left = 9};
  const auto want = heed::attention_recall(serial, q, k, window, {.causal = true});
  const auto got = heed::attention_recall(serial, permuted_q.cview(), permuted_k.cview(), window,
                                          {.causal = true});
  for (index h = 0; h < 4; ++h) EXPECT_NEAR(got(0, h), want(0, h), tolerance(q, k, 0.25));
  const auto lists = heed::estimate_vertical_slash(serial, q, k, {.verticals = 5, .slashes = 5});
  const auto permuted = heed::estimate_vertical_slash(
      serial, permuted_q.cview(), permuted_k.cview(), {.verticals = 5, .slashes = 5});
  EXPECT_TRUE(oracle::same_bits(permuted.verticals, lists.verticals));
  EXPECT_TRUE(oracle::same_bits(permuted.slashes, lists.slashes));
}

// The best keys keep the most: more of them keep more, all of them all.
TEST(RecallOfTopKeys, GrowsToOne) {
  heed::serial_executor serial;
  const auto q = oracle::random_tensor<float, 4>({1, 1, 60, 16}, 1, 2.0);
  const auto k = oracle::random_tensor<float, 4>({1, 1, 60, 16}, 2);
  double last = 0;
  for (const index count : {1, 4, 16, 60}) {
    const auto keys = heed::top_k_keys(serial, q, k, {.count = count, .causal = true});
    const double share =
        heed::mean_recall(heed::selection_recall(serial, q, k, keys, 1, {.causal = true}));
    EXPECT_GT(share, last);
    last = share;
  }
  EXPECT_NEAR(last, 1.0, 1e-14);
}

TEST(RecallErrors, NameTheArgument) {
  heed::serial_executor serial;
  const heed::tensor<float, 4> q({1, 4, 6, 8});
  const heed::tensor<float, 4> k({1, 2, 6, 8});
  const heed::tensor<float, 4> narrow({1, 2, 6, 7});
  const heed::tensor<index, 4> selection({1, 3, 6, 2});
  EXPECT_THROW((void)heed::attention_recall(serial, q, narrow, heed::causal()), heed::shape_error);
  EXPECT_THROW((void)heed::attention_recall(serial, q, k, heed::causal(), {.stride = 0}),
               heed::option_error);
  EXPECT_THROW((void)heed::selection_recall(serial, q, k, selection, 2), heed::shape_error);
  EXPECT_THROW((void)heed::selection_recall(serial, q, k, selection, 0), heed::option_error);
}

// ------------------------------------------------------------------------------------ estimates

/// The sums of the last rows' probabilities by key and by distance, by definition.
struct sums {
  std::vector<double> by_key;
  std::vector<double> by_distance;
};

template <class T>
sums sums_by_definition(const heed::tensor<T, 4>& q, const heed::tensor<T, 4>& k,
                        const heed::vertical_slash_options& o, index b, index h) {
  const index n = q.extent(2);
  const double scale = o.scale ? *o.scale : 1 / std::sqrt(static_cast<double>(q.extent(3)));
  const auto seen = static_cast<std::size_t>(std::max<index>(0, o.offset + n));
  sums s{std::vector<double>(seen, 0.0), std::vector<double>(seen, 0.0)};
  for (index i = std::max<index>(0, n - o.queries); i < n; ++i) {
    const index position = o.offset + i;
    const auto p = probabilities(q, k, scale, b, h, i, visible(true, o.offset, i, k.extent(2)));
    for (index j = 0; j <= position; ++j) {
      s.by_key[static_cast<std::size_t>(j)] += p[static_cast<std::size_t>(j)];
      s.by_distance[static_cast<std::size_t>(position - j)] += p[static_cast<std::size_t>(j)];
    }
  }
  return s;
}

/// "" where `list` holds, ascending, `count` of the largest: none left out is larger than the
/// least of them by more than `within`.
std::string not_the_largest(const heed::tensor<index, 3>& list, index b, index h,
                            const std::vector<double>& of, double within) {
  std::set<index> held;
  double least = oracle::infinity;
  for (index n = 0; n < list.extent(2); ++n) {
    const index x = list(b, h, n);
    if (x < 0 || x >= static_cast<index>(of.size())) return "entry " + std::to_string(x);
    if (n > 0 && x <= list(b, h, n - 1)) return "not ascending at " + std::to_string(n);
    held.insert(x);
    least = std::min(least, of[static_cast<std::size_t>(x)]);
  }
  for (std::size_t x = 0; x < of.size(); ++x) {
    if (held.count(static_cast<index>(x)) == 0 && of[x] > least + within) {
      return std::to_string(x) + " is left out";
    }
  }
  return "";
}

template <class T>
class Estimate : public testing::Test {};
TYPED_TEST_SUITE(Estimate, scalars);

TYPED_TEST(Estimate, KeepsTheLargestSums) {
  using T = TypeParam;
  heed::thread_pool pool(3);
  heed::serial_executor serial;
  for (const auto& [queries, keys, offset] :
       {std::array<index, 3>{83, 83, 0}, {9, 83, 70}, {40, 30, -10}, {1, 1, 0}, {3, 5, -4}}) {
    for (const index rows : {1, 7, 64}) {
      const auto q = oracle::random_tensor<T, 4>({2, 4, queries, 19}, 1, 2.0);
      const auto k = oracle::random_tensor<T, 4>({2, 2, keys, 19}, 2);
      const heed::vertical_slash_options o{
          .queries = rows, .verticals = 6, .slashes = 5, .offset = offset, .scale = 0.4};
      const auto got = heed::estimate_vertical_slash(pool, q, k, o);
      const auto again = heed::estimate_vertical_slash(serial, q, k, o);
      EXPECT_TRUE(oracle::same_bits(got.verticals, again.verticals));
      EXPECT_TRUE(oracle::same_bits(got.slashes, again.slashes));
      const index seen = std::max<index>(0, offset + queries);
      ASSERT_EQ(got.verticals.extents(), (std::array<index, 3>{2, 4, std::min<index>(6, seen)}));
      ASSERT_EQ(got.slashes.extents(), (std::array<index, 3>{2, 4, std::min<index>(5, seen)}));
      // A sum of `rows` probabilities, each of at most 1.
      const double within =
          static_cast<double>(rows) *
          (tolerance(q, k, 0.4) +
           2 * static_cast<double>(keys) * oracle::unit_roundoff<heed::accumulate_t<T>>());
      for (index b = 0; b < 2; ++b) {
        for (index h = 0; h < 4; ++h) {
          auto want = sums_by_definition(q, k, o, b, h);
          if (seen > 0) want.by_distance[0] = oracle::infinity;
          EXPECT_EQ(not_the_largest(got.verticals, b, h, want.by_key, within), "");
          EXPECT_EQ(not_the_largest(got.slashes, b, h, want.by_distance, within), "");
        }
      }
    }
  }
}

/// Heads whose keys at `verticals` all rows look for, and which look `slashes` back: each token has
/// a random name in half the channels, of which a row selects those tokens that lie there.
struct planted {
  heed::tensor<float, 4> q;
  heed::tensor<float, 4> k;

  planted(index n, const std::vector<std::vector<index>>& verticals,
          const std::vector<std::vector<index>>& slashes)
      : q({1, static_cast<index>(verticals.size()), n, 65}),
        k({1, static_cast<index>(verticals.size()), n, 65}) {
    const auto names = oracle::random_tensor<float, 4>({1, q.extent(1), n, 64}, 7);
    oracle::each_index({1, q.extent(1), n, 64}, [&](index, index h, index j, index c) {
      k(0, h, j, c) = names(0, h, j, c);
      for (const index s : slashes[static_cast<std::size_t>(h)]) {
        if (j >= s) q(0, h, j, c) += 2.0F * names(0, h, j - s, c);
      }
    });
    for (index h = 0; h < q.extent(1); ++h) {
      for (index i = 0; i < n; ++i) q(0, h, i, 64) = 1.0F;
      for (const index j : verticals[static_cast<std::size_t>(h)]) k(0, h, j, 64) = 130.0F;
    }
  }
};

TEST(EstimateOfPlanted, FindsThem) {
  heed::serial_executor serial;
  const std::vector<std::vector<index>> verticals{{0, 5, 300}, {17, 44, 201}};
  const std::vector<std::vector<index>> slashes{{0, 3, 120}, {0, 64, 90}};
  const planted data(400, verticals, slashes);
  const auto lists =
      heed::estimate_vertical_slash(serial, data.q, data.k, {.verticals = 3, .slashes = 3});
  for (index h = 0; h < 2; ++h) {
    for (index n = 0; n < 3; ++n) {
      EXPECT_EQ(lists.verticals(0, h, n),
                verticals[static_cast<std::size_t>(h)][static_cast<std::size_t>(n)]);
      EXPECT_EQ(lists.slashes(0, h, n),
                slashes[static_cast<std::size_t>(h)][static_cast<std::size_t>(n)]);
    }
  }
  // They are nearly all there is, for all rows, not for the last alone.
  const auto share = heed::attention_recall(serial, data.q, data.k, lists.mask(), {.causal = true});
  EXPECT_GT(share(0, 0), 0.95);
  EXPECT_GT(share(0, 1), 0.95);
}

TEST(EstimateLists, AreAMaskAndAPatternForEachHead) {
  heed::thread_pool pool(2);
  const auto q = oracle::random_tensor<float, 4>({2, 4, 300, 8}, 1, 2.0);
  const auto k = oracle::random_tensor<float, 4>({2, 2, 300, 8}, 2);
  const auto lists = heed::estimate_vertical_slash(pool, q, k, {.verticals = 7, .slashes = 9});
  const auto by_lists = [&](const position& p) {
    bool kept = false;
    for (index n = 0; n < 7; ++n) kept = kept || lists.verticals(p.batch, p.head, n) == p.key;
    for (index n = 0; n < 9; ++n) {
      kept = kept || lists.slashes(p.batch, p.head, n) == p.query - p.key;
    }
    return kept && p.key <= p.query;
  };
  const auto want = oracle::expected(q, k, k, {}, by_lists);
  EXPECT_EQ(oracle::difference<float>(heed::attention(pool, q, k, k, {}, lists.mask()), want.output,
                                      want.sizes),
            "");
  const auto pattern = heed::vertical_slash_blocks(
      pool, lists, {.queries = 300, .keys = 300, .query_block = 16, .key_block = 8});
  ASSERT_EQ(pattern.extents().rows(), 2 * 4 * 19);
  oracle::each_index({2, 4, 19, 38}, [&](index b, index h, index r, index n) {
    bool any = false;
    for (index i = 16 * r; i < std::min<index>(300, 16 * r + 16); ++i) {
      for (index j = 8 * n; j < std::min<index>(300, 8 * n + 8); ++j) {
        any = any || by_lists({b, h, h / 2, i, j, i});
      }
    }
    const auto c = pattern.at(b, h, r, n);
    EXPECT_EQ(c, any ? heed::coverage::full : heed::coverage::empty) << b << h << r << n;
  });
  // Whole blocks and causal keep at least what the lists do.
  const auto of_blocks =
      heed::attention_recall(pool, q, k, heed::blocks(pattern) && heed::causal(), {.causal = true});
  const auto of_lists = heed::attention_recall(pool, q, k, lists.mask(), {.causal = true});
  for (index i = 0; i < of_lists.size(); ++i) EXPECT_GE(of_blocks.data()[i], of_lists.data()[i]);
}

TEST(EstimateErrors, NameTheArgument) {
  heed::serial_executor serial;
  const heed::tensor<float, 4> q({1, 4, 6, 8});
  const heed::tensor<float, 4> k({1, 2, 6, 8});
  EXPECT_THROW((void)heed::estimate_vertical_slash(serial, q, k, {.slashes = 0}),
               heed::option_error);
  EXPECT_THROW((void)heed::estimate_vertical_slash(serial, q, k, {.offset = 1}), heed::shape_error);
  const auto lists = heed::estimate_vertical_slash(serial, q, k);
  const heed::tensor<float, 4> two({1, 2, 6, 8});
  EXPECT_THROW((void)heed::attention(two, k, k, {}, lists.mask()), heed::shape_error);
  EXPECT_THROW((void)heed::vertical_slash_blocks(serial, lists, {.keys = 6, .key_block = 0}),
               heed::shape_error);
}

// By log-sum-exps: the recall that the mask's own definition gives.
TEST(RecallOfLogSumExps, IsThatOfTheMask) {
  const index n = 90;
  const auto q = oracle::random_tensor<float, 4>({2, 4, n, 16}, 1);
  const auto k = oracle::random_tensor<float, 4>({2, 2, n, 16}, 2);
  const auto mask = heed::window{.left = 9} && heed::causal();
  heed::tensor<float, 4> out({2, 4, n, 16});
  heed::tensor<float, 3> kept({2, 4, n}), exact({2, 4, n});
  heed::attention_into(heed::into(out, kept), q, k, k, {}, mask);
  heed::attention_into(heed::into(out, exact), q, k, k, {}, heed::causal());
  const auto recall = heed::log_sum_exp_recall(kept, exact);
  for (index b = 0; b < 2; ++b) {
    for (index h = 0; h < 4; ++h) {
      const double want = recall_by_definition(q, k, {.causal = true}, b, h,
                                               [](index i, index j) { return j > i - 10; });
      EXPECT_NEAR(recall(b, h), want, tolerance(q, k, 0.25));
      EXPECT_LT(want, 0.9);
    }
  }
  kept(0, 0, 5) = -std::numeric_limits<float>::infinity();  // a row that keeps nothing
  EXPECT_LT(heed::log_sum_exp_recall(kept, exact)(0, 0), recall(0, 0));
  EXPECT_THROW((void)heed::log_sum_exp_recall(kept, heed::tensor<float, 3>({2, 4, n + 1})),
               heed::shape_error);
}

}  // namespace
