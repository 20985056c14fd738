// SPDX-License-Identifier: MIT
// The diagonal scans (selective scan, HGRN, RWKV-4) against plain loops in double that carry a
// running bound of the rounding errors; states, strides, threads, extremes, and errors.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "heed/linear.hpp"
#include "heed/parallel.hpp"
#include "heed/tensor.hpp"
#include "support/scalars.hpp"

namespace {

using heed::index;

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

template <class T>
double epsilon_of() {
  if constexpr (std::is_same_v<T, heed::half>) return std::ldexp(1.0, -10);
  if constexpr (std::is_same_v<T, heed::bfloat16>) return std::ldexp(1.0, -7);
  return static_cast<double>(std::numeric_limits<T>::epsilon());
}

/// Where results are this small, their absolute error is bounded, not their relative one.
template <class T>
double smallest_of() {
  if constexpr (std::is_same_v<T, heed::half>) return std::ldexp(1.0, -24);
  return static_cast<double>(std::numeric_limits<float>::min());
}

template <int R, class T>
heed::tensor<T, R> random_tensor(const std::array<index, static_cast<std::size_t>(R)>& extents,
                                 unsigned seed, double scale = 1, double shift = 0) {
  heed::tensor<T, R> t(extents);
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal;
  for (index i = 0; i < t.size(); ++i) {
    t.data()[i] = static_cast<T>(scale * normal(engine) + shift);
  }
  return t;
}

template <class T, int R>
heed::tensor<T, R> decays(const std::array<index, static_cast<std::size_t>(R)>& extents,
                          unsigned seed) {
  auto t = random_tensor<R, T>(extents, seed);
  for (index i = 0; i < t.size(); ++i) {
    t.data()[i] = static_cast<T>(-std::abs(static_cast<double>(t.data()[i])));
  }
  return t;
}

/// The same numbers, stored channels first and backwards: strides (.., -1, tokens).
template <class T>
struct transposed {
  heed::tensor<T, 3> memory;
  heed::view<T, 3> view;
  explicit transposed(const std::array<index, 3>& e)
      : memory({e[0], e[2], e[1]}),
        view(e[1] == 0 ? memory.data() : memory.data() + e[1] - 1, e, {e[1] * e[2], -1, e[1]}) {}
  explicit transposed(const heed::tensor<T, 3>& from) : transposed(from.extents()) {
    for (index b = 0; b < view.extent(0); ++b) {
      for (index t = 0; t < view.extent(1); ++t) {
        for (index c = 0; c < view.extent(2); ++c) view(b, t, c) = from(b, t, c);
      }
    }
  }
};

template <class V, class W>
bool same_bits(const V& a, const W& b) {
  return a.size() == b.size() &&
         std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(*a.data())) ==
             0;
}

/// A number computed in double, and how far the same steps in the accumulator type may end from it.
struct bounded {
  double value = 0;
  double error = 0;
};

template <class T>
void expect_within(T got, const bounded& want, const std::string& what) {
  const double g = static_cast<double>(got);
  if (std::isnan(want.value)) {
    ASSERT_TRUE(std::isnan(g)) << what;
  } else {
    // Second-order terms, which the running bound leaves out, are far below its last tenth.
    const double margin =
        1.1 * want.error + epsilon_of<T>() * std::abs(want.value) + smallest_of<T>();
    ASSERT_NEAR(g, want.value, margin) << what;
  }
}

/// exp(x), x itself in error: the kernel's polynomial is good to 2 eps, its scaled argument to
/// |x| eps.
bounded exp_of(const bounded& x, double eps) {
  const double e = std::exp(x.value);
  if (e == 0) return {0, 0};
  return {e, e * (x.error + (2 + std::abs(x.value)) * eps) + smallest_of<float>()};
}
/// e h + in, each with its error, rounded once or twice.
bounded advance(const bounded& e, const bounded& h, const bounded& in, double eps) {
  const double value = e.value * h.value + in.value;
  return {value, e.value * h.error + e.error * std::abs(h.value) + in.error +
                     eps * (std::abs(e.value * h.value) + std::abs(value))};
}

// ---- selective scan
// ------------------------------------------------------------------------------

template <class T>
struct scan_case {
  using A = heed::accumulate_t<T>;
  heed::tensor<T, 3> x, dt, gate;
  heed::tensor<A, 2> a;
  heed::tensor<T, 4> b, c;
  heed::tensor<A, 1> skip, bias;
  heed::tensor<A, 3> state;
  bool with_skip = false, with_bias = false, with_gate = false, softplus = false;

  scan_case(index batch, index tokens, index channels, index groups, index n, unsigned seed)
      : x(random_tensor<3, T>({batch, tokens, channels}, seed)),
        dt(random_tensor<3, T>({batch, tokens, channels}, seed + 1, 0.5, 0.2)),
        gate(random_tensor<3, T>({batch, tokens, channels}, seed + 2, 2)),
        a(decays<A, 2>({channels, n}, seed + 3)),
        b(random_tensor<4, T>({batch, tokens, groups, n}, seed + 4)),
        c(random_tensor<4, T>({batch, tokens, groups, n}, seed + 5)),
        skip(random_tensor<1, A>({channels}, seed + 6)),
        bias(random_tensor<1, A>({channels}, seed + 7, 0.5)),
        state(random_tensor<3, A>({batch, channels, n}, seed + 8)),
        with_skip((seed & 1) != 0),
        with_bias((seed & 2) != 0),
        with_gate((seed & 4) != 0),
        softplus((seed & 8) != 0) {
    if (!softplus) {  // time steps are positive, unless the test of positive exponents makes some
      for (index i = 0; i < dt.size(); ++i) {
        dt.data()[i] = static_cast<T>(std::abs(static_cast<double>(dt.data()[i])));
      }
      for (index i = 0; i < bias.size(); ++i) bias.data()[i] = std::abs(bias.data()[i]);
    }
  }

  [[nodiscard]] heed::selective_scan_options<T> options() const {
    heed::selective_scan_options<T> o;
    if (with_skip) o.skip = heed::as_view(skip);
    if (with_bias) o.dt_bias = heed::as_view(bias);
    if (with_gate) o.gate = heed::as_view(gate);
    o.softplus = softplus;
    return o;
  }

  void check(const heed::view<const T, 3>& out, const heed::tensor<A, 3>& after,
             const std::string& what) const {
    const double eps = epsilon_of<A>();
    const index n = a.extents()[1], groups = b.extents()[2], channels = x.extents()[2];
    for (index s = 0; s < x.extents()[0]; ++s) {
      for (index k = 0; k < channels; ++k) {
        const index g = k / (channels / groups);
        std::vector<bounded> h;
        for (index i = 0; i < n; ++i) h.push_back({static_cast<double>(state(s, k, i)), 0});
        for (index t = 0; t < x.extents()[1]; ++t) {
          const auto in = static_cast<double>(x(s, t, k));
          bounded step{static_cast<double>(dt(s, t, k)), 0};
          if (with_bias) {
            step.error = eps * (std::abs(step.value) + std::abs(static_cast<double>(bias(k))));
            step.value += static_cast<double>(bias(k));
          }
          if (softplus) {
            step.value = step.value > 0 ? step.value + std::log1p(std::exp(-step.value))
                                        : std::log1p(std::exp(step.value));
            step.error += 8 * eps * step.value + smallest_of<float>();
          }
          bounded y;
          double terms = 0;
          for (index i = 0; i < n; ++i) {
            const auto rate = static_cast<double>(a(k, i));
            const auto bi = static_cast<double>(b(s, t, g, i));
            const auto ci = static_cast<double>(c(s, t, g, i));
            const double log_decay = step.value * rate;
            const bounded e =
                exp_of({log_decay, std::abs(rate) * step.error + eps * std::abs(log_decay)}, eps);
            const bounded term{step.value * in * bi,
                               std::abs(in * bi) * (step.error + 2 * eps * std::abs(step.value))};
            auto& state_i = h[static_cast<std::size_t>(i)];
            state_i = advance(e, state_i, term, eps);
            y.value += ci * state_i.value;
            y.error += std::abs(ci) * state_i.error;
            terms += std::abs(ci * state_i.value);
          }
          y.error += static_cast<double>(n + 2) * eps * terms;
          if (with_skip) {
            const double d = static_cast<double>(skip(k)) * in;
            y.value += d;
            y.error += eps * (std::abs(d) + std::abs(y.value));
          }
          if (with_gate) {
            const auto z = static_cast<double>(gate(s, t, k));
            const double silu = z / (1 + std::exp(-z));
            y.error = std::abs(silu) * (y.error + (7 + std::abs(z)) * eps * std::abs(y.value));
            y.value *= silu;
          }
          expect_within(out(s, t, k), y,
                        what + " token " + std::to_string(t) + " channel " + std::to_string(k));
          if (testing::Test::HasFatalFailure()) return;
        }
        for (index i = 0; i < n; ++i) {
          expect_within(after(s, k, i), h[static_cast<std::size_t>(i)], what + " state");
          if (testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }

  /// Everything in one call, contiguous.
  void run(const std::string& what) const {
    auto after = state;
    const auto out = heed::selective_scan(x, dt, a, b, c, after, options());
    check(heed::as_view(out), after, what);
  }
};

template <class T>
class Scan : public testing::Test {};
using scalars = test_scalars::some;
TYPED_TEST_SUITE(Scan, scalars);

TYPED_TEST(Scan, SelectiveScanIsItsDefinition) {
  std::mt19937 engine(7);
  for (unsigned seed = 0; seed < 48; ++seed) {
    const index groups = seed % 5 == 0 ? 2 : 1;
    const index tokens = seed < 3 ? index{seed} : static_cast<index>(engine() % 150);
    const scan_case<TypeParam> s(
        1 + static_cast<index>(engine() % 2), tokens,
        groups * (1 + static_cast<index>(engine() % (seed % 8 == 7 ? 160 : 21))), groups,
        1 + static_cast<index>(engine() % 18), seed);
    s.run("case " + std::to_string(seed));
    if (this->HasFatalFailure()) return;
  }
}

TYPED_TEST(Scan, SelectiveScanReadsAndWritesAnyStrides) {
  using T = TypeParam;
  const scan_case<T> s(2, 77, 19, 1, 5, 15);
  const transposed<T> x(s.x), dt(s.dt), gate(s.gate);
  transposed<T> out(s.x.extents());
  auto o = s.options();
  o.gate = gate.view;
  auto after = s.state;
  heed::selective_scan_into(out.view, x.view, dt.view, s.a, s.b, s.c, after, o);
  s.check(out.view, after, "transposed");
  auto plain_after = s.state;
  const auto plain = heed::selective_scan(s.x, s.dt, s.a, s.b, s.c, plain_after, s.options());
  EXPECT_TRUE(same_bits(transposed<T>(plain).memory, out.memory));
  // In place, and b and c of rank 3.
  auto x_copy = s.x;
  const auto b3 = heed::make_view(s.b.data(), {2, 77, 5});
  const auto c3 = heed::make_view(s.c.data(), {2, 77, 5});
  after = s.state;
  heed::selective_scan_into(x_copy, x_copy, s.dt, s.a, b3, c3, after, s.options());
  EXPECT_TRUE(same_bits(x_copy, plain));
  EXPECT_TRUE(same_bits(after, plain_after));
}

/// Whole packets are read and written where they lie: `out` may still be any of the inputs.
TYPED_TEST(Scan, SelectiveScanOfWholePacketsInPlace) {
  using T = TypeParam;
  const scan_case<T> s(2, 77, 192, 2, 6, 15);
  auto after = s.state;
  const auto plain = heed::selective_scan(s.x, s.dt, s.a, s.b, s.c, after, s.options());
  s.check(heed::as_view(plain), after, "whole packets");
  const transposed<T> x(s.x), dt(s.dt);
  auto turned_after = s.state;
  transposed<T> out(s.x.extents());
  heed::selective_scan_into(out.view, x.view, dt.view, s.a, s.b, s.c, turned_after, s.options());
  EXPECT_TRUE(same_bits(transposed<T>(plain).memory, out.memory));
  EXPECT_TRUE(same_bits(after, turned_after));
  for (int which = 0; which < 3; ++which) {
    auto copy = s;
    auto& onto = which == 0 ? copy.x : which == 1 ? copy.dt : copy.gate;
    heed::selective_scan_into(onto, copy.x, copy.dt, s.a, s.b, s.c, copy.state, copy.options());
    EXPECT_TRUE(same_bits(onto, plain)) << which;
    EXPECT_TRUE(same_bits(copy.state, after)) << which;
  }
}

TEST(ScanExtremes, SelectiveScanWithoutStatesIsItsSkip) {
  scan_case<float>(1, 20, 32, 1, 0, 1).run("no states");
}

/// A rate times log2 e would be infinite, and a step of 0 with it no number.
TEST(ScanExtremes, SelectiveScanOfTheLargestRate) {
  scan_case<float> s(1, 20, 32, 1, 4, 0);
  s.a(3, 2) = std::numeric_limits<float>::lowest();
  for (index t = 0; t < 20; t += 3) s.dt(0, t, 3) = 0;
  s.run("largest rate");
}

TEST(ScanExtremes, SelectiveScanForgetsAndSurvivesLargeSteps) {
  for (const bool softplus : {false, true}) {
    scan_case<float> s(1, 70, 3, 1, 6, softplus ? 15u : 7u);
    for (index t = 0; t < 70; t += 7) s.dt(0, t, 1) = t % 2 == 0 ? 1e4f : 90.0f;
    for (index t = 3; t < 70; t += 9) s.dt(0, t, 2) = softplus ? -200.0f : 0.0f;
    s.run("large steps");
    for (index i = 0; i < 6; i += 2) s.a(1, i) = -std::numeric_limits<float>::infinity();
    s.with_bias = false;  // a step of exactly 0 times a rate of -inf is no number
    s.run("rates of -inf");
  }
}

TEST(ScanExtremes, SelectiveScanOfPositiveExponents) {
  scan_case<double> s(1, 130, 9, 1, 7, 1);
  for (index t = 0; t < 130; t += 11) s.dt(0, t, 4) = -0.75;
  s.a(2, 3) = 0.125;
  s.a(2, 4) = 0.0;
  s.run("growing channels");
}

TEST(ScanExtremes, SelectiveScanKeepsNanToItsOwn) {
  scan_case<float> s(1, 80, 20, 1, 4, 15);
  const auto clean = heed::selective_scan(s.x, s.dt, s.a, s.b, s.c, s.options());
  auto spoilt = s;
  spoilt.x(0, 40, 3) = std::numeric_limits<float>::quiet_NaN();
  spoilt.dt(0, 41, 17) = std::numeric_limits<float>::quiet_NaN();
  spoilt.gate(0, 5, 6) = std::numeric_limits<float>::quiet_NaN();
  const auto out = heed::selective_scan(spoilt.x, spoilt.dt, s.a, s.b, s.c, spoilt.options());
  for (index t = 0; t < 80; ++t) {
    for (index k = 0; k < 20; ++k) {
      const bool hit = (k == 3 && t >= 40) || (k == 17 && t >= 41) || (k == 6 && t == 5);
      EXPECT_EQ(std::isnan(out(0, t, k)), hit) << t << " " << k;
      if (!hit) {
        EXPECT_NEAR(out(0, t, k), clean(0, t, k), 1e-5 * (1 + std::abs(double{clean(0, t, k)})));
      }
    }
  }
}

TEST(LongScan, SelectiveScanOfAMillionTokens) {
  const scan_case<float> s(1, 1'000'000, 2, 1, 3, 15);
  s.run("long");
}

/// One gate for all tokens and positive terms: what a float sum takes of them rounds the same way
/// over and over, by 2e-5 to 5e-4 here. 2e-6 of the terms' sum is 16 units of the last place.
TEST(LongScan, WhatHardlyForgetsLosesNoDigits) {
  constexpr index n = 262'144, channels = 3, states = 2;
  const auto uniform = [](auto t) {
    std::mt19937 engine(5);
    for (index i = 0; i < t.size(); ++i) {
      t.data()[i] = 0.5f + static_cast<float>(engine() >> 8) / 33554432.0f;
    }
    return t;
  };
  const auto x = uniform(heed::tensor<float, 3>({1, n, channels}));
  const auto b = uniform(heed::tensor<float, 3>({1, n, states}));
  heed::tensor<float, 3> g(x.extents()), dt(x.extents()), k(x.extents());
  heed::tensor<float, 2> a({channels, states});
  heed::tensor<float, 1> decay({channels}), bonus({channels});
  std::fill_n(dt.data(), dt.size(), 0.1f);
  std::fill_n(k.data(), k.size(), 3.0f);
  for (const float gate : {0.0f, -1e-6f, -1e-4f, -0.01f}) {
    std::fill_n(g.data(), g.size(), gate);
    std::fill_n(a.data(), a.size(), 10 * gate);
    std::fill_n(decay.data(), channels, gate == 0 ? -50.0f : std::log(-gate));
    const double w = -std::exp(static_cast<double>(decay(0)));
    for (const auto form : {heed::linear_form::recurrent, heed::linear_form::scan}) {
      heed::selective_scan_options<float> o;
      o.form = form;
      const heed::scan_options same{.form = form};
      const auto sums = heed::hgrn(x, g, same);
      const auto read = heed::selective_scan(x, dt, a, b, b, o);
      const auto means = heed::rwkv4(k, x, decay, bonus, same);
      for (index c = 0; c < channels; ++c) {
        double h = 0, h2[states] = {}, top = 0, bottom = 0;
        for (index t = 0; t < n; ++t) {
          const auto value = static_cast<double>(x(0, t, c));
          h = std::exp(static_cast<double>(gate)) * h + value;
          double y = 0;
          for (index i = 0; i < states; ++i) {
            const auto step = static_cast<double>(dt(0, t, c));
            const auto write = static_cast<double>(b(0, t, i));
            h2[i] = std::exp(step * static_cast<double>(a(c, i))) * h2[i] + step * value * write;
            y += write * h2[i];
          }
          const double mean = (top + value) / (bottom + 1);
          top = std::exp(w) * top + value;
          bottom = std::exp(w) * bottom + 1;
          if (t % 4099 != 0 && t < n - 3) continue;
          ASSERT_NEAR(sums(0, t, c), h, 2e-6 * h) << gate << " token " << t;
          ASSERT_NEAR(read(0, t, c), y, 2e-6 * y) << gate << " token " << t;
          ASSERT_NEAR(means(0, t, c), mean, 2e-6 * mean) << gate << " token " << t;
        }
      }
    }
  }
}

// ---- HGRN
// ----------------------------------------------------------------------------------------

template <class T>
void check_hgrn(const heed::tensor<T, 3>& x, const heed::tensor<T, 3>& g,
                const heed::tensor<heed::accumulate_t<T>, 2>& state,
                const heed::view<const T, 3>& out,
                const heed::tensor<heed::accumulate_t<T>, 2>& after, const std::string& what) {
  const double eps = epsilon_of<heed::accumulate_t<T>>();
  for (index b = 0; b < x.extents()[0]; ++b) {
    for (index c = 0; c < x.extents()[2]; ++c) {
      bounded h{static_cast<double>(state(b, c)), 0};
      for (index t = 0; t < x.extents()[1]; ++t) {
        h = advance(exp_of({static_cast<double>(g(b, t, c)), 0}, eps), h,
                    {static_cast<double>(x(b, t, c)), 0}, eps);
        expect_within(out(b, t, c), h, what + " token " + std::to_string(t));
        if (testing::Test::HasFatalFailure()) return;
      }
      expect_within(after(b, c), h, what + " state");
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

TYPED_TEST(Scan, HgrnIsItsDefinition) {
  using T = TypeParam;
  using A = heed::accumulate_t<T>;
  std::mt19937 engine(11);
  for (unsigned seed = 0; seed < 24; ++seed) {
    const index tokens = seed < 3 ? index{seed} : static_cast<index>(engine() % 200);
    const std::array<index, 3> e{1 + static_cast<index>(engine() % 2), tokens,
                                 1 + static_cast<index>(engine() % 140)};
    const auto x = random_tensor<3, T>(e, seed);
    auto g = decays<T, 3>(e, seed + 100);
    for (index i = 0; i < g.size(); i += 17) g.data()[i] = static_cast<T>(-infinity);
    for (index i = 5; i < g.size(); i += 19) g.data()[i] = static_cast<T>(0);
    // A decay that is denormal, one that is nothing, and one that is a denormal below 1.
    for (index i = 9; i < g.size(); i += 29) g.data()[i] = static_cast<T>(-88.5);
    for (index i = 11; i < g.size(); i += 31) g.data()[i] = static_cast<T>(-1e4);
    for (index i = 13; i < g.size(); i += 37) g.data()[i] = static_cast<T>(-1e-40);
    if (seed % 4 == 3) {
      for (index i = 7; i < g.size(); i += 23) g.data()[i] = static_cast<T>(0.015625);
    }
    const auto state = random_tensor<2, A>({e[0], e[2]}, seed + 200);
    auto after = state;
    const auto out = heed::hgrn(x, g, after);
    check_hgrn<T>(x, g, state, heed::as_view(out), after, "case " + std::to_string(seed));
    if (this->HasFatalFailure()) return;
    const transposed<T> xt(x), gt(g);
    transposed<T> ot(e);
    heed::hgrn_into(ot.view, xt.view, gt.view, heed::as_view(after = state));
    EXPECT_TRUE(same_bits(transposed<T>(out).memory, ot.memory));
  }
}

TEST(LongScan, HgrnOfAMillionTokens) {
  const auto x = random_tensor<3, float>({1, 1'000'000, 3}, 1);
  auto g = decays<float, 3>({1, 1'000'000, 3}, 2);
  for (index t = 0; t < 1'000'000; ++t) {
    g(0, t, 1) *= 1e-4f;
    g(0, t, 2) = 0;
  }
  const heed::tensor<float, 2> state({1, 3});
  auto after = state;
  const auto out = heed::hgrn(x, g, after);
  check_hgrn<float>(x, g, state, heed::as_view(out), after, "long");
}

// ---- RWKV-4
// --------------------------------------------------------------------------------------

/// From the definition's sums, scaled by a maximum of their own, in long double.
template <class T>
void check_rwkv4(const heed::tensor<T, 3>& k, const heed::tensor<T, 3>& v,
                 const heed::tensor<T, 1>& decay, const heed::tensor<T, 1>& bonus,
                 const heed::view<const T, 3>& out, const std::string& what) {
  using real = long double;
  const double eps = epsilon_of<heed::accumulate_t<T>>();
  for (index b = 0; b < k.extents()[0]; ++b) {
    for (index c = 0; c < k.extents()[2]; ++c) {
      const real w = -std::exp(static_cast<real>(static_cast<double>(decay(c))));
      const real u = static_cast<double>(bonus(c));
      // Sums of weights, of weights times values and their sizes, and the errors of the first two:
      // all in units of e^p.
      real a = 0, size = 0, den = 0, a_error = 0, den_error = 0;
      real p = -std::numeric_limits<real>::infinity();
      const auto weight = [](real x, real m) {
        return std::isfinite(static_cast<double>(x)) ? std::exp(x - m) : real(0);
      };
      for (index t = 0; t < k.extents()[1]; ++t) {
        const real key = static_cast<double>(k(b, t, c));
        const real value = static_cast<double>(v(b, t, c));
        const real m = std::max(p, u + key);
        // A weight e^(x - m): x - m is off by the roundings of x (u + key, p + w) and of the
        // difference, the exponential by 2 + |x - m|.
        const auto relative = [&](real x, real top) {
          if (!std::isfinite(static_cast<double>(x))) return real(0);
          return eps * (2 + 2 * std::abs(x - top) + std::abs(x) + std::abs(top) + std::abs(w));
        };
        const real old = weight(p, m), own = weight(u + key, m);
        const real n = old * a + own * value, d = old * den + own;
        if (d == 0) {
          expect_within(out(b, t, c), {0, 0}, what);
        } else {
          const real n_error = old * a_error + (relative(p, m) + 2 * eps) * old * size +
                               (relative(u + key, m) + 2 * eps) * own * std::abs(value);
          const real d_error = old * den_error + (relative(p, m) + 2 * eps) * old * den +
                               (relative(u + key, m) + 2 * eps) * own;
          expect_within(out(b, t, c),
                        {static_cast<double>(n / d),
                         static_cast<double>((n_error + std::abs(n / d) * d_error) / d +
                                             eps * std::abs(n / d))},
                        what + " token " + std::to_string(t) + " channel " + std::to_string(c));
        }
        if (testing::Test::HasFatalFailure()) return;
        const real next = std::max(p + w, key);
        const real older = weight(p + w, next), newer = weight(key, next);
        const real r_old = relative(p + w, next) + 2 * eps, r_new = relative(key, next) + 2 * eps;
        a_error = older * a_error + r_old * older * size + r_new * newer * std::abs(value);
        den_error = older * den_error + r_old * older * den + r_new * newer;
        a = older * a + newer * value;
        size = older * size + newer * std::abs(value);
        den = older * den + newer;
        p = next;
        if (!std::isfinite(static_cast<double>(p))) a = size = den = a_error = den_error = 0;
      }
    }
  }
}

TYPED_TEST(Scan, Rwkv4IsItsDefinition) {
  using T = TypeParam;
  std::mt19937 engine(13);
  for (unsigned seed = 0; seed < 24; ++seed) {
    const index tokens = seed < 3 ? index{seed} : static_cast<index>(engine() % 200);
    const std::array<index, 3> e{1 + static_cast<index>(engine() % 2), tokens,
                                 1 + static_cast<index>(engine() % 70)};
    // Keys far beyond what exp can hold, and none at all.
    auto k = random_tensor<3, T>(e, seed, seed % 3 == 0 ? 300 : 3);
    for (index i = 0; i < k.size(); i += 13) k.data()[i] = static_cast<T>(-infinity);
    const auto v = random_tensor<3, T>(e, seed + 100);
    auto decay = random_tensor<1, T>({e[2]}, seed + 200, 2, -1);
    if (e[2] > 2) {  // forgets everything at once, all but nothing, nothing
      decay(0) = static_cast<T>(9);
      decay(1) = static_cast<T>(-80);
      decay(2) = static_cast<T>(-infinity);
    }
    const auto bonus = random_tensor<1, T>({e[2]}, seed + 300);
    const auto out = heed::rwkv4(k, v, decay, bonus);
    check_rwkv4<T>(k, v, decay, bonus, heed::as_view(out), "case " + std::to_string(seed));
    if (this->HasFatalFailure()) return;
    const transposed<T> kt(k), vt(v);
    transposed<T> ot(e);
    heed::rwkv4_into(ot.view, kt.view, vt.view, decay, bonus);
    EXPECT_TRUE(same_bits(transposed<T>(out).memory, ot.memory));
  }
}

TEST(LongScan, Rwkv4OfAMillionTokens) {
  const auto k = random_tensor<3, float>({1, 1'000'000, 3}, 1, 4);
  const auto v = random_tensor<3, float>({1, 1'000'000, 3}, 2);
  heed::tensor<float, 1> decay({3}), bonus({3});
  // A weight lasts for exp(-decay) tokens, and errs by as many roundings.
  decay(0) = -9;
  decay(1) = -4;
  decay(2) = 0.5f;
  const auto out = heed::rwkv4(k, v, decay, bonus);
  check_rwkv4<float>(k, v, decay, bonus, heed::as_view(out), "long");
}

TEST(ScanExtremes, NanAndEmptyMeansOfRwkv4) {
  auto k = random_tensor<3, float>({1, 80, 20}, 1);
  const auto v = random_tensor<3, float>({1, 80, 20}, 2);
  const heed::tensor<float, 1> decay({20}), bonus({20});
  const auto clean = heed::rwkv4(k, v, decay, bonus);
  k(0, 30, 5) = static_cast<float>(nan);
  const auto out = heed::rwkv4(k, v, decay, bonus);
  for (index t = 0; t < 80; ++t) {
    for (index c = 0; c < 20; ++c) {
      const bool hit = c == 5 && t >= 30;
      EXPECT_EQ(std::isnan(out(0, t, c)), hit) << t << " " << c;
      if (!hit) {
        EXPECT_NEAR(out(0, t, c), clean(0, t, c), 1e-6 * (1 + std::abs(double{clean(0, t, c)})));
      }
    }
  }
}

// ---- what all share
// ------------------------------------------------------------------------------

template <class V>
void expect_near(const V& got, const V& want, double eps) {
  double most = 0;
  for (index i = 0; i < want.size(); ++i) {
    if (std::isfinite(want.data()[i])) most = std::max(most, std::abs(double{want.data()[i]}));
  }
  for (index i = 0; i < want.size(); ++i) {
    if (got.data()[i] == want.data()[i]) continue;
    ASSERT_NEAR(double{got.data()[i]}, double{want.data()[i]}, eps * most * epsilon_of<float>())
        << i;
  }
}

/// On several threads the same bits as on one; in pieces with a state the same to rounding.
template <class State, class Run>
void expect_same_bits_on_threads(const std::array<index, 3>& e, const State& begin, double eps,
                                 Run&& run) {
  heed::serial_executor serial;
  heed::thread_pool pool(3);
  heed::tensor<float, 3> whole(e), pieces(e), threads(e);
  State one = begin, several = begin, many = begin;
  run(serial, heed::as_view(whole), one, index{0}, e[1]);
  run(pool, heed::as_view(threads), many, index{0}, e[1]);
  index at = 0;
  for (const index piece : {index{1}, index{0}, index{63}, index{2}, index{70}, e[1] - 136}) {
    run(serial, heed::as_view(pieces).slice(1, at, at + piece), several, at, at + piece);
    at += piece;
  }
  expect_near(pieces, whole, eps);
  expect_near(several, one, eps);
  EXPECT_TRUE(same_bits(whole, threads));
  EXPECT_TRUE(same_bits(one, many));
}

TEST(ParallelScan, ThreadsGiveTheSameBitsAndPiecesTheSameNumbers) {
  const std::array<index, 3> e{2, 201, 150};
  // Positive exponents in places, so that tiles of both kinds meet.
  scan_case<float> s(2, 201, 150, 3, 9, 15);
  s.a(77, 2) = 0.25f;
  expect_same_bits_on_threads(
      e, s.state, 30, [&](auto& exec, auto out, auto& state, index f, index l) {
        auto o = s.options();
        o.gate = o.gate.slice(1, f, l);
        heed::selective_scan_into(
            exec, out, heed::as_view(s.x).slice(1, f, l), heed::as_view(s.dt).slice(1, f, l), s.a,
            heed::as_view(s.b).slice(1, f, l), heed::as_view(s.c).slice(1, f, l), state, o);
      });
  auto g = decays<float, 3>(e, 5);
  g(1, 100, 70) = 0.5f;
  expect_same_bits_on_threads(e, heed::tensor<float, 2>({2, 150}), 30,
                              [&](auto& exec, auto out, auto& state, index f, index l) {
                                heed::hgrn_into(exec, out, heed::as_view(s.x).slice(1, f, l),
                                                heed::as_view(g).slice(1, f, l), state);
                              });
  auto k = random_tensor<3, float>(e, 6, 20);
  for (index t = 0; t < 70; ++t) k(0, t, 9) = static_cast<float>(-infinity);
  const auto decay = random_tensor<1, float>({150}, 7), bonus = random_tensor<1, float>({150}, 8);
  // Keys of some 60: their sums with gates round by 32 eps.
  expect_same_bits_on_threads(e, heed::tensor<float, 3>({2, 3, 150}), 2000,
                              [&](auto& exec, auto out, auto& state, index f, index l) {
                                heed::rwkv4_into(exec, out, heed::as_view(k).slice(1, f, l),
                                                 heed::as_view(s.x).slice(1, f, l), decay, bonus,
                                                 state);
                              });
}

// More channels than a task takes at once, next to each other in memory: each part alone gives the
// same numbers, the convolution the same bits.
TEST(ParallelScan, ManyChannelsAreTheirPartsApart) {
  constexpr index channels = 2085, tokens = 83, part = 139;
  const std::array<index, 3> e{2, tokens, channels};
  const auto x = random_tensor<3, float>(e, 1);
  const auto g = decays<float, 3>(e, 2), dt = random_tensor<3, float>(e, 3, 0.1, 0.5);
  const auto a = decays<float, 2>({channels, 5}, 4);
  const auto b = random_tensor<4, float>({2, tokens, 3, 5}, 5);
  const auto decay = random_tensor<1, float>({channels}, 6);
  const auto bonus = random_tensor<1, float>({channels}, 7);
  const auto weight = random_tensor<2, float>({channels, 4}, 8);
  const auto channels_last = [](auto v) {
    return heed::view<std::remove_reference_t<decltype(*v.data())>, 3>(
        v.data(), {v.extent(0), v.extent(2), v.extent(1)}, {v.stride(0), v.stride(2), v.stride(1)});
  };
  heed::serial_executor serial;
  for (index member = 0; member < 4; ++member) {
    const index rows = std::array<index, 4>{1, 3, 5, 3}[static_cast<std::size_t>(member)];
    heed::tensor<float, 3> whole(e), parts(e), state({2, rows, channels}), states = state;
    const auto run = [&](heed::view<float, 3> out, heed::view<float, 3> kept, index f, index l,
                         heed::view<const float, 4> group) {
      const auto in = heed::as_view(x).slice(2, f, l);
      if (member == 0) {
        const heed::view<float, 2> h(kept.data(), {2, l - f}, {kept.stride(0), kept.stride(2)});
        heed::hgrn_into(serial, out, in, heed::as_view(g).slice(2, f, l), h);
      } else if (member == 1) {
        heed::rwkv4_into(serial, out, in, heed::as_view(dt).slice(2, f, l),
                         heed::as_view(decay).slice(0, f, l), heed::as_view(bonus).slice(0, f, l),
                         kept);
      } else if (member == 2) {
        const heed::view<float, 3> h = channels_last(kept);
        heed::selective_scan_into(serial, out, in, heed::as_view(dt).slice(2, f, l),
                                  heed::as_view(a).slice(0, f, l), group, group, h);
      } else {
        heed::causal_convolution_into(serial, channels_last(out), channels_last(in),
                                      heed::as_view(weight).slice(0, f, l),
                                      {.state = channels_last(kept), .silu = true});
      }
    };
    run(heed::as_view(whole), heed::as_view(state), 0, channels, heed::as_view(b));
    for (index f = 0; f < channels; f += part) {
      const index group = f / (channels / 3);
      run(heed::as_view(parts).slice(2, f, f + part), heed::as_view(states).slice(2, f, f + part),
          f, f + part, heed::as_view(b).slice(2, group, group + 1));
    }
    if (member == 3) {
      EXPECT_TRUE(same_bits(whole, parts));
      EXPECT_TRUE(same_bits(state, states));
    } else {
      expect_near(parts, whole, 30);
      expect_near(states, state, 30);
    }
    if (HasFatalFailure()) return;
  }
}

// Segments side by side: the definition again, and no number of threads shows. Channels that hardly
// forget carry their past from segment to segment.
TEST(ParallelScan, SegmentsAreTheDefinition) {
  heed::serial_executor one;
  heed::thread_pool three(3);
  for (const index tokens : {index{40}, index{257}, index{1000}}) {
    const std::array<index, 3> e{2, tokens, 22};
    scan_case<float> s(2, tokens, 22, 2, 5, 15);
    for (index i = 0; i < 5; ++i) {
      for (index c = 0; c < 22; c += 3) s.a(c, i) *= 1e-4f;
      s.a(7, i) = 1e-4f;
    }
    auto o = s.options();
    o.form = heed::linear_form::scan;
    auto after = s.state, after_three = s.state;
    const auto out = heed::selective_scan(one, s.x, s.dt, s.a, s.b, s.c, after, o);
    s.check(heed::as_view(out), after, "selective scan");
    EXPECT_TRUE(
        same_bits(out, heed::selective_scan(three, s.x, s.dt, s.a, s.b, s.c, after_three, o)));
    EXPECT_TRUE(same_bits(after, after_three));
    auto in_place = s.x;
    after = s.state;
    heed::selective_scan_into(three, in_place, in_place, s.dt, s.a, s.b, s.c, after, o);
    EXPECT_TRUE(same_bits(in_place, out));

    const heed::scan_options segments{.form = heed::linear_form::scan};
    auto g = decays<float, 3>(e, 5);
    for (index t = 0; t < tokens; ++t) {
      for (index c = 0; c < 22; c += 2) g(0, t, c) *= 1e-4f;
      g(1, t, 3) = t % 300 == 299 ? -static_cast<float>(infinity) : -1e-3f;
    }
    const auto state = random_tensor<2, float>({2, 22}, 9);
    auto h = state, h_three = state;
    const auto sums = heed::hgrn(one, s.x, g, h, segments);
    check_hgrn<float>(s.x, g, state, heed::as_view(sums), h, "hgrn");
    EXPECT_TRUE(same_bits(sums, heed::hgrn(three, s.x, g, h_three, segments)));
    EXPECT_TRUE(same_bits(h, h_three));

    auto k = random_tensor<3, float>(e, 6, 5);
    for (index t = 0; t < std::min<index>(tokens, 600); ++t) {
      k(0, t, 9) = -static_cast<float>(infinity);  // whole segments without any weight
    }
    const auto decay = random_tensor<1, float>({22}, 7, 2, -6);
    const auto bonus = random_tensor<1, float>({22}, 8);
    const auto means = heed::rwkv4(one, k, s.x, decay, bonus, segments);
    check_rwkv4<float>(k, s.x, decay, bonus, heed::as_view(means), "rwkv4");
    EXPECT_TRUE(same_bits(means, heed::rwkv4(three, k, s.x, decay, bonus, segments)));
    if (HasFailure()) return;
  }
}

// Sequences one after another are as many calls; one without tokens leaves its state alone.
TEST(ParallelScan, RaggedBatchesAreSeparateCalls) {
  const index bounds[] = {0, 70, 70, 71, 400};
  scan_case<float> s(1, 400, 13, 1, 4, 15);
  const auto states = random_tensor<3, float>({4, 13, 4}, 3);
  const auto h_states = random_tensor<2, float>({4, 13}, 4);
  const auto m_states = random_tensor<3, float>({4, 3, 13}, 5, 0.1, 2);
  const auto g = decays<float, 3>({1, 400, 13}, 5);
  const auto decay = random_tensor<1, float>({13}, 7), bonus = random_tensor<1, float>({13}, 8);
  heed::thread_pool pool(3);
  auto o = s.options();
  o.sequence_bounds = bounds;
  const heed::scan_options ragged{.sequence_bounds = bounds};
  auto after = states, m_after = m_states;
  auto h_after = h_states;
  const auto out = heed::selective_scan(pool, s.x, s.dt, s.a, s.b, s.c, after, o);
  const auto sums = heed::hgrn(pool, s.x, g, h_after, ragged);
  const auto means = heed::rwkv4(pool, g, s.x, decay, bonus, m_after, ragged);
  for (index i = 0; i < 4; ++i) {
    const index first = bounds[i], last = bounds[i + 1];
    const auto part = [&](const auto& x) { return heed::as_view(x).slice(1, first, last); };
    const auto one = [&](auto& x) { return heed::as_view(x).slice(0, i, i + 1); };
    auto alone = states, m_alone = m_states;
    auto h_alone = h_states;
    auto single = s.options();
    single.gate = part(s.gate);
    heed::tensor<float, 3> y({1, last - first, 13});
    const auto expect_part = [&](const heed::tensor<float, 3>& whole) {
      for (index t = first; t < last; ++t) {
        for (index c = 0; c < 13; ++c) ASSERT_EQ(whole(0, t, c), y(0, t - first, c)) << t;
      }
    };
    heed::selective_scan_into(y, part(s.x), part(s.dt), s.a, part(s.b), part(s.c), one(alone),
                              single);
    expect_part(out);
    heed::hgrn_into(y, part(s.x), part(g), one(h_alone));
    expect_part(sums);
    heed::rwkv4_into(y, part(g), part(s.x), decay, bonus, one(m_alone));
    expect_part(means);
    for (index c = 0; c < 13; ++c) {
      for (index n = 0; n < 4; ++n) ASSERT_EQ(after(i, c, n), alone(i, c, n));
      for (index r = 0; r < 3; ++r) ASSERT_EQ(m_after(i, r, c), m_alone(i, r, c));
      ASSERT_EQ(h_after(i, c), h_alone(i, c));
    }
  }
}

TEST(ScanDoor, NoStateIsAStateOfZeros) {
  const scan_case<float> s(1, 20, 7, 1, 3, 0);
  heed::tensor<float, 3> zeros({1, 7, 3});
  EXPECT_TRUE(same_bits(heed::selective_scan(s.x, s.dt, s.a, s.b, s.c),
                        heed::selective_scan(s.x, s.dt, s.a, s.b, s.c, zeros)));
  heed::workspace scratch;
  heed::tensor<float, 2> none({1, 7});
  const auto g = decays<float, 3>({1, 20, 7}, 3);
  EXPECT_TRUE(same_bits(heed::hgrn(s.x, g),
                        heed::hgrn(s.x, g, none, heed::scan_options{.scratch = &scratch})));
}

template <class Call>
std::string message_of(Call&& call) {
  try {
    call();
  } catch (const heed::shape_error& e) {
    return e.what();
  }
  return "no error";
}

TEST(ScanDoor, WrongShapesAreNamed) {
  scan_case<float> s(2, 5, 6, 1, 4, 0);
  const heed::tensor<float, 3> other({2, 5, 7});
  EXPECT_EQ(message_of([&] { (void)heed::selective_scan(s.x, other, s.a, s.b, s.c); }),
            "dt has extents [2, 5, 7], the call needs [2, 5, 6]");
  const heed::tensor<float, 2> a({7, 4});
  EXPECT_EQ(message_of([&] { (void)heed::selective_scan(s.x, s.dt, a, s.b, s.c); }),
            "a has channels 7, x has 6");
  const heed::tensor<float, 4> four({2, 5, 4, 4});
  EXPECT_EQ(message_of([&] { (void)heed::selective_scan(s.x, s.dt, s.a, four, four); }),
            "x has 6 channels, not a multiple of b's 4 groups");
  EXPECT_EQ(message_of([&] { (void)heed::selective_scan(s.x, s.dt, s.a, s.b, four); }),
            "c has extents [2, 5, 4, 4], the call needs [2, 5, 1, 4]");
  heed::tensor<float, 3> state({2, 6, 5});
  EXPECT_EQ(message_of([&] { (void)heed::selective_scan(s.x, s.dt, s.a, s.b, s.c, state); }),
            "state has extents [2, 6, 5], the call needs [2, 6, 4]");
  auto o = s.options();
  o.gate = heed::as_view(other);
  EXPECT_EQ(message_of([&] { (void)heed::selective_scan(s.x, s.dt, s.a, s.b, s.c, o); }),
            "gate has extents [2, 5, 7], the call needs [2, 5, 6]");
  EXPECT_EQ(message_of([&] { (void)heed::hgrn(s.x, other); }),
            "g has extents [2, 5, 7], the call needs [2, 5, 6]");
  const heed::tensor<float, 1> u({6}), w({5});
  EXPECT_EQ(message_of([&] { (void)heed::rwkv4(s.x, s.x, w, u); }),
            "decay has extents [5], the call needs [6]");
  const index bounds[] = {0, 5};
  EXPECT_EQ(message_of(
                [&] { (void)heed::hgrn(s.x, s.x, heed::scan_options{.sequence_bounds = bounds}); }),
            "x has batch 2, a ragged call has 1");
  EXPECT_THROW((void)heed::hgrn(s.x, s.x, heed::scan_options{.form = heed::linear_form::parallel}),
               heed::option_error);
  heed::tensor<float, 3> out({2, 5, 7});
  EXPECT_EQ(message_of([&] { heed::rwkv4_into(out, s.x, s.x, u, u); }),
            "out has extents [2, 5, 7], the call needs [2, 5, 6]");
}

}  // namespace
