// SPDX-License-Identifier: MIT
// Gradients of the recurrences with a matrix state against differences of a forward pass in loops.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "heed/linear/matrix_state/backward/naive_matrix_state_backward.hpp"
#include "heed/tensor.hpp"

namespace {

using heed::index;
using numbers = heed::tensor<double, 4>;

numbers random_numbers(const std::array<index, 4>& extents, unsigned seed, double least = -1,
                       double most = 1) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<double> uniform(least, most);
  numbers x(extents);
  for (index i = 0; i < x.size(); ++i) x.data()[i] = uniform(generator);
  return x;
}

/// Two query heads a state, and cotangents of the output and of the final state.
struct problem {
  bool delta = true;
  numbers q, k, v, gate, beta, initial, d_out, d_state;

  problem(bool delta_rule, index gate_channels, index tokens)
      : delta(delta_rule),
        q(random_numbers({1, 4, tokens, 3}, 1)),
        k(random_numbers({1, 2, tokens, 3}, 2)),
        v(random_numbers({1, 2, tokens, 2}, 3)),
        gate(random_numbers({1, 2, tokens, gate_channels}, 4, -2, 0)),
        beta(random_numbers({1, 2, tokens, 1}, 5, 0, 1)),
        initial(random_numbers({1, 2, 3, 2}, 6)),
        d_out(random_numbers({1, 4, tokens, 2}, 7)),
        d_state(random_numbers({1, 2, 3, 2}, 8)) {}

  /// sum(out d_out) + sum(final state d_state)
  [[nodiscard]] double loss() const {
    double sum = 0;
    for (index h = 0; h < 2; ++h) {
      double s[3][2];
      for (index f = 0; f < 3; ++f) {
        for (index c = 0; c < 2; ++c) s[f][c] = initial(0, h, f, c);
      }
      for (index t = 0; t < k.extent(2); ++t) {
        for (index f = 0; f < 3; ++f) {
          const double e = std::exp(gate(0, h, t, gate.extent(3) == 1 ? 0 : f));
          for (double& x : s[f]) x *= e;
        }
        for (index c = 0; c < 2; ++c) {
          double u = v(0, h, t, c);
          if (delta) {
            for (index f = 0; f < 3; ++f) u -= s[f][c] * k(0, h, t, f);
            u *= beta(0, h, t, 0);
          }
          for (index f = 0; f < 3; ++f) s[f][c] += k(0, h, t, f) * u;
        }
        for (index head = 2 * h; head < 2 * h + 2; ++head) {
          for (index f = 0; f < 3; ++f) {
            for (index c = 0; c < 2; ++c) {
              sum += s[f][c] * q(0, head, t, f) * d_out(0, head, t, c) / std::sqrt(3.0);
            }
          }
        }
      }
      for (index f = 0; f < 3; ++f) {
        for (index c = 0; c < 2; ++c) sum += s[f][c] * d_state(0, h, f, c);
      }
    }
    return sum;
  }
};

struct results {
  numbers q, k, v, gate, beta, initial;
};

results backward(const problem& x, index chunk) {
  results g{numbers(x.q.extents()),    numbers(x.k.extents()),    numbers(x.v.extents()),
            numbers(x.gate.extents()), numbers(x.beta.extents()), numbers(x.initial.extents())};
  heed::matrix_state_inputs<double> in{heed::as_view(x.q), heed::as_view(x.k), heed::as_view(x.v),
                                       heed::as_view(x.gate)};
  if (x.delta) in.beta = heed::as_view(x.beta);
  in.initial_state = heed::as_view(x.initial);
  in.chunk = chunk;
  const heed::matrix_state_cotangents<double> given{heed::as_view(x.d_out),
                                                    heed::as_view(x.d_state)};
  heed::matrix_state_gradients<double> to{heed::as_view(g.q), heed::as_view(g.k),
                                          heed::as_view(g.v), heed::as_view(g.gate)};
  if (x.delta) to.beta = heed::as_view(g.beta);
  to.initial_state = heed::as_view(g.initial);
  heed::naive_matrix_state_backward(in, given, to);
  return g;
}

void expect_differences(problem& x, numbers& at, const numbers& gradient) {
  for (index i = 0; i < at.size(); ++i) {
    constexpr double h = 1e-5;  // the quotient errs by about h^2 and eps / h
    const double x0 = at.data()[i];
    at.data()[i] = x0 + h;
    const double above = x.loss();
    at.data()[i] = x0 - h;
    const double below = x.loss();
    at.data()[i] = x0;
    EXPECT_NEAR((above - below) / (2 * h), gradient.data()[i], 1e-8) << i;
  }
}

TEST(MatrixStateBackward, AgreesWithDifferences) {
  for (const bool delta : {false, true}) {
    for (const index channels : {1, 3}) {
      problem x(delta, channels, 7);
      const results g = backward(x, 3);
      expect_differences(x, x.q, g.q);
      expect_differences(x, x.k, g.k);
      expect_differences(x, x.v, g.v);
      expect_differences(x, x.gate, g.gate);
      if (delta) expect_differences(x, x.beta, g.beta);
      expect_differences(x, x.initial, g.initial);
    }
  }
}

// Where states are kept changes nothing, to the last bit.
TEST(MatrixStateBackward, SameBitsForAnyChunk) {
  const problem x(true, 3, 20);
  const results want = backward(x, 20);
  for (const index chunk : {1, 7, 64}) {
    const results got = backward(x, chunk);
    for (index i = 0; i < want.k.size(); ++i) EXPECT_EQ(got.k.data()[i], want.k.data()[i]);
    for (index i = 0; i < want.gate.size(); ++i) {
      EXPECT_EQ(got.gate.data()[i], want.gate.data()[i]);
    }
  }
}

// A gate of -inf cuts the past off, and its own gradient is 0; one of -60 stays finite.
TEST(MatrixStateBackward, ClosedGates) {
  problem x(true, 1, 6);
  x.gate(0, 0, 3, 0) = -std::numeric_limits<double>::infinity();
  x.gate(0, 1, 3, 0) = -60;
  for (index head = 0; head < 2; ++head) {  // nobody wants what was read before the cut
    for (index t = 0; t < 3; ++t) {
      for (index c = 0; c < 2; ++c) x.d_out(0, head, t, c) = 0;
    }
  }
  const results g = backward(x, 2);
  EXPECT_EQ(g.gate(0, 0, 3, 0), 0);
  for (index f = 0; f < 3; ++f) {
    for (index c = 0; c < 2; ++c) EXPECT_EQ(g.initial(0, 0, f, c), 0);
  }
  for (index i = 0; i < g.k.size(); ++i) EXPECT_TRUE(std::isfinite(g.k.data()[i]));
  for (index i = 0; i < g.gate.size(); ++i) EXPECT_TRUE(std::isfinite(g.gate.data()[i]));
}

TEST(MatrixStateBackward, RefusesWhatDoesNotFit) {
  problem x(true, 1, 4);
  x.beta = numbers({1, 2, 5, 1});
  EXPECT_THROW(backward(x, 2), heed::shape_error);
  problem y(false, 1, 4);
  EXPECT_THROW(backward(y, 0), heed::option_error);
}

}  // namespace
