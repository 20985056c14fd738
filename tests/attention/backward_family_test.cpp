// SPDX-License-Identifier: MIT
// Gradients of what is built on exact attention, forget gates and projected keys, and of tables that
// modifiers read: against differences of the textbook in double, and against pairs told one by one.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "heed/attention/backward/forgetting_backward.hpp"
#include "heed/attention/backward/linformer_backward.hpp"
#include "heed/attention/backward/naive_attention_backward.hpp"
#include "heed/attention/naive.hpp"
#include "heed/parallel.hpp"
#include "heed/score.hpp"
#include "support/attention_oracle.hpp"
#include "support/differences.hpp"

namespace {

using heed::index;
using support::expect_differences;

template <class X>
double dot(const X& x, const X& y) {
  double sum = 0;
  for (index i = 0; i < x.size(); ++i) {
    if (!std::isinf(x.data()[i])) sum += x.data()[i] * y.data()[i];
  }
  return sum;
}

/// Log gates in (-1, 0].
template <class T>
heed::tensor<T, 3> random_gates(const std::array<index, 3>& extents, unsigned seed) {
  auto g = oracle::random_tensor<T, 3>(extents, seed);
  for (index i = 0; i < g.size(); ++i) g.data()[i] = -std::abs(g.data()[i]);
  return g;
}

TEST(ForgettingBackward, AgreesWithDifferences) {
  const double inf = std::numeric_limits<double>::infinity();
  for (const bool modified : {false, true}) {
    auto q = oracle::random_tensor<double, 4>({2, 4, 7, 3}, 1);
    auto k = oracle::random_tensor<double, 4>({2, 2, 9, 3}, 2);
    auto v = oracle::random_tensor<double, 4>({2, 2, 9, 2}, 3);
    auto g = random_gates<double>({2, 4, 9}, 4);
    g(0, 1, 4) = -60;
    g(1, 0, 5) = g(1, 2, 0) = -inf;
    const auto d_out = oracle::random_tensor<double, 4>({2, 4, 7, 2}, 5);
    const auto d_lse = oracle::random_tensor<double, 3>({2, 4, 7}, 6);
    const auto check = [&](const auto&... more) {
      const heed::attention_options options{.scale = 0.7, .offset = 2};
      const auto loss = [&] {
        const auto r = heed::naive_attention_with_lse(q, k, v, options, heed::forget_gates(g),
                                                      heed::causal(), more...);
        return dot(r.output, d_out) + dot(r.log_sum_exp, d_lse);
      };
      heed::tensor<double, 4> out(d_out.extents());
      heed::tensor<double, 3> lse(d_lse.extents());
      heed::forgetting_attention_into(heed::into(out, lse), q, k, v, g, options, more...);
      const auto got = heed::forgetting_attention_backward(
          q, k, v, g, heed::into(out, lse), heed::cotangents(d_out, d_lse), options, more...);
      expect_differences("q", q, got.query, loss, 2e-8);
      expect_differences("k", k, got.key, loss, 2e-8);
      expect_differences("v", v, got.value, loss, 2e-8);
      expect_differences("g", g, got.gate, loss, 2e-8);
      EXPECT_EQ(got.gate(1, 0, 5), 0);
      EXPECT_EQ(got.gate(1, 2, 0), 0);
      EXPECT_EQ(got.gate(0, 0, 0), 0);
    };
    if (modified) {
      check(heed::softcap(2), heed::window{.left = 4},
            [](auto s, const heed::position&) { return s * 0.8 + tanh(s); });
    } else {
      check();
    }
  }
}

// Many tokens in float against the textbook in double, whose gates are told pair by pair; strided
// gradients; the same bits for any number of threads.
TEST(ForgettingBackward, TilesAgreeWithTheTextbookOnAnyThreads) {
  const index n = 300;
  const auto q = oracle::random_tensor<double, 4>({1, 4, n, 16}, 1);
  const auto k = oracle::random_tensor<double, 4>({1, 2, n, 16}, 2);
  const auto v = oracle::random_tensor<double, 4>({1, 2, n, 8}, 3);
  const auto d_out = oracle::random_tensor<double, 4>({1, 4, n, 8}, 4);
  const auto g = random_gates<double>({1, 4, n}, 5);
  const auto forward =
      heed::naive_attention_with_lse(q, k, v, {}, heed::forget_gates(g), heed::causal());
  heed::tensor<double, 3> want({1, 4, n});
  const auto told = heed::with_gradient(heed::forget_gates(g), [&](double d, heed::position p) {
    for (index t = p.key + 1; t <= p.query; ++t) want(0, p.head, t) += d;
  });
  const auto naive =
      heed::naive_attention_backward(q, k, v, forward, d_out, {}, told, heed::causal());

  const auto narrow4 = [](const heed::tensor<double, 4>& x) {
    heed::tensor<float, 4> y(x.extents());
    for (index i = 0; i < x.size(); ++i) y.data()[i] = static_cast<float>(x.data()[i]);
    return y;
  };
  const auto narrow3 = [](const heed::tensor<double, 3>& x) {
    heed::tensor<float, 3> y(x.extents());
    for (index i = 0; i < x.size(); ++i) y.data()[i] = static_cast<float>(x.data()[i]);
    return y;
  };
  const auto q1 = narrow4(q), k1 = narrow4(k), v1 = narrow4(v), d1 = narrow4(d_out);
  const auto g1 = narrow3(g);
  auto out = narrow4(forward.output);
  auto lse = narrow3(forward.log_sum_exp);
  heed::tensor<float, 4> dq(q.extents()), dk(k.extents()), dv(v.extents());
  heed::tensor<float, 3> first({1, n, 4});
  for (const index threads : {1, 2, 5}) {
    heed::thread_pool pool(threads);
    heed::tensor<float, 3> dg({1, n, 4});
    heed::forgetting_attention_backward_into(
        pool, heed::gradients(dq, dk, dv, heed::as_view(dg).swap_axes(1, 2)), q1, k1, v1, g1,
        heed::into(out, lse), d1);
    if (threads == 1) first = dg;
    EXPECT_TRUE(oracle::same_bits(dg, first)) << threads;
    // 300 tokens of scores near 1: sums of as many terms, each off by a few eps.
    for (index h = 0; h < 4; ++h) {
      for (index t = 0; t < n; ++t) EXPECT_NEAR(dg(0, t, h), want(0, h, t), 2e-5) << h << ' ' << t;
    }
    for (index i = 0; i < dq.size(); ++i) EXPECT_NEAR(dq.data()[i], naive.query.data()[i], 1e-5);
    for (index i = 0; i < dk.size(); ++i) EXPECT_NEAR(dk.data()[i], naive.key.data()[i], 1e-5);
  }
}

TEST(ForgettingBackward, RefusesWhatDoesNotFitAndTakesNothing) {
  heed::tensor<float, 4> q({1, 2, 0, 3}), v({1, 2, 0, 2});
  heed::tensor<float, 3> g({1, 2, 0}), lse({1, 2, 0});
  const auto none = heed::forgetting_attention_backward(q, q, v, g, heed::into(v, lse), v);
  EXPECT_EQ(none.gate.size(), 0);
  const heed::tensor<float, 3> wide({1, 2, 4});
  EXPECT_THROW((void)heed::forgetting_attention_backward(q, q, v, wide, heed::into(v, lse), v),
               heed::shape_error);
}

TEST(LinformerBackward, AgreesWithDifferences) {
  // Channels that fill no register, and more than two.
  auto q = oracle::random_tensor<double, 4>({2, 4, 5, 3}, 1);
  auto k = oracle::random_tensor<double, 4>({2, 2, 7, 3}, 2);
  auto v = oracle::random_tensor<double, 4>({2, 2, 7, 19}, 3);
  const auto d_out = oracle::random_tensor<double, 4>({2, 4, 5, 19}, 4);
  const auto check = [&](auto e, auto f) {
    const auto loss = [&] {
      return dot(heed::linformer_attention(q, k, v, e, f, {.scale = 0.8}, heed::softcap(2)), d_out);
    };
    heed::thread_pool pool(3);
    const auto got = heed::linformer_attention_backward(pool, q, k, v, e, f, d_out, {.scale = 0.8},
                                                        heed::softcap(2));
    expect_differences("q", q, got.query, loss, 2e-8);
    expect_differences("k", k, got.key, loss, 2e-8);
    expect_differences("v", v, got.value, loss, 2e-8);
    expect_differences("e", e, got.key_projection, loss, 2e-8);
    expect_differences("f", f, got.value_projection, loss, 2e-8);
    auto dq = q, dk = k, dv = v;
    auto de = e;
    auto df = f;
    heed::linformer_attention_backward_into(pool, heed::gradients(dq, dk, dv, de, df), q, k, v, e,
                                            f, d_out, {.scale = 0.8}, heed::softcap(2));
    const auto same = [](const auto& a, const auto& b) {
      return std::equal(a.data(), a.data() + a.size(), b.data());
    };
    EXPECT_TRUE(same(dq, got.query) && same(dk, got.key) && same(dv, got.value));
    EXPECT_TRUE(same(de, got.key_projection) && same(df, got.value_projection));
    decltype(f) narrow({2, 3, 7});
    EXPECT_THROW(heed::linformer_attention_backward_into(
                     pool, heed::gradients(dq, dk, dv, de, narrow), q, k, v, e, f, d_out),
                 heed::shape_error);
  };
  check(oracle::random_tensor<double, 2>({4, 7}, 5),
        oracle::random_tensor<double, 3>({2, 4, 7}, 6));
  const heed::tensor<double, 2> e({4, 6});
  EXPECT_THROW((void)heed::linformer_attention_backward(q, k, v, e, e, d_out), heed::shape_error);
}

// Tables that tasks sum for themselves, against the pairs told one by one.
TEST(TablesOfGradients, AgreeWithCallbacksOnAnyThreads) {
  const index n = 330;
  const auto q = oracle::random_tensor<float, 4>({2, 6, n, 8}, 1);
  const auto k = oracle::random_tensor<float, 4>({2, 3, n, 8}, 2);
  const auto d_out = oracle::random_tensor<float, 4>({2, 6, n, 8}, 3);
  const auto buckets = oracle::random_tensor<float, 2>({6, 10}, 4);
  const std::vector<double> logits{0.5, -1, 2, 0, 1, 0.25};
  const auto bucket = [](const heed::position& p) {
    return std::min<index>(std::abs(p.query - p.key) / 8, 9);
  };
  const auto relative = [&](auto s, const heed::position& p) {
    return s * 0.5F + buckets(p.head, bucket(p));
  };
  const auto forward =
      heed::naive_attention_with_lse(q, k, k, {}, relative, heed::sink(logits), heed::causal());

  heed::tensor<double, 2> want({6, 10});
  std::vector<double> want_sink(6);
  const auto naive = heed::naive_attention_backward(
      q, k, k, forward, d_out, {},
      heed::with_gradient(relative,
                          [&](double d, heed::position p) { want(p.head, bucket(p)) += d; }),
      heed::with_gradient(
          heed::sink(logits),
          [&](double d, heed::position p) { want_sink[static_cast<std::size_t>(p.head)] += d; }),
      heed::causal());

  heed::tensor<float, 2> first({10, 6});
  heed::tensor<float, 1> first_sink({6});
  for (const index threads : {1, 2, 5}) {
    heed::thread_pool pool(threads);
    heed::tensor<float, 2> table({10, 6});  // given with its axes exchanged
    heed::tensor<float, 1> sinks({6});
    sinks(5) = 1;  // gradients are added to what is there
    const auto got = heed::attention_backward(
        pool, q, k, k, forward, d_out, {},
        heed::with_gradient(
            relative, heed::as_view(table).swap_axes(0, 1),
            [&](const auto& sums, float d, heed::position p) { sums(p.head, bucket(p)) += d; }),
        heed::with_gradient(heed::sink(logits), sinks,
                            [](const auto& sums, float d, heed::position p) { sums(p.head) += d; }),
        heed::causal());
    if (threads == 1) {
      first = table;
      first_sink = sinks;
    }
    EXPECT_TRUE(oracle::same_bits(table, first)) << threads;
    EXPECT_TRUE(oracle::same_bits(sinks, first_sink)) << threads;
    // Sums of at most 330 x 330 x 2 terms below 1e-2.
    for (index h = 0; h < 6; ++h) {
      for (index b = 0; b < 10; ++b) EXPECT_NEAR(table(b, h), want(h, b), 1e-3);
      const double more = h == 5 ? 1 : 0;
      EXPECT_NEAR(sinks(h), more + want_sink[static_cast<std::size_t>(h)], 1e-3) << h;
    }
    for (index i = 0; i < got.key.size(); ++i) {
      EXPECT_NEAR(got.key.data()[i], naive.key.data()[i], 1e-4);
    }
  }
  // The textbook adds to the caller's table.
  heed::tensor<float, 2> direct({6, 10});
  (void)heed::naive_attention_backward(
      q, k, k, forward, d_out, {},
      heed::with_gradient(
          relative, direct,
          [&](const auto& sums, float d, heed::position p) { sums(p.head, bucket(p)) += d; }),
      heed::sink(logits), heed::causal());
  for (index i = 0; i < want.size(); ++i) EXPECT_NEAR(direct.data()[i], want.data()[i], 1e-3);
}

}  // namespace
