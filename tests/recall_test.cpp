// SPDX-License-Identifier: MIT
// Recall of a mask and of a selection against its definition in double; the verticals and slashes
// that an estimate finds against those sums in double, and against what was planted.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>
#include <vector>

#include "attention_oracle.hpp"
#include "heed/attention.hpp"
#include "heed/parallel.hpp"
#include "heed/sparse.hpp"

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
using scalars = testing::Types<float, double, heed::bfloat16>;
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
  const auto all = heed::attention_recall(serial, q, k, heed::causal());
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
  const auto got = heed::attention_recall(serial, q, k, heed::causal());
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

// The best keys keep the most: more of them keep more, all of them all.
TEST(RecallOfTopKeys, GrowsToOne) {
  heed::serial_executor serial;
  const auto q = oracle::random_tensor<float, 4>({1, 1, 60, 16}, 1, 2.0);
  const auto k = oracle::random_tensor<float, 4>({1, 1, 60, 16}, 2);
  double last = 0;
  for (const index count : {1, 4, 16, 60}) {
    const auto keys = heed::top_k_keys(serial, q, k, {.count = count});
    const double share = heed::mean_recall(heed::selection_recall(serial, q, k, keys, 1));
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

}  // namespace
