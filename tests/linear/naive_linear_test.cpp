// SPDX-License-Identifier: MIT
// The fast forms of the linear family against their textbooks (the naive_* functions), and sums of a
// million tokens against plain loops in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <random>
#include <vector>

#include "heed/linear.hpp"
#include "heed/tensor.hpp"

namespace {

using heed::index;
using heed::linear_form;
using heed::recurrence_options;
using heed::tensor;

template <std::size_t R>
auto random_numbers(const index (&extents)[R], unsigned seed, double low = -1, double high = 1) {
  tensor<float, static_cast<int>(R)> t(std::to_array(extents));
  std::mt19937 engine(seed);
  std::uniform_real_distribution<double> uniform(low, high);
  for (index i = 0; i < t.size(); ++i) t.data()[i] = static_cast<float>(uniform(engine));
  return t;
}

/// Largest difference, relative to the largest number wanted: sums of 150 terms of unit size in
/// float, of which each may lose an eps.
template <class Got, class Want>
void expect_near(const char* name, const Got& got, const Want& want) {
  ASSERT_EQ(got.extents(), want.extents()) << name;
  double size = 0, apart = 0;
  for (index i = 0; i < want.size(); ++i) {
    size = std::max(size, std::abs(want.data()[i]));
    apart = std::max(apart, std::abs(double(got.data()[i]) - want.data()[i]));
  }
  EXPECT_GT(size, 0) << name;
  EXPECT_LE(apart, 150 * 1.2e-7 * size) << name;
}

constexpr index tokens = 150, d = 12, dv = 5;

TEST(NaiveLinear, MatrixStates) {
  const auto q = random_numbers({2, 4, tokens, d}, 1), v = random_numbers({2, 2, tokens, dv}, 3);
  const auto k = random_numbers({2, 2, tokens, d}, 2, -0.5, 0.5);
  const auto g = random_numbers({2, 2, tokens}, 4, -0.3, 0),
             beta = random_numbers({2, 2, tokens}, 5, 0, 1);
  const auto rows = random_numbers({2, 2, tokens, d}, 6, -0.3, 0);
  const auto a = random_numbers({2, 2, tokens, d}, 7, -0.2, 0.2),
             b = random_numbers({2, 2, tokens, d}, 8, -0.2, 0.2);
  const auto u = random_numbers({2, d}, 9);
  const auto rate = random_numbers({2}, 10, -1, 0), skip = random_numbers({2}, 11);
  for (const auto form : {linear_form::recurrent, linear_form::chunked, linear_form::scan}) {
    const recurrence_options o{.form = form};
    expect_near("scalar gated", heed::scalar_gated_attention(q, k, v, g, o),
                heed::naive_gated_attention(q, k, v, g));
    expect_near("gated", heed::gated_attention(q, k, v, rows, o),
                heed::naive_gated_attention(q, k, v, rows));
    expect_near("retention", heed::retention(q, k, v, o), heed::naive_retention(q, k, v));
    expect_near("delta", heed::delta_attention(q, k, v, beta, o),
                heed::naive_delta_attention(q, k, v, beta));
    expect_near("gated delta", heed::gated_delta_attention(q, k, v, g, beta, o),
                heed::naive_gated_delta_attention(q, k, v, g, beta));
    expect_near("KDA", heed::channel_gated_delta_attention(q, k, v, rows, beta, o),
                heed::naive_gated_delta_attention(q, k, v, rows, beta));
    expect_near("DPLR", heed::diagonal_low_rank_attention(q, k, v, a, b, rows, o),
                heed::naive_diagonal_low_rank_attention(q, k, v, a, b, rows));
    expect_near("RWKV-7", heed::rwkv7(q, k, v, rows, a, b, o),
                heed::naive_rwkv7(q, k, v, rows, a, b));
    expect_near("RWKV-6", heed::rwkv6(q, k, v, rows, u, o), heed::naive_rwkv6(q, k, v, rows, u));
    expect_near("SSD", heed::ssd(q, k, v, beta, rate, skip, o),
                heed::naive_ssd(q, k, v, beta, rate, skip));
  }
}

TEST(NaiveLinear, LightningReturnsItsOutput) {
  const auto q = random_numbers({1, 4, tokens, d}, 1), v = random_numbers({1, 4, tokens, dv}, 3);
  const heed::layer_position at{.layer = 1, .layers = 4};
  tensor<float, 3> g({1, 4, tokens});
  for (index h = 0; h < 4; ++h) {
    for (index t = 0; t < tokens; ++t)
      g(0, h, t) = static_cast<float>(-(8.0 / 4) * 0.75 * double(h));
  }
  expect_near("lightning", heed::lightning_attention(q, q, v, at),
              heed::naive_gated_attention(q, q, v, g));
}

TEST(NaiveLinear, Kernelised) {
  const auto q = random_numbers({2, 4, tokens, d}, 1), k = random_numbers({2, 2, tokens, d}, 2),
             v = random_numbers({2, 2, tokens, dv}, 3);
  for (const auto form :
       {linear_form::recurrent, linear_form::chunked, linear_form::parallel, linear_form::scan}) {
    for (const bool causal : {true, false}) {
      const heed::linear_options o{.causal = causal, .form = form};
      expect_near("normalised", heed::linear_attention(q, k, v, o),
                  heed::naive_linear_attention(q, k, v, o));
      const heed::linear_options plain{.causal = causal, .normalise = false, .form = form};
      expect_near("unnormalised", heed::linear_attention(q, k, v, plain, heed::identity_features{}),
                  heed::naive_linear_attention(q, k, v, plain, [](double x) { return x; }));
    }
  }
}

TEST(NaiveLinear, ScansAndConvolution) {
  const auto x = random_numbers({2, tokens, 9}, 1), g = random_numbers({2, tokens, 9}, 2, -1, 0),
             b = random_numbers({2, tokens, 3}, 3), c = random_numbers({2, tokens, 3}, 4);
  const auto a = random_numbers({9, 3}, 5, 0, 1), taps = random_numbers({9, 4}, 6);
  const auto w = random_numbers({9}, 7), u = random_numbers({9}, 8);
  expect_near("HGRN", heed::hgrn(x, g), heed::naive_hgrn(x, g));
  expect_near("S6", heed::selective_scan(x, g, a, b, c), heed::naive_selective_scan(x, g, a, b, c));
  expect_near("RWKV-4", heed::rwkv4(x, g, w, u), heed::naive_rwkv4(x, g, w, u));
  const auto rows = heed::as_view(x).swap_axes(1, 2);
  expect_near("convolution", heed::causal_convolution(rows, taps),
              heed::naive_causal_convolution(rows, taps));
}

/// Positive numbers, so that every sum is well conditioned: outputs keep 2e-6 at a million tokens.
TEST(LongSums, AMillionTokensKeepTheirDigits) {
  constexpr index n = 1 << 20, few = 8;
  const auto q = random_numbers({n, few}, 1, 0, 1), k = random_numbers({n, few}, 2, 0, 1),
             v = random_numbers({n, few}, 3, 0, 1);
  const tensor<float, 1> none({n});
  const tensor<float, 2> none_each({n, few});
  // Every 4,096th token is wanted in double.
  std::vector<double> s(few * few), z(few), ratio, sum;
  for (index t = 0; t < n; ++t) {
    double den = 0;
    std::vector<double> num(few);
    for (index f = 0; f < few; ++f) {
      z[std::size_t(f)] += double(k(t, f));
      den += double(q(t, f)) * z[std::size_t(f)];
      for (index c = 0; c < few; ++c) {
        double& x = s[std::size_t(f * few + c)];
        x += double(k(t, f)) * double(v(t, c));
        num[std::size_t(c)] += double(q(t, f)) * x;
      }
    }
    if (t % 4096 != 4095) continue;
    for (const double x : num) {
      sum.push_back(x);
      ratio.push_back(x / den);
    }
  }
  const auto worst = [&](const tensor<float, 2>& out, const std::vector<double>& want) {
    double most = 0;
    for (std::size_t i = 0; i < want.size(); ++i) {
      const auto t = static_cast<index>(i) / few * 4096 + 4095;
      most = std::max(most, std::abs(double(out(t, static_cast<index>(i) % few)) / want[i] - 1));
    }
    return most;
  };
  for (const auto form : {linear_form::recurrent, linear_form::chunked, linear_form::scan}) {
    EXPECT_LE(
        worst(heed::linear_attention(q, k, v, {.eps = 0, .form = form}, heed::identity_features{}),
              ratio),
        2e-6);
    const recurrence_options o{.scale = 1.0, .form = form};
    EXPECT_LE(worst(heed::scalar_gated_attention(q, k, v, none, o), sum), 2e-6);
    EXPECT_LE(worst(heed::gated_attention(q, k, v, none_each, o), sum), 2e-6);
    EXPECT_LE(worst(heed::low_rank_attention(q, k, v, none_each, none_each, o), sum), 2e-6);
  }
}

TEST(LongSums, FeaturesInBlocksKeepTheirDigits) {
  constexpr index n = 1 << 19, few = 4;
  const auto q = random_numbers({n, few}, 1, 0, 1), k = random_numbers({n, few}, 2, 0, 1),
             v = random_numbers({n, few}, 3, 0, 1);
  const auto out = heed::cosformer_attention(q, k, v, heed::cosformer_options{.eps = 0});
  // The last row alone: every key meets it.
  const double step = std::acos(-1.0) / 2 / double(n);
  std::vector<double> num(few);
  double den = 0;
  for (index j = 0; j < n; ++j) {
    double weight = 0;
    for (index f = 0; f < few; ++f) weight += double(q(n - 1, f)) * double(k(j, f));
    weight *= std::cos(step * double(n - 1 - j));
    den += weight;
    for (index c = 0; c < few; ++c) num[std::size_t(c)] += weight * double(v(j, c));
  }
  for (index c = 0; c < few; ++c) {
    EXPECT_NEAR(double(out(n - 1, c)) * den / num[std::size_t(c)], 1, 2e-6);
  }
}

}  // namespace
