// SPDX-License-Identifier: MIT
// The backward pass by tiles against the textbook one in double, and that one against differences.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "heed/attention/backward/attention_backward.hpp"
#include "heed/attention/backward/naive_attention_backward.hpp"
#include "heed/attention/naive.hpp"
#include "heed/parallel.hpp"
#include "heed/score.hpp"
#include "heed/tensor.hpp"
#include "support/attention_oracle.hpp"

namespace {

using heed::index;

template <class T>
heed::tensor<double, 4> wide(const heed::tensor<T, 4>& x) {
  heed::tensor<double, 4> y(x.extents());
  std::transform(x.data(), x.data() + x.size(), y.data(),
                 [](T e) { return static_cast<double>(e); });
  return y;
}

template <class T>
struct problem {
  heed::tensor<T, 4> q, k, v, d_out;
  heed::tensor<double, 3> d_lse;

  problem(index batch, index heads, index kv_heads, index queries, index keys, index d, index dv)
      : q(oracle::random_tensor<T, 4>({batch, heads, queries, d}, 1)),
        k(oracle::random_tensor<T, 4>({batch, kv_heads, keys, d}, 2)),
        v(oracle::random_tensor<T, 4>({batch, kv_heads, keys, dv}, 3)),
        d_out(oracle::random_tensor<T, 4>({batch, heads, queries, dv}, 4)),
        d_lse(oracle::random_tensor<double, 3>({batch, heads, queries}, 5)) {}
};

/// The largest error, relative to the largest number expected.
template <class T>
double error(const heed::tensor<T, 4>& got, const heed::tensor<double, 4>& want) {
  double size = 1e-30;
  double worst = 0;
  for (index i = 0; i < want.size(); ++i) {
    size = std::max(size, std::abs(want.data()[i]));
    const double e = std::abs(static_cast<double>(got.data()[i]) - want.data()[i]);
    worst = std::isnan(e) ? INFINITY : std::max(worst, e);
  }
  return worst / size;
}

/// Tiles in T, and the textbook in double, from the same numbers. Sums of n terms of about equal
/// size err by less than n eps of the largest; half of it is usual for none of these.
template <class T, class E, class... M>
void expect_close(E& exec, const problem<T>& x, const heed::attention_options& options,
                  double tolerance, const M&... modifiers) {
  using A = heed::accumulate_t<T>;
  const auto q = wide(x.q);
  const auto k = wide(x.k);
  const auto v = wide(x.v);
  const auto d_out = wide(x.d_out);
  const auto forward = heed::naive_attention_with_lse(q, k, v, options, modifiers...);
  const auto want = heed::naive_attention_backward(
      q, k, v, forward, heed::cotangents(d_out, x.d_lse), options, modifiers...);
  heed::tensor<T, 4> out(forward.output.extents());
  heed::tensor<A, 3> lse(x.d_lse.extents());
  heed::tensor<A, 3> d_lse(x.d_lse.extents());
  for (index i = 0; i < out.size(); ++i) out.data()[i] = static_cast<T>(forward.output.data()[i]);
  for (index i = 0; i < lse.size(); ++i) {
    lse.data()[i] = static_cast<A>(forward.log_sum_exp.data()[i]);
    d_lse.data()[i] = static_cast<A>(x.d_lse.data()[i]);
  }
  const auto got =
      heed::attention_backward(exec, x.q, x.k, x.v, heed::into(out, lse),
                               heed::cotangents(x.d_out, d_lse), options, modifiers...);
  EXPECT_LE(error(got.query, want.query), tolerance);
  EXPECT_LE(error(got.key, want.key), tolerance);
  EXPECT_LE(error(got.value, want.value), tolerance);
}

TEST(Backward, PlainRowsOfManyLengths) {
  heed::serial_executor exec;
  for (const index n : {1, 5, 24, 49, 130}) {
    for (const index d : {1, 7, 16, 20}) {
      expect_close(exec, problem<float>(1, 2, 2, n, n + 61, d, d + 3), {}, 2e-5);
    }
  }
}

TEST(Backward, GroupedHeadsWindowsAndOffsets) {
  heed::thread_pool pool(2);
  const std::vector<index> offset{-9, 40};
  const problem<heed::bfloat16> x(2, 4, 2, 150, 210, 24, 16);
  // The output is rounded to bfloat16, and so are the gradients.
  expect_close(pool, x, {.offset = offset}, 2e-2, heed::causal() && heed::window{.left = 70});
}

TEST(Backward, EveryModifier) {
  const problem<float> x(2, 4, 1, 70, 150, 20, 12);
  const auto bias_values = oracle::random_tensor<float, 2>({70, 140}, 6);  // narrow: masks the rest
  const std::vector<double> logits{0.5, -1, 2, -std::numeric_limits<double>::infinity()};
  const auto f = [](auto s, const heed::position& p) {
    return s * s * 0.1F + tanh(s) * (p.key % 3 == 0 ? 0.5F : 1.5F);
  };
  std::vector<index> documents(150);
  for (index j = 0; j < 150; ++j) documents[static_cast<std::size_t>(j)] = j / 40;
  const auto ids = std::span<const index>(documents);
  heed::serial_executor exec;
  // Gradients of what the modifiers read: told by both methods, one after the other.
  std::vector<double> d_bias;
  std::vector<double> d_sink;
  const auto bias = heed::with_gradient(heed::bias(bias_values),
                                        [&](double d, heed::position) { d_bias.push_back(d); });
  const auto sink = heed::with_gradient(heed::sink(logits),
                                        [&](double d, heed::position) { d_sink.push_back(d); });
  expect_close(exec, x, {.scale = 0.6, .offset = 30}, 2e-5, heed::softcap(3), f, heed::alibi(),
               bias, heed::documents(ids.first(70), ids), sink, heed::dropout{0.3, 7});
  const auto total = [](const std::vector<double>& all, bool second) {
    const auto half = static_cast<std::ptrdiff_t>(all.size() / 2);
    double sum = 0;
    for (auto i = all.begin() + (second ? half : 0); i != (second ? all.end() : all.begin() + half);
         ++i) {
      sum += std::abs(*i);
    }
    return sum;
  };
  ASSERT_EQ(d_bias.size() % 2, 0U);
  ASSERT_EQ(d_sink.size(), 2U * 2U * 3U * 70U);
  EXPECT_NEAR(total(d_bias, true), total(d_bias, false), 1e-4 * total(d_bias, false));
  EXPECT_NEAR(total(d_sink, true), total(d_sink, false), 1e-4 * total(d_sink, false));
}

TEST(Backward, ParallelSameBits) {
  const problem<float> x(1, 2, 2, 700, 600, 16, 16);
  const auto run = [&](auto& exec) {
    const auto forward = heed::naive_attention_with_lse(x.q, x.k, x.v, {}, heed::causal());
    return heed::attention_backward(exec, x.q, x.k, x.v, forward, x.d_out, {}, heed::causal());
  };
  heed::serial_executor serial;
  const auto want = run(serial);
  for (const index threads : {1, 2, 7}) {
    heed::thread_pool pool(threads);
    const auto got = run(pool);
    EXPECT_TRUE(oracle::same_bits(got.query, want.query)) << threads;
    EXPECT_TRUE(oracle::same_bits(got.key, want.key)) << threads;
    EXPECT_TRUE(oracle::same_bits(got.value, want.value)) << threads;
  }
}

// Rows that see nothing, keys that nobody sees: 0, whatever they hold.
TEST(Backward, HiddenPairsDoNotLeak) {
  problem<float> x(1, 1, 1, 60, 60, 8, 8);
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  const auto forward =
      heed::naive_attention_with_lse(x.q, x.k, x.v, {.offset = -3}, heed::causal());
  const auto clean =
      heed::attention_backward(x.q, x.k, x.v, forward, x.d_out, {.offset = -3}, heed::causal());
  for (index c = 0; c < 8; ++c) {
    for (index i = 0; i < 3; ++i) x.q(0, 0, i, c) = x.d_out(0, 0, i, c) = nan;  // see no key
    for (index j = 57; j < 60; ++j) x.k(0, 0, j, c) = x.v(0, 0, j, c) = nan;    // seen by no query
  }
  const auto got =
      heed::attention_backward(x.q, x.k, x.v, forward, x.d_out, {.offset = -3}, heed::causal());
  EXPECT_LE(error(got.query, wide(clean.query)), 1e-6);
  EXPECT_LE(error(got.key, wide(clean.key)), 1e-6);
  EXPECT_LE(error(got.value, wide(clean.value)), 1e-6);
  for (index c = 0; c < 8; ++c) {
    EXPECT_EQ(got.query(0, 0, 0, c), 0);
    EXPECT_EQ(got.key(0, 0, 59, c), 0);
    EXPECT_EQ(got.value(0, 0, 59, c), 0);
  }
}

TEST(Backward, LargeScoresStayFinite) {
  problem<float> x(1, 1, 1, 40, 40, 8, 8);
  for (index i = 0; i < x.q.size(); ++i) x.q.data()[i] *= 3e4F;
  const auto forward = heed::naive_attention_with_lse(x.q, x.k, x.v);
  const auto g = heed::attention_backward(x.q, x.k, x.v, forward, x.d_out);
  for (index i = 0; i < g.query.size(); ++i) EXPECT_TRUE(std::isfinite(g.query.data()[i]));
  for (index i = 0; i < g.key.size(); ++i) EXPECT_TRUE(std::isfinite(g.key.data()[i]));
}

TEST(Backward, NaiveAgreesWithDifferences) {
  problem<double> x(1, 2, 1, 3, 5, 4, 3);
  const auto f = [](auto s, const heed::position& p) { return s * 0.5 + s * s * double(p.key); };
  const auto value = [&] {
    const auto r = heed::naive_attention_with_lse(x.q, x.k, x.v, {}, f);
    double sum = 0;
    for (index i = 0; i < r.output.size(); ++i) sum += r.output.data()[i] * x.d_out.data()[i];
    for (index i = 0; i < x.d_lse.size(); ++i) sum += r.log_sum_exp.data()[i] * x.d_lse.data()[i];
    return sum;
  };
  const auto forward = heed::naive_attention_with_lse(x.q, x.k, x.v, {}, f);
  const auto g = heed::naive_attention_backward(x.q, x.k, x.v, forward,
                                                heed::cotangents(x.d_out, x.d_lse), {}, f);
  const auto agree = [&](heed::tensor<double, 4>& at, const heed::tensor<double, 4>& gradient) {
    for (index i = 0; i < at.size(); ++i) {
      const double x0 = at.data()[i];
      constexpr double h = 1e-5;  // the error of the quotient is about h^2 and eps / h
      at.data()[i] = x0 + h;
      const double above = value();
      at.data()[i] = x0 - h;
      const double below = value();
      at.data()[i] = x0;
      EXPECT_NEAR((above - below) / (2 * h), gradient.data()[i], 1e-8);
    }
  };
  agree(x.q, g.query);
  agree(x.k, g.key);
  agree(x.v, g.value);
}

// Two keys of zeros, each with half of every query's weight: dv_j = sum_i d_out_i / 2, and dk_j, with
// values of ones and of zeros, +-sum_i |d_out_i| q_i / 4. Positive terms: one float sum of them is
// 2e-5 off.
TEST(Backward, KeysOfManyQueriesLoseNoDigits) {
  constexpr index n = 262'144, d = 4;
  heed::tensor<float, 4> q({1, 1, n, d}), k({1, 1, 2, d}), v({1, 1, 2, d}), d_out({1, 1, n, d});
  unsigned seed = 1;
  for (auto* x : {&q, &d_out}) {
    for (index i = 0; i < x->size(); ++i) {
      seed = seed * 1664525u + 1013904223u;
      x->data()[i] = 0.5f + static_cast<float>(seed >> 8) / 33554432.0f;
    }
  }
  std::fill_n(v.data(), d, 1.0f);
  const auto forward = heed::attention_with_lse(q, k, v, {.scale = 1});
  const auto got = heed::attention_backward(q, k, v, forward, d_out, {.scale = 1});
  std::vector<double> dv(d), dk(d);
  for (index i = 0; i < n; ++i) {
    double sum = 0;
    for (index c = 0; c < d; ++c) sum += static_cast<double>(d_out(0, 0, i, c));
    for (index c = 0; c < d; ++c) {
      dv[static_cast<std::size_t>(c)] += static_cast<double>(d_out(0, 0, i, c)) / 2;
      dk[static_cast<std::size_t>(c)] += sum * static_cast<double>(q(0, 0, i, c)) / 4;
    }
  }
  for (index j = 0; j < 2; ++j) {
    for (index c = 0; c < d; ++c) {
      const auto at = static_cast<std::size_t>(c);
      EXPECT_NEAR(got.value(0, 0, j, c), dv[at], 2e-6 * dv[at]);
      EXPECT_NEAR(got.key(0, 0, j, c), j == 0 ? dk[at] : -dk[at], 2e-6 * dk[at]);
    }
  }
}

TEST(Backward, RefusesWhatDoesNotFit) {
  problem<float> x(1, 2, 1, 3, 5, 4, 3);
  const auto forward = heed::naive_attention_with_lse(x.q, x.k, x.v);
  heed::tensor<float, 4> narrow({1, 2, 3, 2});
  EXPECT_THROW((void)heed::attention_backward(x.q, x.k, x.v, forward, narrow), heed::shape_error);
  heed::tensor<float, 4> dq(x.q.extents());
  heed::tensor<float, 4> dk(x.k.extents());
  EXPECT_THROW(
      heed::attention_backward_into(heed::gradients(dq, dk, dk), x.q, x.k, x.v, forward, x.d_out),
      heed::shape_error);
}

}  // namespace
