// SPDX-License-Identifier: MIT
// Retention with normalised scores: the definition, every pair visited in double.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "heed/linear.hpp"
#include "heed/parallel.hpp"
#include "heed/tensor.hpp"

namespace {

using heed::index;

template <class T>
heed::tensor<T, 4> random_tensor(const std::array<index, 4>& e, unsigned seed) {
  heed::tensor<T, 4> x(e);
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal;
  for (index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<T>(normal(engine));
  return x;
}

/// Checks `out` of tokens that begin at `first` and know the earlier ones.
template <class T>
void expect_definition_of(const heed::view<const T, 4>& q, const heed::view<const T, 4>& k,
                          const heed::view<const T, 4>& v, const heed::view<const T, 4>& out,
                          double stored) {
  const index heads = std::max(k.extent(1), v.extent(1));
  const double scale = 1 / std::sqrt(double(q.extent(3)));
  for (index b = 0; b < out.extent(0); ++b) {
    for (index o = 0; o < out.extent(1); ++o) {
      const index h = o * heads / out.extent(1);
      const double rate = 1 - std::exp2(-5.0 - double(h));
      for (index n = 0; n < out.extent(2); ++n) {
        double decays = 0, sum = 0, size = 0;
        std::vector<double> row(static_cast<std::size_t>(v.extent(3)));
        std::vector<double> row_size = row;
        for (index m = 0; m <= n; ++m) decays += std::pow(rate, double(n - m));
        for (index m = 0; m <= n; ++m) {
          double r = 0, r_size = 0;
          for (index f = 0; f < q.extent(3); ++f) {
            const double x = double(q(b, o * q.extent(1) / out.extent(1), n, f)) *
                             double(k(b, h * k.extent(1) / heads, m, f));
            r += x;
            r_size += std::abs(x);
          }
          const double by = scale * std::pow(rate, double(n - m)) / std::sqrt(decays);
          sum += by * r;
          size += by * r_size;
          for (index c = 0; c < v.extent(3); ++c) {
            const double value = double(v(b, h * v.extent(1) / heads, m, c));
            row[std::size_t(c)] += by * r * value;
            row_size[std::size_t(c)] += by * r_size * std::abs(value);
          }
        }
        // Sums of n Dk terms and decays multiplied up token by token, twice: above and below.
        const double eps = double(2 * n + q.extent(3) + 40) *
                           double(std::numeric_limits<heed::accumulate_t<T>>::epsilon());
        const double divisor = std::max(std::abs(sum), 1.0);
        for (index c = 0; c < v.extent(3); ++c) {
          const double want = row[std::size_t(c)] / divisor;
          const double error = eps * (row_size[std::size_t(c)] + std::abs(want) * (size + divisor));
          ASSERT_NEAR(double(out(b, o, n, c)), want, error / divisor + stored * std::abs(want))
              << b << ' ' << o << ' ' << n << ' ' << c;
        }
      }
    }
  }
}

template <class T, class Q, class K, class V, class Out>
void expect_definition(const Q& q, const K& k, const V& v, const Out& out, double stored = 0) {
  using view = heed::view<const T, 4>;
  expect_definition_of<T>(view(heed::as_view(q)), view(heed::as_view(k)), view(heed::as_view(v)),
                          view(heed::as_view(out)), stored);
}

TEST(NormalisedRetention, IsItsDefinitionInEveryForm) {
  const auto q = random_tensor<float>({2, 4, 150, 20}, 1);
  auto k = random_tensor<float>({2, 2, 150, 20}, 2);
  const auto v = random_tensor<float>({2, 2, 150, 7}, 3);
  // Rows of both kinds: weights that add up to more than 1, and to less.
  for (index i = 0; i < k.size() / 2; ++i) k.data()[i] *= 4;
  for (const auto form : {heed::linear_form::recurrent, heed::linear_form::chunked,
                          heed::linear_form::parallel, heed::linear_form::scan}) {
    const auto out = heed::normalised_retention(q, k, v, heed::recurrence_options{.form = form});
    expect_definition<float>(q, k, v, out);
    if (HasFailure()) return;
  }
}

TEST(NormalisedRetention, ScalarsAndFewTokens) {
  const auto q = random_tensor<double>({1, 1, 3, 5}, 1), v = random_tensor<double>({1, 1, 3, 1}, 2);
  const auto few = heed::normalised_retention(q, q, v);
  expect_definition<double>(q, q, v, few);
  const auto h = random_tensor<heed::half>({1, 2, 40, 16}, 1);
  const auto out = heed::normalised_retention(h, h, h);
  expect_definition<heed::half>(h, h, h, out, std::ldexp(1.0, -10));
  EXPECT_EQ(heed::normalised_retention(random_tensor<float>({1, 2, 0, 4}, 1),
                                       random_tensor<float>({1, 2, 0, 4}, 1),
                                       random_tensor<float>({1, 2, 0, 4}, 1))
                .size(),
            0);
}

// In pieces, in a ragged batch and on threads: what one call gives.
TEST(ParallelNormalisedRetention, PiecesMakeTheWhole) {
  const auto q = random_tensor<float>({1, 2, 90, 16}, 1),
             v = random_tensor<float>({1, 2, 90, 9}, 2);
  heed::retention_state<float> state({.batch = 1, .heads = 2, .key_dim = 16, .value_dim = 9});
  heed::thread_pool pool(2);
  heed::tensor<float, 4> pieces({1, 2, 90, 9});
  const index cuts[] = {0, 1, 30, 30, 90};
  for (std::size_t i = 0; i + 1 < std::size(cuts); ++i) {
    const auto part = [&](const auto& x) {
      return heed::as_view(x).slice(2, cuts[i], cuts[i + 1]);
    };
    heed::normalised_retention_into(pool, heed::as_view(pieces).slice(2, cuts[i], cuts[i + 1]),
                                    part(q), part(q), part(v), state);
  }
  expect_definition<float>(q, q, v, pieces);

  const index bounds[] = {0, 50, 50, 90};
  heed::retention_state<float> states({.batch = 3, .heads = 2, .key_dim = 16, .value_dim = 9});
  const auto ragged = heed::normalised_retention(
      pool, q, q, v, states, heed::recurrence_options{.sequence_bounds = bounds});
  for (std::size_t n = 0; n < 3; ++n) {
    const auto part = [&](const auto& x) -> heed::view<const float, 4> {
      return heed::as_view(x).slice(2, bounds[n], bounds[n + 1]);
    };
    expect_definition<float>(part(q), part(q), part(v), part(ragged));
  }
  EXPECT_EQ(states.decays(1, 0), 0);
}

TEST(NormalisedRetention, WrongStatesAreNamed) {
  const auto q = random_tensor<float>({1, 2, 4, 8}, 1);
  heed::retention_state<float> state({.batch = 1, .heads = 2, .key_dim = 7, .value_dim = 8});
  try {
    (void)heed::normalised_retention(q, q, q, state);
    ADD_FAILURE();
  } catch (const heed::shape_error& e) {
    EXPECT_STREQ(e.what(), "state.keys has extents [1, 2, 7, 1], the call needs [1, 2, 8, 1]");
  }
}

}  // namespace
