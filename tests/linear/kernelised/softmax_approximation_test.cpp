// SPDX-License-Identifier: MIT
// Feature maps, Performer, cosFormer and Linformer: their definitions, and Performer's error.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <limits>
#include <numbers>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "heed/attention.hpp"
#include "heed/linear.hpp"
#include "heed/parallel.hpp"
#include "heed/tensor.hpp"

namespace {

using heed::index;

template <class T, std::size_t R>
heed::tensor<T, static_cast<int>(R)> random_tensor(const index (&extents)[R], unsigned seed,
                                                   double deviation = 1) {
  heed::tensor<T, static_cast<int>(R)> t(std::to_array(extents));
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal(0, deviation);
  for (index i = 0; i < t.size(); ++i) t.data()[i] = static_cast<T>(normal(engine));
  return t;
}

/// sum_j weight(i, j) v_j / (sum_j weight(i, j) + eps) in double.
template <class Weight>
heed::tensor<double, 4> weighted_mean(const heed::tensor<double, 4>& q,
                                      const heed::tensor<double, 4>& k,
                                      const heed::tensor<double, 4>& v, bool causal, double eps,
                                      const Weight& weight) {
  heed::tensor<double, 4> out({q.extent(0), q.extent(1), q.extent(2), v.extent(3)});
  const index group = q.extent(1) / k.extent(1);
  for (index b = 0; b < q.extent(0); ++b) {
    for (index h = 0; h < q.extent(1); ++h) {
      for (index i = 0; i < q.extent(2); ++i) {
        double total = 0;
        for (index j = 0; j < (causal ? i + 1 : k.extent(2)); ++j) {
          const double w = weight(&q(b, h, i, 0), &k(b, h / group, j, 0), i, j);
          total += w;
          for (index c = 0; c < v.extent(3); ++c) out(b, h, i, c) += w * v(b, h / group, j, c);
        }
        for (index c = 0; c < v.extent(3); ++c) out(b, h, i, c) /= total + eps;
      }
    }
  }
  return out;
}

void expect_close(const heed::tensor<double, 4>& got, const heed::tensor<double, 4>& want,
                  double tolerance) {
  ASSERT_EQ(got.extents(), want.extents());
  for (index i = 0; i < got.size(); ++i) ASSERT_NEAR(got.data()[i], want.data()[i], tolerance);
}

double dot(const double* a, const double* b, index d) {
  double s = 0;
  for (index c = 0; c < d; ++c) s += a[c] * b[c];
  return s;
}

// ---- feature maps
// --------------------------------------------------------------------------------

RC_GTEST_PROP(FeatureMaps, AreTheirKernels, ()) {
  const auto seed = *rc::gen::inRange(0U, 10000U);
  const auto n = *rc::gen::inRange<index>(1, 80);
  const auto d = *rc::gen::inRange<index>(1, 20);
  const auto q = random_tensor<double>({1, 2, n, d}, seed),
             k = random_tensor<double>({1, 1, n, d}, seed + 1),
             v = random_tensor<double>({1, 1, n, 5}, seed + 2);
  const auto gamma = random_tensor<double>({d}, seed + 3),
             beta = random_tensor<double>({d}, seed + 4);
  const auto check = [&](const auto& map, const auto& kernel) {
    for (const auto form :
         {heed::linear_form::recurrent, heed::linear_form::chunked, heed::linear_form::parallel}) {
      heed::linear_options o{.eps = 1e-3};
      o.form = form;
      // Every kernel here is nonnegative, its terms at most a few thousand times the tolerance.
      expect_close(heed::linear_attention(q, k, v, o, map),
                   weighted_mean(q, k, v, true, 1e-3,
                                 [&](const double* a, const double* b, index, index) {
                                   return kernel(a, b);
                                 }),
                   1e-9);
    }
  };
  const auto relu = [](double x) { return x > 0 ? x : 0.0; };
  check(heed::relu_features{}, [&](const double* a, const double* b) {
    double s = 0;
    for (index c = 0; c < d; ++c) s += relu(a[c]) * relu(b[c]);
    return s;
  });
  check(heed::squared_relu_features{}, [&](const double* a, const double* b) {
    double s = 0;
    for (index c = 0; c < d; ++c) s += relu(a[c]) * relu(a[c]) * relu(b[c]) * relu(b[c]);
    return s;
  });
  check(heed::taylor_features{}, [&](const double* a, const double* b) {
    const double s = dot(a, b, d) / std::sqrt(static_cast<double>(d));
    return 1 + s + s * s / 2;
  });
  const auto span_of = [](const heed::tensor<double, 1>& t) {
    return std::span<const double>(t.data(), static_cast<std::size_t>(t.size()));
  };
  check(heed::rebased_features<double>{span_of(gamma), span_of(beta)},
        [&](const double* a, const double* b) {
          double s = 0;
          for (index c = 0; c < d; ++c) {
            s += (gamma(c) * a[c] + beta(c)) * (gamma(c) * b[c] + beta(c));
          }
          return s * s;
        });
}

TEST(FeatureMaps, ReluKeepsANaN) {
  heed::tensor<float, 2> x({3, 1});
  x(1, 0) = std::numeric_limits<float>::quiet_NaN();
  const auto out = heed::linear_attention(x, x, x, {}, heed::relu_features{});
  EXPECT_FALSE(std::isnan(out(0, 0)));
  EXPECT_TRUE(std::isnan(out(1, 0)));
}

// ---- Performer
// -----------------------------------------------------------------------------------

TEST(RandomDirections, BlocksAreOrthogonalAndLengthsAreThoseOfGaussians) {
  constexpr index d = 24, count = 2400;
  const heed::random_directions<double> w(d, count, 7);
  const auto& c = w.columns();
  const auto product = [&](index f, index g) {
    double s = 0;
    for (index i = 0; i < d; ++i) s += c(i, f) * c(i, g);
    return s;
  };
  double squares = 0, longest = 0;
  for (index f = 0; f < count; ++f) {
    squares += product(f, f);
    longest = std::max(longest, product(f, f));
    for (index g = f - f % d; g < f; ++g) ASSERT_NEAR(product(f, g), 0, 1e-12);
  }
  EXPECT_NEAR(w.longest_squared(), longest, 1e-9);
  // |w|^2 has mean d and variance 2 d; four standard errors of the mean.
  EXPECT_NEAR(squares / count, d, 4 * std::sqrt(2.0 * d / count));
  const heed::random_directions<double> again(d, count, 7);
  heed::random_directions<double> other(d, count, 8);
  EXPECT_EQ(again.columns()(3, 50), c(3, 50));
  EXPECT_NE(other.columns()(3, 50), c(3, 50));
  other.redraw(7);
  for (index i = 0; i < c.size(); ++i) ASSERT_EQ(other.columns().data()[i], c.data()[i]);
}

// The bits of mt19937_64 are the standard's: its 10000th number is 9981545732273789042.
TEST(GaussianSource, IsTheSameEverywhere) {
  heed::gaussian_source g(1);
  std::mt19937_64 bits(1);
  const auto uniform = [&] {
    return (static_cast<double>(bits() >> 11U) + 1) / 9007199254740992.0;
  };
  const double r = std::sqrt(-2 * std::log(uniform())), a = 2 * std::numbers::pi * uniform();
  EXPECT_NEAR(g(), r * std::cos(a), 1e-15);
  EXPECT_NEAR(g(), r * std::sin(a), 1e-15);
  double sum = 0, square = 0;
  for (int i = 0; i < 100000; ++i) {
    const double x = g();
    sum += x;
    square += x * x;
  }
  EXPECT_NEAR(sum / 1e5, 0, 4 / std::sqrt(1e5));
  EXPECT_NEAR(square / 1e5, 1, 4 * std::sqrt(2 / 1e5));
}

TEST(Performer, IsTheMeanUnderItsFeatures) {
  for (const bool causal : {true, false}) {
    const auto q = random_tensor<double>({2, 4, 300, 8}, 1),
               k = random_tensor<double>({2, 2, 300, 8}, 2),
               v = random_tensor<double>({2, 2, 300, 5}, 3);
    const heed::random_directions<double> w(8, 37, 4);
    const auto feature = [&](const double* x, index f) {
      double s = 0, square = 0;
      for (index c = 0; c < 8; ++c) {
        const double y = x[c] / std::pow(8.0, 0.25);
        s += w.columns()(c, f) * y;
        square += y * y;
      }
      return std::exp(s - square / 2);
    };
    heed::performer_options o;
    o.causal = causal;
    expect_close(heed::performer_attention(q, k, v, w, o),
                 weighted_mean(q, k, v, causal, 0,
                               [&](const double* a, const double* b, index, index) {
                                 double s = 0;
                                 for (index f = 0; f < 37; ++f) s += feature(a, f) * feature(b, f);
                                 return s;
                               }),
                 1e-11);
  }
}

/// Mean square error against exact attention over independent draws of the features, and how far a
/// mean of so few draws may be from the true one, relative to it.
struct performer_error {
  double mean = 0;
  double spread = 0;
};

/// The variance of a weight grows with exp(|y_q + y_k|^2): here that is some 4, so that its
/// asymptotics begin at few features.
performer_error error_of_performer(index features, bool causal, int draws, std::uint64_t seed) {
  constexpr index n = 96, d = 16;
  const auto q = random_tensor<double>({1, 1, n, d}, 1, 0.4),
             k = random_tensor<double>({1, 1, n, d}, 2, 0.4),
             v = random_tensor<double>({1, 1, n, 8}, 3);
  const auto exact =
      causal ? heed::attention(q, k, v, {}, heed::causal()) : heed::attention(q, k, v);
  heed::performer_options o;
  o.causal = causal;
  performer_error e;
  double squares = 0;
  for (int draw = 0; draw < draws; ++draw) {
    const heed::random_directions<double> w(d, features, seed++);
    const auto out = heed::performer_attention(q, k, v, w, o);
    double square = 0;
    for (index i = 0; i < out.size(); ++i) {
      square += std::pow(out.data()[i] - exact.data()[i], 2) / static_cast<double>(out.size());
    }
    e.mean += square / draws;
    squares += square * square / draws;
  }
  e.spread = std::sqrt((squares / (e.mean * e.mean) - 1) / (draws - 1));
  return e;
}

TEST(Performer, ErrorFallsAsTheRootOfTheFeatures) {
  for (const bool causal : {true, false}) {
    // An estimate is a quotient of two means over the features: its variance is c / F, up to a part
    // 4 / F of it for each of three terms of second order, 4 the weights' variance of above. 16
    // times the features: a sixteenth, within five standard errors of the two independent means.
    constexpr index features = 128;
    const performer_error few = error_of_performer(features, causal, 200, 0),
                          many = error_of_performer(16 * features, causal, 40, 1000);
    const double margin = 5 * std::hypot(few.spread, many.spread) + 3 * 4.0 / features;
    EXPECT_LT(margin, 0.7);  // or nothing would be said
    EXPECT_NEAR(std::log(few.mean / many.mean), std::log(16.0), margin) << causal;
    EXPECT_LT(std::sqrt(many.mean), 0.01);
  }
}

TEST(Performer, NeverSeesTheFutureAndStreams) {
  const auto q = random_tensor<float>({1, 2, 600, 16}, 1),
             v = random_tensor<float>({1, 2, 600, 9}, 3);
  auto k = random_tensor<float>({1, 2, 600, 16}, 2);
  const heed::random_directions<float> w(16, 40, 4);
  const auto whole = heed::performer_attention(q, k, v, w);
  heed::linear_state<float> state({.batch = 1, .kv_heads = 2, .features = 40, .value_dim = 9});
  index at = 0;
  for (const index next : {1, 3, 259, 600}) {
    const auto piece = [&](const auto& x) { return heed::as_view(x).slice(2, at, next); };
    const auto out = heed::performer_attention(piece(q), piece(k), piece(v), w, state);
    for (index h = 0; h < 2; ++h) {
      for (index t = at; t < next; ++t) {
        for (index c = 0; c < 9; ++c) ASSERT_NEAR(out(0, h, t - at, c), whole(0, h, t, c), 2e-4);
      }
    }
    at = next;
  }
  for (index c = 0; c < 16; ++c) k(0, 0, 500, c) *= 30;
  const auto later = heed::performer_attention(q, k, v, w);
  for (index t = 0; t < 500; ++t) {
    for (index c = 0; c < 9; ++c) ASSERT_EQ(later(0, 0, t, c), whole(0, 0, t, c));
  }
}

TEST(Performer, WideHeadsAndLongQueriesStayFinite) {
  const auto q = random_tensor<float>({1, 1, 20, 256}, 1, 20.0),
             k = random_tensor<float>({1, 1, 20, 256}, 2);
  const heed::random_directions<float> w(256, 64, 4);
  const auto out = heed::performer_attention(q, k, k, w);
  for (index i = 0; i < out.size(); ++i) ASSERT_TRUE(std::isfinite(out.data()[i]));
}

TEST(ParallelPerformer, AnyNumberOfThreadsGivesTheSameBits) {
  const auto q = random_tensor<heed::half>({2, 4, 300, 16}, 1),
             k = random_tensor<heed::half>({2, 2, 300, 16}, 2);
  const heed::random_directions<float> w(16, 33, 4);
  const auto one = heed::performer_attention(q, k, k, w);
  heed::thread_pool pool(3);
  const auto many = heed::performer_attention(pool, q, k, k, w);
  for (index i = 0; i < one.size(); ++i) ASSERT_EQ(one.data()[i], many.data()[i]);
}

TEST(Performer, ErrorsNameTheArgument) {
  const heed::tensor<float, 4> q({1, 2, 5, 4});
  const heed::random_directions<float> w(8, 16, 1);
  try {
    (void)heed::performer_attention(q, q, q, w);
    FAIL();
  } catch (const heed::shape_error& e) {
    EXPECT_STREQ(e.what(), "the random directions has dim 8, q has 4");
  }
  EXPECT_THROW(heed::random_directions<float>(0, 4, 1), heed::shape_error);
}

// ---- cosFormer
// -----------------------------------------------------------------------------------

RC_GTEST_PROP(Cosformer, IsItsDefinition, ()) {
  const auto seed = *rc::gen::inRange(0U, 10000U);
  const auto n = *rc::gen::inRange<index>(1, 400);
  const auto d = *rc::gen::inRange<index>(1, 12);
  const auto causal = *rc::gen::arbitrary<bool>();
  const auto q = random_tensor<double>({1, 2, n, d}, seed),
             k = random_tensor<double>({1, 1, n, d}, seed + 1),
             v = random_tensor<double>({1, 1, n, 3}, seed + 2);
  heed::cosformer_options o;
  o.causal = causal;
  o.eps = 1e-3;
  o.horizon = n + 5;
  const auto want = weighted_mean(
      q, k, v, causal, o.eps, [&](const double* a, const double* b, index i, index j) {
        double s = 0;
        for (index c = 0; c < d; ++c) s += std::max(a[c], 0.0) * std::max(b[c], 0.0);
        return s * std::cos(std::numbers::pi / 2 * static_cast<double>(i - j) /
                            static_cast<double>(n + 5));
      });
  expect_close(heed::cosformer_attention(q, k, v, o), want, 1e-9);
  if (!causal) return;
  heed::linear_state<double> state({.batch = 1, .kv_heads = 1, .features = 2 * d, .value_dim = 3});
  const index cut = n / 3;
  for (const heed::range t : {heed::range{0, cut}, heed::range{cut, n}}) {
    o.first_position = t.begin;
    const auto piece = [&](const auto& x) { return heed::as_view(x).slice(2, t.begin, t.end); };
    const auto out = heed::cosformer_attention(piece(q), piece(k), piece(v), state, o);
    expect_close(
        out,
        [&] {
          heed::tensor<double, 4> rows(out.extents());
          for (index h = 0; h < 2; ++h) {
            for (index i = t.begin; i < t.end; ++i) {
              for (index c = 0; c < 3; ++c) rows(0, h, i - t.begin, c) = want(0, h, i, c);
            }
          }
          return rows;
        }(),
        1e-9);
  }
}

TEST(Cosformer, AHorizonBelowTheTextIsRefused) {
  const heed::tensor<float, 3> q({1, 9, 4});
  heed::cosformer_options o;
  o.horizon = 8;
  EXPECT_THROW((void)heed::cosformer_attention(q, q, q, o), heed::option_error);
}

/// What refuses the call, which leaves state and output as they were.
std::string refusal(index tokens, const heed::cosformer_options& o) {
  const heed::tensor<float, 3> q = random_tensor<float>({1, tokens, 4}, 1);
  heed::linear_state<float> state({.batch = 1, .kv_heads = 1, .features = 8, .value_dim = 4});
  heed::tensor<float, 3> out({1, tokens, 4});
  try {
    heed::cosformer_attention_into(out, q, q, q, state, o);
  } catch (const heed::option_error& e) {
    for (index i = 0; i < out.size(); ++i) EXPECT_EQ(out.data()[i], 0);
    for (index i = 0; i < state.sum().size(); ++i) EXPECT_EQ(state.sum().data()[i], 0);
    return e.what();
  }
  return "";
}

TEST(Cosformer, AStateThatOutgrowsItsHorizonIsRefused) {
  EXPECT_EQ(refusal(3, {.horizon = 12, .first_position = 9}), "");
  EXPECT_EQ(refusal(4, {.horizon = 12, .first_position = 9}),
            "horizon is 12, the state has tokens 9 before the call's 4");
  EXPECT_EQ(refusal(1, {.horizon = 12, .first_position = 1'000'000}),
            "horizon is 12, the state has tokens 1000000 before the call's 1");
  EXPECT_EQ(refusal(13, {.horizon = 12}), "horizon is 12, the call has tokens 13");
  // A text that began later has as much left.
  EXPECT_EQ(refusal(4, {.horizon = 12, .first_position = 109, .state_begin = 101}), "");
  EXPECT_EQ(refusal(4, {.horizon = 12, .first_position = 109, .state_begin = 100}),
            "horizon is 12, the state has tokens 9 before the call's 4");
  EXPECT_EQ(refusal(4, {.horizon = 12, .first_position = 2, .state_begin = 3}),
            "first_position is 2, must be at least state_begin 3, and that at least 0");
  EXPECT_EQ(refusal(4, {}),
            "horizon is absent, a state needs that of its whole text; the call has tokens 4");
}

// ---- Linformer
// -----------------------------------------------------------------------------------

TEST(Linformer, IsAttentionToMixturesOfKeys) {
  const auto q = random_tensor<double>({2, 4, 30, 8}, 1),
             k = random_tensor<double>({2, 2, 50, 8}, 2),
             v = random_tensor<double>({2, 2, 50, 6}, 3);
  const auto e = random_tensor<double>({2, 7, 50}, 4, 0.2);
  const auto f = random_tensor<double>({7, 50}, 5, 0.2);
  heed::tensor<double, 4> keys({2, 2, 7, 8}), values({2, 2, 7, 6});
  for (index b = 0; b < 2; ++b) {
    for (index h = 0; h < 2; ++h) {
      for (index r = 0; r < 7; ++r) {
        for (index j = 0; j < 50; ++j) {
          for (index c = 0; c < 8; ++c) keys(b, h, r, c) += e(h, r, j) * k(b, h, j, c);
          for (index c = 0; c < 6; ++c) values(b, h, r, c) += f(r, j) * v(b, h, j, c);
        }
      }
    }
  }
  const auto want =
      weighted_mean(q, keys, values, false, 0, [](const double* a, const double* b, index, index) {
        return std::exp(dot(a, b, 8) / std::sqrt(8.0));
      });
  expect_close(heed::linformer_attention(q, k, v, e, f), want, 1e-12);
  heed::thread_pool pool(2);
  expect_close(heed::linformer_attention(pool, q, k, v, e, f), want, 1e-12);
}

TEST(Linformer, IdentityProjectionsAreExactAttention) {
  const auto q = random_tensor<float>({20, 8}, 1), k = random_tensor<float>({12, 8}, 2);
  heed::tensor<float, 2> one({12, 12});
  for (index i = 0; i < 12; ++i) one(i, i) = 1;
  const auto out = heed::linformer_attention(q, k, k, one, one);
  const auto exact = heed::attention(q, k, k);
  for (index i = 0; i < out.size(); ++i) ASSERT_EQ(out.data()[i], exact.data()[i]);
}

TEST(Linformer, ErrorsNameTheArgument) {
  const heed::tensor<float, 2> q({5, 4}), e({3, 5}), f({2, 5}), short_e({3, 4});
  const auto message = [&](const auto& a, const auto& b) -> std::string {
    try {
      (void)heed::linformer_attention(q, q, q, a, b);
    } catch (const heed::shape_error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message(e, f), "f has mixtures 2, e has 3");
  EXPECT_EQ(message(short_e, e), "e has keys 4, k has 5");
}

}  // namespace
