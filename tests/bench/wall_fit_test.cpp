// SPDX-License-Identifier: MIT
// The laws that heed_wall draws from its measurements: exponents, crossovers, extrapolation; and
// the closed forms that it holds the sparse methods against, by counting.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "bench/wall/fit.hpp"
#include "bench/wall/sparse.hpp"
#include "heed/parallel.hpp"

namespace {

using wall::crossing;
using wall::sample;

std::vector<sample> law(double coefficient, double exponent, double constant, int sizes) {
  std::vector<sample> samples;
  for (double n = 512; static_cast<int>(samples.size()) < sizes; n *= 2) {
    samples.push_back({n, constant + coefficient * std::pow(n, exponent)});
  }
  return samples;
}

TEST(WallFit, RecoversAPowerLaw) {
  for (const double exponent : {0.0, 1.0, 1.5, 2.0}) {
    const auto fit = wall::fit_upper_half(law(3e-9, exponent, 0, 6));
    ASSERT_TRUE(fit.has_value());
    EXPECT_NEAR(fit->exponent, exponent, 1e-12);
    EXPECT_NEAR(fit->at(777) / (3e-9 * std::pow(777, exponent)), 1, 1e-10);
  }
}

TEST(WallFit, LargerHalfForgetsConstants) {
  // A constant as large as the first size's law pulls a fit over all sizes down to 1.83.
  const auto samples = law(1e-9, 2, 512 * 512 * 1e-9, 6);
  EXPECT_GT(wall::fit_upper_half(samples)->exponent, 1.98);
}

TEST(WallFit, NeedsTwoPositiveSamples) {
  EXPECT_FALSE(wall::fit_upper_half({}).has_value());
  EXPECT_FALSE(wall::fit_upper_half({{512, 1}}).has_value());
  EXPECT_FALSE(wall::fit_upper_half({{512, 1}, {1024, 0}}).has_value());
  EXPECT_TRUE(wall::fit_upper_half({{512, 1}, {1024, 2}}).has_value());
}

TEST(WallFit, LawReachesAValue) {
  EXPECT_NEAR(*wall::fit_upper_half(law(1e-9, 2, 0, 4))->reaches(1), std::sqrt(1e9), 1);
  EXPECT_FALSE(wall::fit_upper_half(law(1e-9, 0, 0, 4))->reaches(1).has_value());
}

TEST(WallFit, CrossingsInsideBeforeAndBeyondTheSizes) {
  // n^2 and 3000 n cross at 3000, inside 512 .. 16,384.
  const auto square = law(1e-9, 2, 0, 6);
  crossing at = wall::find_crossing(square, law(3e-6, 1, 0, 6));
  EXPECT_EQ(at.how, crossing::kind::measured);
  EXPECT_NEAR(at.n, 3000, 1e-6) << "exact for power laws, which are straight in log-log";

  at = wall::find_crossing(square, law(1e-7, 1, 0, 6));
  EXPECT_EQ(at.how, crossing::kind::from_the_start);

  at = wall::find_crossing(square, law(1e-3, 1, 0, 6));
  EXPECT_EQ(at.how, crossing::kind::extrapolated);
  EXPECT_NEAR(at.n / 1e6, 1, 1e-6);

  // The same exponent: the slower one stays so, and the faster one never crosses.
  EXPECT_EQ(wall::find_crossing(square, law(2e-9, 2, 0, 6)).how, crossing::kind::never);
}

TEST(WallFit, ShorterCurvesCompareWhereBothWereMeasured) {
  const crossing at = wall::find_crossing(law(1e-9, 2, 0, 4), law(1.5e-6, 1, 0, 6));
  EXPECT_EQ(at.how, crossing::kind::measured);
  EXPECT_NEAR(at.n, 1500, 1e-6);
}

using heed::index;

/// Pairs that a mask leaves of n x n.
template <class M>
index count_pairs(index n, const M& mask) {
  index pairs = 0;
  for (index i = 0; i < n; ++i) {
    for (index j = 0; j < n; ++j) pairs += mask(heed::position{0, 0, 0, i, j, i}) ? 1 : 0;
  }
  return pairs;
}

/// Keys that any query of a block sees, summed over the blocks.
template <class M>
index count_key_rows(index n, index block, const M& mask) {
  index rows = 0;
  for (index begin = 0; begin < n; begin += block) {
    for (index j = 0; j < n; ++j) {
      bool seen = false;
      for (index i = begin; i < std::min(begin + block, n); ++i) {
        seen = seen || mask(heed::position{0, 0, 0, i, j, i});
      }
      rows += seen ? 1 : 0;
    }
  }
  return rows;
}

TEST(WallSparse, LongformerIsCounted) {
  for (const index n : {1, 7, 48, 131}) {
    for (const index window : {1, 6, 50, 200}) {
      for (const index global : {0, 1, 9, 70, 200}) {
        const auto mask = heed::causal() && heed::longformer(window - 1, global);
        EXPECT_EQ(wall::longformer_pairs(n, window, global), count_pairs(n, mask))
            << n << ", " << window << ", " << global;
        for (const index block : {1, 5, 48}) {
          EXPECT_EQ(wall::longformer_key_rows(n, window, global, block),
                    count_key_rows(n, block, mask))
              << n << ", " << window << ", " << global << ", " << block;
        }
      }
    }
  }
}

TEST(WallSparse, BigBirdIsCounted) {
  constexpr index block = 8;
  for (const index n : {1, 8, 13, 64, 99, 200}) {
    for (const index near : {1, 3, 5}) {
      for (const index global : {0, 1, 2}) {
        for (const index random : {0, 2, 3}) {
          const heed::big_bird_options o{
              .window = near, .global = global, .random = random, .causal = true, .seed = 5};
          const heed::block_pattern pattern = heed::big_bird({1, 1, n, n, block, block}, o);
          const auto mask =
              heed::bind_modifier(heed::blocks(pattern) && heed::causal(), {1, 1, 1, n, n});
          EXPECT_EQ(wall::big_bird_blocks(n, block, o), pattern.visible_blocks());
          EXPECT_EQ(wall::big_bird_pairs(n, block, o), count_pairs(n, mask))
              << n << ", " << near << ", " << global << ", " << random;
          EXPECT_EQ(wall::big_bird_key_rows(n, block, o), count_key_rows(n, block, mask));
        }
      }
    }
  }
}

}  // namespace
