// SPDX-License-Identifier: MIT
// Rows put together from many parts (rounds, clusters, blocks) keep their digits and their range:
// against plain sums in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "heed/sparse.hpp"

namespace {

using heed::index;
using lists = heed::tensor<index, 3>;

constexpr double allowed = 2e-6;
constexpr index rows = 3;

/// One channel of queries and keys, so that scores are exact: a sink at score 0 and all other keys
/// `below` it. Every row sees every key.
struct sink {
  heed::tensor<float, 3> q, k, v, out;
  heed::tensor<float, 2> lse;
  float below;
  heed::attention_options one{.scale = 1};

  sink(index keys, float under)
      : q({1, rows, 1}),
        k({1, keys, 1}),
        v({1, keys, 2}),
        out({1, rows, 2}),
        lse({1, rows}),
        below(under) {
    for (index i = 0; i < rows; ++i) q(0, i, 0) = 1;
    for (index j = 0; j < keys; ++j) {
      k(0, j, 0) = j == 0 ? 0.0F : -below;
      v(0, j, 0) = j == 0 ? 0.2F : 1.0F;
      v(0, j, 1) = j % 2 == 0 ? 0.3F : 1.1F;
    }
  }
  void expect(const char* what) const {
    double sum = 0, values[2] = {};
    for (index j = 0; j < k.extent(1); ++j) {
      const double p = std::exp(double{k(0, j, 0)});
      sum += p;
      for (index c = 0; c < 2; ++c) values[c] += p * double{v(0, j, c)};
    }
    for (index i = 0; i < rows; ++i) {
      for (index c = 0; c < 2; ++c) {
        const double want = values[c] / sum;
        EXPECT_LE(std::abs(out(0, i, c) - want), allowed * want) << what << ", channel " << c;
      }
      EXPECT_LE(std::abs(lse(0, i) - std::log(sum)), allowed * std::max(1.0, std::log(sum)))
          << what;
    }
  }
  /// The keys in rounds of `keys / rounds`: bucket 0 of its own round, bucket 1 of no row in others.
  void hashed(index rounds) {
    lists query({1, rounds, rows}), key({1, rounds, k.extent(1)});
    for (index n = 0; n < key.size(); ++n) {
      key.data()[n] = n % k.extent(1) % rounds == n / k.extent(1) ? 0 : 1;
    }
    heed::lsh_attention_into(heed::into(out, lse), q, k, v, query, key, {.chunk = k.extent(1)},
                             one);
  }
  /// Clusters of `size` keys one after another, each with all rows.
  void routed(index size) {
    const index clusters = k.extent(1) / size;
    lists query({1, clusters, rows}), key({1, clusters, size});
    for (index n = 0; n < query.size(); ++n) query.data()[n] = n % rows;
    for (index n = 0; n < key.size(); ++n) key.data()[n] = n;
    heed::routing_attention_into(heed::into(out, lse), q, k, v, query, key, one);
  }
  void selected(index block) {
    lists chosen({1, rows, heed::ceil_div(k.extent(1), block)});
    for (index n = 0; n < chosen.size(); ++n) chosen.data()[n] = n % chosen.extent(2);
    heed::selected_attention_into(heed::into(out, lse), q, k, v, chosen, block, one);
  }
};

TEST(LongParts, ManyRoundsOfHashing) {
  sink x(8192, 8);
  x.hashed(512);
  x.expect("512 rounds");
}

TEST(LongParts, OneRoundOfManyKeys) {
  sink x(131072, 12);
  x.hashed(1);
  x.expect("one round");
}

TEST(LongParts, ManyClusters) {
  for (const index keys : {index{131072}, index{1048576}}) {
    sink x(keys, 12);
    x.routed(keys / 2048);
    x.expect("2048 clusters");
    x.routed(keys / 2);
    x.expect("two clusters");
  }
}

TEST(LongParts, ManySelectedBlocks) {
  for (const index keys : {index{131072}, index{1048576}}) {
    sink x(keys, 12);
    for (const index block : {1, 64, 4096}) {
      x.selected(block);
      x.expect(block == 1 ? "keys" : "blocks");
    }
  }
}

// A mean of values near the largest number is one.
TEST(LongParts, ValuesNearTheLargestNumber) {
  sink x(96, 0);
  const auto expect = [&](const char* what) {
    for (index i = 0; i < rows; ++i) {
      EXPECT_NEAR(x.out(0, i, 0) / 3e38F, 1, 1e-6) << what;
      EXPECT_NEAR(x.out(0, i, 1) / 3e38F, 0, 1e-6) << what;
    }
  };
  for (index j = 0; j < 96; ++j) {
    x.v(0, j, 0) = 3e38F;
    x.v(0, j, 1) = j < 48 ? 3e38F : -3e38F;
  }
  x.hashed(3);
  expect("rounds");
  x.routed(8);
  expect("clusters");
  x.selected(32);
  expect("blocks");
}

}  // namespace
