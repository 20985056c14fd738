// SPDX-License-Identifier: MIT
// Gates next to 0 over very many tokens: exp(-1e-6) rounds by 3 % of what it is away from 1, each
// token the same way, and the state must not drift with that.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "heed/linear.hpp"
#include "heed/tensor.hpp"

namespace {

using heed::index;
using heed::linear_form;

constexpr index dim = 8;

/// Positive keys and values, so that the state is as large as its terms together.
template <int R>
heed::tensor<float, R> numbers(const std::array<index, static_cast<std::size_t>(R)>& extents,
                               std::uint32_t seed) {
  heed::tensor<float, R> t(extents);
  for (index i = 0; i < t.size(); ++i) {
    seed = seed * 1664525U + 1013904223U;
    t.data()[i] = 0.5F + static_cast<float>(seed >> 8U) / 33554432.0F;
  }
  return t;
}

struct text {
  index tokens;
  heed::tensor<float, 3> k, v;
  explicit text(index n)
      : tokens(n), k(numbers<3>({1, n, dim}, 1)), v(numbers<3>({1, n, dim}, 2)) {}

  /// The largest error of a state's numbers, relative to their own size.
  [[nodiscard]] double error(const heed::tensor<float, 4>& state, float gate) const {
    std::vector<double> s(dim * dim);
    const double decay = std::exp(static_cast<double>(gate));
    for (index t = 0; t < tokens; ++t) {
      for (index r = 0; r < dim; ++r) {
        for (index c = 0; c < dim; ++c) {
          double& x = s[static_cast<std::size_t>(r * dim + c)];
          x = decay * x + static_cast<double>(k(0, t, r)) * static_cast<double>(v(0, t, c));
        }
      }
    }
    double worst = 0;
    for (index r = 0; r < dim; ++r) {
      for (index c = 0; c < dim; ++c) {
        const double want = s[static_cast<std::size_t>(r * dim + c)];
        worst = std::max(worst, std::abs(static_cast<double>(state(0, 0, r, c)) - want) / want);
      }
    }
    return worst;
  }
};

// Rounding S once a chunk is compensated; what is left are the chunk's own sums of 64 terms, and the
// float sum of its gates: 64 eps / 2 of |G|, G <= 1 here.
constexpr double allowed = 64 * std::numeric_limits<float>::epsilon();

TEST(SlowGates, OfTokens) {
  const text x(400'000);
  for (const float gate : {-1e-7F, -1e-6F, -2.6e-6F, -1e-4F}) {
    heed::tensor<float, 2> g({1, x.tokens});
    std::fill_n(g.data(), g.size(), gate);
    for (const linear_form form : {linear_form::chunked, linear_form::recurrent}) {
      heed::tensor<float, 4> state({1, 1, dim, dim});
      (void)heed::scalar_gated_attention(x.k, x.k, x.v, g, state,
                                         heed::recurrence_options{.form = form});
      EXPECT_LE(x.error(state, gate), allowed) << gate << " form " << static_cast<int>(form);
    }
  }
}

TEST(SlowGates, OfChannels) {
  const text x(400'000);
  for (const float gate : {-1e-6F, -2.6e-6F}) {
    heed::tensor<float, 3> g({1, x.tokens, dim});
    std::fill_n(g.data(), g.size(), gate);
    for (const linear_form form : {linear_form::chunked, linear_form::recurrent}) {
      heed::tensor<float, 4> state({1, 1, dim, dim});
      (void)heed::gated_attention(x.k, x.k, x.v, g, state, heed::recurrence_options{.form = form});
      EXPECT_LE(x.error(state, gate), allowed) << gate << " form " << static_cast<int>(form);
    }
  }
}

}  // namespace
