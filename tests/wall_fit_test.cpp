// SPDX-License-Identifier: MIT
// The laws that heed_wall draws from its measurements: exponents, crossovers, extrapolation.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "../bench/wall/fit.hpp"

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

}  // namespace
