// SPDX-License-Identifier: MIT
// Rows of up to a million keys keep their digits: every kernel that runs along keys, against double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "heed/attention.hpp"

namespace {

using heed::index;

constexpr double allowed = 2e-6;

struct row {
  std::vector<double> out;
  double lse = 0;
};

// Softmax of given scores over given values in double, the sums compensated.
template <class V>
row reference(const std::vector<double>& score, const V& v) {
  const double top = *std::max_element(score.begin(), score.end());
  long double sum = 0;
  std::vector<long double> out(static_cast<std::size_t>(v.extent(1)));
  for (index j = 0; j < v.extent(0); ++j) {
    const double p = std::exp(score[static_cast<std::size_t>(j)] - top);
    sum += p;
    for (index c = 0; c < v.extent(1); ++c) {
      out[static_cast<std::size_t>(c)] += static_cast<long double>(p) * v(j, c);
    }
  }
  row r;
  for (const long double x : out) r.out.push_back(static_cast<double>(x / sum));
  r.lse = top + static_cast<double>(std::log(sum));
  return r;
}

// One channel of queries and keys, so that scores are exact: what is left is the sums' own error.
struct rows_of_scores {
  heed::tensor<float, 2> q, k, v;

  rows_of_scores(index rows, index keys, index channels)
      : q({rows, 1}), k({keys, 1}), v({keys, channels}) {
    for (index i = 0; i < rows; ++i) q(i, 0) = 1;
  }
  [[nodiscard]] row expected() const {
    std::vector<double> s;
    for (index j = 0; j < k.extent(0); ++j) s.push_back(double{k(j, 0)});
    return reference(s, v);
  }
};

// Relative error of the output and of the log-sum-exp, for rows of each kernel.
template <class Result>
void expect_close(const char* what, const Result& got, const row& want) {
  for (index i = 0; i < got.output.extent(0); ++i) {
    for (index c = 0; c < got.output.extent(1); ++c) {
      const double w = want.out[static_cast<std::size_t>(c)];
      EXPECT_LE(std::abs(got.output(i, c) - w), allowed * std::abs(w))
          << what << ", row " << i << ", channel " << c << ": " << got.output(i, c) << " for " << w;
    }
    EXPECT_LE(std::abs(got.log_sum_exp(i) - want.lse), allowed * std::max(1.0, std::abs(want.lse)))
        << what << ", row " << i << ": lse " << got.log_sum_exp(i) << " for " << want.lse;
  }
}

void every_kernel(const rows_of_scores& x) {
  const row want = x.expected();
  const heed::attention_options one{.scale = 1};
  const auto few = heed::as_view(x.q).slice(0, 0, 3);
  expect_close("tiled", heed::attention_with_lse(x.q, x.k, x.v, one), want);
  expect_close("split", heed::attention_with_lse(few, x.k, x.v, one), want);
  expect_close("naive", heed::naive_attention_with_lse(few, x.k, x.v, one), want);
}

constexpr index lengths[] = {1024, 16384, 131072, 1048576};

TEST(LongRows, OneKeyFarAboveTheOthers) {
  for (const index keys : lengths) {
    for (const float below : {8.0F, 12.0F, 12.3F, 14.0F}) {
      rows_of_scores x(12, keys, 3);
      x.v(0, 1) = 1;
      x.v(0, 2) = 0.9F;
      for (index j = 1; j < keys; ++j) {
        x.k(j, 0) = -below;
        x.v(j, 0) = 1;
        x.v(j, 1) = 0.7F;
        x.v(j, 2) = j % 2 == 0 ? 0.3F : 1.1F;
      }
      every_kernel(x);
    }
  }
}

TEST(LongRows, ScoresThatRiseSlowlyRescaleTheirPastOftenAtNoCost) {
  for (const index keys : {index{4096}, index{262144}}) {
    rows_of_scores x(12, keys, 2);
    for (index j = 0; j < keys; ++j) {
      x.k(j, 0) = 20.0F * static_cast<float>(j) / static_cast<float>(keys);
      x.v(j, 0) = 1 + 0.5F * static_cast<float>(j % 7);
      x.v(j, 1) = j < keys / 2 ? 1e4F : 1.0F;
    }
    every_kernel(x);
  }
}

TEST(LongRows, RandomScoresAndPlantedKeys) {
  for (const index keys : lengths) {
    std::mt19937 bits(static_cast<unsigned>(keys));
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<float> unit(0.0F, 1.0F);
    rows_of_scores x(12, keys, 2);
    for (index j = 0; j < keys; ++j) {
      x.k(j, 0) = normal(bits);
      x.v(j, 0) = unit(bits);
      x.v(j, 1) = 3;
    }
    every_kernel(x);
    for (const index j : {keys / 3, keys - 1}) x.k(j, 0) = 12;
    every_kernel(x);
  }
}

// Gathers of hidden non-finite values take the path of pairs.
TEST(LongRows, HiddenNonFiniteValuesCostNoDigits) {
  const index keys = 65536;
  rows_of_scores x(12, keys, 1);
  heed::tensor<float, 1> bias({keys});
  rows_of_scores kept(12, keys - keys / 64, 1);
  for (index j = 0, n = 0; j < keys; ++j) {
    x.k(j, 0) = j == 0 ? 0.0F : -10.0F;
    x.v(j, 0) = j % 64 == 5 ? NAN : j == 0 ? 0.0F : 1.0F;
    bias(j) = j % 64 == 5 ? -INFINITY : 0.0F;
    if (j % 64 == 5) continue;
    kept.k(n, 0) = x.k(j, 0);
    kept.v(n++, 0) = x.v(j, 0);
  }
  const row want = kept.expected();
  const heed::attention_options one{.scale = 1};
  const auto few = heed::as_view(x.q).slice(0, 0, 3);
  expect_close("tiled", heed::attention_with_lse(x.q, x.k, x.v, one, heed::bias(bias)), want);
  expect_close("split", heed::attention_with_lse(few, x.k, x.v, one, heed::bias(bias)), want);
}

TEST(LongRows, MixturesOfManyKeys) {
  const index keys = 262144;
  heed::tensor<float, 2> q({2, 1}), k({keys, 1}), v({keys, 1}), e({1, keys});
  for (index j = 0; j < keys; ++j) {
    v(j, 0) = 0.7F;
    e(0, j) = 0.1F;
  }
  const auto out = heed::linformer_attention(q, k, v, e, e);
  const double want = static_cast<double>(keys) * double{0.7F} * double{0.1F};
  EXPECT_LE(std::abs(out(0, 0) - want), allowed * want);
}

}  // namespace
