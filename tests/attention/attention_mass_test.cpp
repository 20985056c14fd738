// SPDX-License-Identifier: MIT
// Sums of weights over pages of a cache, against the textbook's weights in double.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/parallel.hpp"
#include "heed/score.hpp"
#include "support/attention_oracle.hpp"

namespace {

using heed::index;

TEST(AttentionMass, IsTheSumOfTheTextbooksWeights) {
  const std::vector<index> tokens{2500, 40};
  heed::slot_cache<float> cache({.batch = 2, .kv_heads = 2, .capacity = 2500, .head_dim = 12});
  std::vector<heed::tensor<float, 3>> k;
  for (index b = 0; b < 2; ++b) {
    k.push_back(oracle::random_tensor<float, 3>({2, tokens[static_cast<std::size_t>(b)], 12},
                                                static_cast<unsigned>(b)));
    cache.append(b, k.back(), k.back());
  }
  const auto q = oracle::random_tensor<float, 4>({2, 4, 2, 12}, 3);
  const std::vector<float> sinks{0.5F, -1, 2, 0};
  const auto mask = heed::causal() && heed::window{.left = 2300};
  const index page = 37;
  const index pages = heed::ceil_div(2500, page);
  heed::tensor<float, 4> mass({2, 4, 2, pages});
  heed::tensor<float, 3> lse({2, 4, 2});
  heed::attention_mass_into(heed::into(mass, lse), q, cache, page, {}, mask, heed::sink(sinks));
  heed::thread_pool pool(3);
  EXPECT_TRUE(oracle::same_bits(
      mass, heed::attention_mass(pool, q, cache, page, {}, mask, heed::sink(sinks))));

  for (index b = 0; b < 2; ++b) {
    const index n = tokens[static_cast<std::size_t>(b)];
    for (index h = 0; h < 4; ++h) {
      for (index i = 0; i < 2; ++i) {
        const index at = n - 2 + i;
        std::vector<double> weight(static_cast<std::size_t>(n));
        double sum = std::exp(static_cast<double>(sinks[static_cast<std::size_t>(h)]));
        for (index j = std::max<index>(0, at - 2300); j <= at; ++j) {
          double dot = 0;
          for (index c = 0; c < 12; ++c) {
            dot += static_cast<double>(q(b, h, i, c)) *
                   static_cast<double>(k[static_cast<std::size_t>(b)](h / 2, j, c));
          }
          weight[static_cast<std::size_t>(j)] = std::exp(dot / std::sqrt(12.0));
          sum += weight[static_cast<std::size_t>(j)];
        }
        // A weight errs by its score's error, some 12 roundings of |s| < 10, and the exponential's.
        const double within = 2 * 0x1p-24 * (4 * std::sqrt(12.0) + 8) * 10;
        EXPECT_NEAR(lse(b, h, i), std::log(sum), within + 1e-6);
        for (index p = 0; p < pages; ++p) {
          double want = 0;
          for (index j = p * page; j < std::min((p + 1) * page, n); ++j) {
            want += weight[static_cast<std::size_t>(j)] / sum;
          }
          ASSERT_NEAR(mass(b, h, i, p), want, within * want + 1e-9) << b << h << i << ' ' << p;
        }
      }
    }
  }
}

TEST(AttentionMass, OfRowsThatSeeNothingAndOfCodes) {
  heed::int8_cache cache({.capacity = 70, .head_dim = 8});
  const auto k = oracle::random_tensor<float, 4>({1, 1, 70, 8}, 1);
  cache.append(k, k);
  const auto q = oracle::random_tensor<float, 4>({1, 1, 1, 8}, 2);
  const auto mass = heed::attention_mass(q, cache, 16);
  ASSERT_EQ(mass.extent(3), 5);
  double sum = 0;
  for (index p = 0; p < 5; ++p) sum += static_cast<double>(mass(0, 0, 0, p));
  EXPECT_NEAR(sum, 1, 1e-6);
  const auto none = heed::attention_mass(q, cache, 16, {}, heed::window{.left = -1, .right = -1});
  for (index p = 0; p < 5; ++p) EXPECT_EQ(none(0, 0, 0, p), 0);
  EXPECT_THROW((void)heed::attention_mass(q, cache, 0), heed::option_error);
  heed::tensor<float, 4> narrow({1, 1, 1, 4});
  EXPECT_THROW(heed::attention_mass_into(narrow, q, cache, 16), heed::shape_error);
}

}  // namespace
