// SPDX-License-Identifier: MIT
// Gradients of the scans, the convolution and kernelised attention against finite differences of
// the forward forms, in double.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <functional>
#include <heed/linear.hpp>
#include <limits>
#include <random>
#include <vector>

#include "support/differences.hpp"

namespace {

using heed::index;
using support::dot;
using support::expect_differences;

template <int R>
heed::tensor<double, R> random_tensor(const std::array<index, std::size_t{R}>& extents,
                                      unsigned seed, double scale = 1) {
  heed::tensor<double, R> t(extents);
  std::mt19937 random(seed);
  for (index i = 0; i < t.size(); ++i) {
    t.data()[i] = scale * (static_cast<double>(random()) / 0x1p31 - 1);
  }
  return t;
}

template <int R>
heed::view<const double, R> read(const heed::tensor<double, R>& t) {
  return heed::as_view(t);
}

TEST(GradientsOfRecurrences, HgrnAgreesWithDifferences) {
  auto x = random_tensor<3>({2, 9, 3}, 1);
  auto g = random_tensor<3>({2, 9, 3}, 2);
  auto initial = random_tensor<2>({2, 3}, 3);
  const auto d_out = random_tensor<3>({2, 9, 3}, 4);
  const auto d_final = random_tensor<2>({2, 3}, 5);
  const auto loss = [&] {
    auto state = initial;
    const auto out = heed::hgrn(x, g, state);
    return dot(out, d_out) + dot(state, d_final);
  };
  auto dx = x, dg = g;
  auto d_initial = initial;
  for (const index chunk : {1, 4, 9, 64}) {
    heed::naive_hgrn_backward<double>(
        {read(x), read(g), read(initial), read(d_out), read(d_final), chunk},
        {heed::as_view(dx), heed::as_view(dg), heed::as_view(d_initial)});
    expect_differences("x", x, dx, loss);
    expect_differences("g", g, dg, loss);
    expect_differences("initial_state", initial, d_initial, loss);
  }
}

TEST(GradientsOfRecurrences, SelectiveScanAgreesWithDifferences) {
  const index channels = 4, n = 3;
  auto x = random_tensor<3>({2, 7, channels}, 1);
  auto dt = random_tensor<3>({2, 7, channels}, 2);
  auto a = random_tensor<2>({channels, n}, 3);
  auto b = random_tensor<4>({2, 7, 2, n}, 4);
  auto c = random_tensor<4>({2, 7, 2, n}, 5);
  auto skip = random_tensor<1>({channels}, 6);
  auto gate = random_tensor<3>({2, 7, channels}, 7);
  auto bias = random_tensor<1>({channels}, 8);
  auto initial = random_tensor<3>({2, channels, n}, 9);
  const auto d_out = random_tensor<3>({2, 7, channels}, 10);
  const auto d_final = random_tensor<3>({2, channels, n}, 11);
  for (const bool softplus : {false, true}) {
    const auto loss = [&] {
      auto state = initial;
      const auto out = heed::selective_scan(
          x, dt, a, b, c, state,
          heed::selective_scan_options<double>{
              .skip = read(skip), .dt_bias = read(bias), .gate = read(gate), .softplus = softplus});
      return dot(out, d_out) + dot(state, d_final);
    };
    auto dx = x, d_dt = dt, d_gate = gate;
    auto da = a;
    auto db = b, dc = c;
    auto d_skip = skip, d_bias = bias;
    auto d_initial = initial;
    heed::selective_scan_backward_inputs<double> in{read(x),    read(dt),   read(a),
                                                    read(b),    read(c),    read(skip),
                                                    read(gate), read(bias), read(initial)};
    in.softplus = softplus;
    in.d_out = read(d_out);
    in.d_final_state = read(d_final);
    in.chunk = 3;
    heed::naive_selective_scan_backward<double>(
        in, {heed::as_view(dx), heed::as_view(d_dt), heed::as_view(da), heed::as_view(db),
             heed::as_view(dc), heed::as_view(d_skip), heed::as_view(d_gate), heed::as_view(d_bias),
             heed::as_view(d_initial)});
    expect_differences("x", x, dx, loss);
    expect_differences("dt", dt, d_dt, loss);
    expect_differences("a", a, da, loss);
    expect_differences("b", b, db, loss);
    expect_differences("c", c, dc, loss);
    expect_differences("skip", skip, d_skip, loss);
    expect_differences("gate", gate, d_gate, loss);
    expect_differences("dt_bias", bias, d_bias, loss);
    expect_differences("initial_state", initial, d_initial, loss);
  }
}

// Of a loss that reads the last state by two more tokens, which the gradient of that state is of.
TEST(GradientsOfRecurrences, Rwkv4AgreesWithDifferences) {
  auto k = random_tensor<3>({2, 8, 3}, 1, 3);
  auto v = random_tensor<3>({2, 8, 3}, 2);
  auto decay = random_tensor<1>({3}, 3);
  auto bonus = random_tensor<1>({3}, 4);
  auto initial = random_tensor<3>({2, 3, 3}, 6);
  for (index b = 0; b < 2; ++b) {
    for (index c = 0; c < 3; ++c) initial(b, 1, c) += 2;  // sums of weights
  }
  const auto d_out = random_tensor<3>({2, 8, 3}, 5);
  const auto loss = [&] {
    auto state = initial;
    return dot(heed::rwkv4(k, v, decay, bonus, state), d_out);
  };
  auto dk = k, dv = v, d_initial = initial, d_between = initial;
  auto d_decay = decay, d_bonus = bonus, late_decay = decay, late_bonus = bonus;
  auto between = initial;
  (void)heed::rwkv4(heed::as_view(k).slice(1, 0, 6), heed::as_view(v).slice(1, 0, 6), decay, bonus,
                    between);
  const auto piece = [&](index begin, index end, const auto& from, const auto& d_final,
                         auto& to_decay, auto& to_bonus, auto& to_state) {
    const auto cut = [&](const auto& x) { return read(x).slice(1, begin, end); };
    heed::naive_rwkv4_backward<double>(
        {cut(k), cut(v), read(decay), read(bonus), cut(d_out), read(from), d_final},
        {heed::as_view(dk).slice(1, begin, end), heed::as_view(dv).slice(1, begin, end),
         heed::as_view(to_decay), heed::as_view(to_bonus), heed::as_view(to_state)});
  };
  piece(6, 8, between, heed::view<const double, 3>{}, late_decay, late_bonus, d_between);
  piece(0, 6, initial, read(d_between), d_decay, d_bonus, d_initial);
  for (index c = 0; c < 3; ++c) {
    d_decay(c) += late_decay(c);
    d_bonus(c) += late_bonus(c);
  }
  expect_differences("k", k, dk, loss);
  expect_differences("v", v, dv, loss);
  expect_differences("decay", decay, d_decay, loss);
  expect_differences("bonus", bonus, d_bonus, loss);
  expect_differences("initial_state", initial, d_initial, loss);
}

TEST(GradientsOfRecurrences, ConvolutionAgreesWithDifferences) {
  for (const index taps : {1, 4}) {
    for (const bool silu : {false, true}) {
      auto x = random_tensor<3>({2, 3, 6}, 1);
      auto weight = random_tensor<2>({3, taps}, 2);
      auto bias = random_tensor<1>({3}, 3);
      auto past = random_tensor<3>({2, 3, taps - 1}, 4);
      const auto d_out = random_tensor<3>({2, 3, 6}, 5);
      const auto d_final = random_tensor<3>({2, 3, taps - 1}, 6);
      const auto loss = [&] {
        auto state = past;
        const auto out = heed::causal_convolution(
            x, weight, {.bias = read(bias), .state = heed::as_view(state), .silu = silu});
        return dot(out, d_out) + dot(state, d_final);
      };
      auto dx = x, d_past = past;
      auto d_weight = weight;
      auto d_bias = bias;
      heed::naive_causal_convolution_backward<double>(
          {read(x), read(weight), read(bias), read(past), silu, read(d_out), read(d_final)},
          {heed::as_view(dx), heed::as_view(d_weight), heed::as_view(d_bias),
           heed::as_view(d_past)});
      expect_differences("x", x, dx, loss);
      expect_differences("weight", weight, d_weight, loss);
      expect_differences("bias", bias, d_bias, loss);
      expect_differences("past", past, d_past, loss);
    }
  }
}

TEST(GradientsOfRecurrences, KernelisedAttentionAgreesWithDifferences) {
  auto q = random_tensor<4>({1, 4, 6, 3}, 1, 2);
  auto k = random_tensor<4>({1, 2, 6, 3}, 2, 2);
  auto v = random_tensor<4>({1, 2, 6, 2}, 3);
  const auto d_out = random_tensor<4>({1, 4, 6, 2}, 4);
  for (const bool causal : {false, true}) {
    for (const bool normalise : {false, true}) {
      heed::linear_options options;
      options.causal = causal;
      options.normalise = normalise;
      const auto loss = [&] { return dot(heed::naive_linear_attention(q, k, v, options), d_out); };
      auto dq = q, dk = k, dv = v;
      heed::naive_linear_attention_backward<double>(
          {read(q), read(k), read(v), read(d_out)},
          {heed::as_view(dq), heed::as_view(dk), heed::as_view(dv)}, options);
      expect_differences("q", q, dq, loss);
      expect_differences("k", k, dk, loss);
      expect_differences("v", v, dv, loss);
    }
  }
}

TEST(GradientsOfRecurrences, Rwkv6And7AgreeWithDifferences) {
  const std::array<index, 4> keys{2, 2, 7, 3};
  auto q = random_tensor<4>(keys, 1), k = random_tensor<4>(keys, 2), g = random_tensor<4>(keys, 3);
  auto a = random_tensor<4>(keys, 4), b = random_tensor<4>(keys, 5);
  auto v = random_tensor<4>({2, 2, 7, 2}, 6);
  auto u = random_tensor<2>({2, 3}, 7);
  auto initial = random_tensor<4>({2, 2, 3, 2}, 8);
  const auto d_out = random_tensor<4>({2, 2, 7, 2}, 9);
  const auto d_final = random_tensor<4>({2, 2, 3, 2}, 10);
  auto dq = q, dk = k, dg = g, da = a, db = b, dv = v, d_initial = initial;
  auto du = u;
  heed::dplr_backward_inputs<double> in{read(q), read(k), read(v), read(g)};
  in.initial_state = read(initial);
  in.d_out = read(d_out);
  in.d_final_state = read(d_final);
  in.chunk = 3;
  heed::dplr_gradients<double> to{heed::as_view(dq), heed::as_view(dk), heed::as_view(dv),
                                  heed::as_view(dg)};
  to.initial_state = heed::as_view(d_initial);
  const auto agree = [&](const std::function<double()>& loss) {
    expect_differences("q", q, dq, loss);
    expect_differences("k", k, dk, loss);
    expect_differences("v", v, dv, loss);
    expect_differences("g", g, dg, loss);
    expect_differences("initial_state", initial, d_initial, loss);
  };

  auto six = in;
  auto to_six = to;
  six.bonus = read(u);
  to_six.bonus = heed::as_view(du);
  heed::naive_dplr_backward<double>(six, to_six);
  const auto loss_six = [&] {
    auto state = initial;
    const auto out = heed::rwkv6(q, k, v, g, u, state);
    return dot(out, d_out) + dot(state, d_final);
  };
  agree(loss_six);
  expect_differences("u", u, du, loss_six);

  in.a = read(a);
  in.b = read(b);
  to.a = heed::as_view(da);
  to.b = heed::as_view(db);
  heed::naive_dplr_backward<double>(in, to);
  const auto loss_seven = [&] {
    auto state = initial;
    const auto out = heed::rwkv7(q, k, v, g, a, b, state);
    return dot(out, d_out) + dot(state, d_final);
  };
  agree(loss_seven);
  expect_differences("a", a, da, loss_seven);
  expect_differences("b", b, db, loss_seven);
}

// The matrix-state form that the header of the kernelised gradient promises: [v, 1] and features.
TEST(GradientsOfRecurrences, NormalisedAttentionIsAMatrixStateOfValuesAndOne) {
  const index n = 11, d = 3, dv = 2;
  const auto q = random_tensor<4>({1, 2, n, d}, 1, 2);
  const auto k = random_tensor<4>({1, 1, n, d}, 2, 2);
  const auto v = random_tensor<4>({1, 1, n, dv}, 3);
  const auto d_out = random_tensor<4>({1, 2, n, dv}, 4);
  heed::linear_options options;
  options.causal = true;
  options.normalise = true;
  heed::tensor<double, 4> dq(q.extents()), dk(k.extents()), want_v(v.extents());
  const auto identity = [](const auto& x) { return x; };
  const heed::generic_elu_plus_one phi;
  auto fq = q, fk = k;  // features, whose own gradients are compared
  for (index i = 0; i < fq.size(); ++i) fq.data()[i] = phi(fq.data()[i]);
  for (index i = 0; i < fk.size(); ++i) fk.data()[i] = phi(fk.data()[i]);
  heed::naive_linear_attention_backward<double>(
      {read(fq), read(fk), read(v), read(d_out)},
      {heed::as_view(dq), heed::as_view(dk), heed::as_view(want_v)}, options, identity);

  heed::tensor<double, 4> with_one({1, 1, n, dv + 1}), cotangent({1, 2, n, dv + 1});
  for (index j = 0; j < n; ++j) {
    for (index c = 0; c < dv; ++c) with_one(0, 0, j, c) = v(0, 0, j, c);
    with_one(0, 0, j, dv) = 1;
  }
  for (index h = 0; h < 2; ++h) {
    for (index i = 0; i < n; ++i) {
      double sum = options.eps;
      std::vector<double> out(static_cast<std::size_t>(dv));
      for (index j = 0; j <= i; ++j) {
        double w = 0;
        for (index f = 0; f < d; ++f) w += fq(0, h, i, f) * fk(0, 0, j, f);
        sum += w;
        for (index c = 0; c < dv; ++c) out[static_cast<std::size_t>(c)] += w * v(0, 0, j, c);
      }
      for (index c = 0; c < dv; ++c) {
        const double e = d_out(0, h, i, c) / sum;
        cotangent(0, h, i, c) = e;
        cotangent(0, h, i, dv) -= e * out[static_cast<std::size_t>(c)] / sum;
      }
    }
  }
  heed::tensor<double, 4> gq(q.extents()), gk(k.extents()), gv(with_one.extents());
  heed::matrix_state_inputs<double> in{read(fq), read(fk), read(with_one)};
  in.scale = 1;
  in.chunk = 4;
  heed::naive_matrix_state_backward<double>(
      in, {read(cotangent)}, {heed::as_view(gq), heed::as_view(gk), heed::as_view(gv)});
  for (index i = 0; i < dq.size(); ++i) EXPECT_NEAR(gq.data()[i], dq.data()[i], 1e-12);
  for (index i = 0; i < dk.size(); ++i) EXPECT_NEAR(gk.data()[i], dk.data()[i], 1e-12);
  for (index j = 0; j < n; ++j) {
    for (index c = 0; c < dv; ++c) EXPECT_NEAR(gv(0, 0, j, c), want_v(0, 0, j, c), 1e-12);
  }
}

// A gate of -inf forgets: what came before has gradient 0, and what comes after is as of a sequence
// that begins there.
TEST(GradientsOfRecurrences, GatesOfAnySizeAreFinite) {
  const double inf = std::numeric_limits<double>::infinity();
  const std::vector<double> gates{0, -60, -inf, 0, -60, -0.5};
  const auto n = static_cast<index>(gates.size());
  const auto x = random_tensor<3>({1, n, 1}, 1);
  const auto d_out = random_tensor<3>({1, n, 1}, 2);
  heed::tensor<double, 3> g({1, n, 1}), dx({1, n, 1}), dg({1, n, 1});
  heed::tensor<double, 2> d_initial({1, 1});
  for (index t = 0; t < n; ++t) g(0, t, 0) = gates[static_cast<std::size_t>(t)];
  const auto initial = random_tensor<2>({1, 1}, 3);
  heed::naive_hgrn_backward<double>(
      {read(x), read(g), read(initial), read(d_out)},
      {heed::as_view(dx), heed::as_view(dg), heed::as_view(d_initial)});
  for (index t = 0; t < n; ++t) {
    EXPECT_TRUE(std::isfinite(dx(0, t, 0)) && std::isfinite(dg(0, t, 0))) << t;
  }
  EXPECT_EQ(dg(0, 2, 0), 0);
  EXPECT_EQ(dx(0, 1, 0), d_out(0, 1, 0));
  EXPECT_NEAR(d_initial(0, 0), d_out(0, 0, 0) + std::exp(-60.0) * d_out(0, 1, 0), 1e-15);

  // The same gates of S6, as steps of 1, with rates that differ.
  heed::tensor<double, 3> ones({1, n, 1}), dx2({1, n, 1}), d_dt({1, n, 1});
  heed::tensor<double, 2> rates({1, 3}), d_rates({1, 3});
  heed::tensor<double, 4> b({1, n, 1, 3}), db({1, n, 1, 3}), dc({1, n, 1, 3});
  for (index t = 0; t < n; ++t) ones(0, t, 0) = 1;
  rates(0, 0) = 0;
  rates(0, 1) = -60;
  rates(0, 2) = -inf;
  for (index i = 0; i < b.size(); ++i) b.data()[i] = 1;
  heed::selective_scan_backward_inputs<double> in{read(x), read(ones), read(rates), read(b),
                                                  read(b)};
  in.d_out = read(d_out);
  heed::naive_selective_scan_backward<double>(
      in, {heed::as_view(dx2), heed::as_view(d_dt), heed::as_view(d_rates), heed::as_view(db),
           heed::as_view(dc)});
  for (const auto* t : {&dx2, &d_dt}) {
    for (index i = 0; i < t->size(); ++i) EXPECT_TRUE(std::isfinite(t->data()[i])) << i;
  }
  for (index i = 0; i < d_rates.size(); ++i) EXPECT_TRUE(std::isfinite(d_rates.data()[i])) << i;
  EXPECT_EQ(d_rates(0, 2), 0);
}

TEST(GradientsOfRecurrences, Rwkv4KeysOfAnySizeAreFinite) {
  const double inf = std::numeric_limits<double>::infinity();
  heed::tensor<double, 3> k({1, 6, 1}), dk({1, 6, 1}), dv({1, 6, 1});
  const std::vector<double> keys{-inf, 800, -inf, -800, 0, -inf};
  for (index t = 0; t < 6; ++t) k(0, t, 0) = keys[static_cast<std::size_t>(t)];
  const auto v = random_tensor<3>({1, 6, 1}, 1);
  const auto d_out = random_tensor<3>({1, 6, 1}, 2);
  heed::tensor<double, 1> decay({1}), bonus({1}), d_decay({1}), d_bonus({1});
  decay(0) = 5;
  heed::naive_rwkv4_backward<double>(
      {read(k), read(v), read(decay), read(bonus), read(d_out)},
      {heed::as_view(dk), heed::as_view(dv), heed::as_view(d_decay), heed::as_view(d_bonus)});
  for (index t = 0; t < 6; ++t) {
    EXPECT_TRUE(std::isfinite(dk(0, t, 0)) && std::isfinite(dv(0, t, 0))) << t;
    if (keys[static_cast<std::size_t>(t)] == -inf) {
      EXPECT_EQ(dk(0, t, 0), 0);
      EXPECT_EQ(dv(0, t, 0), 0);
    }
  }
  EXPECT_TRUE(std::isfinite(d_decay(0)) && std::isfinite(d_bonus(0)));
}

TEST(GradientsOfRecurrences, ExtentsThatDoNotFitAreRefused) {
  const auto x = random_tensor<3>({1, 4, 2}, 1);
  const auto other = random_tensor<3>({1, 5, 2}, 1);
  auto d = x;
  EXPECT_THROW(heed::naive_hgrn_backward<double>({read(x), read(other)}, {heed::as_view(d)}),
               heed::shape_error);
  EXPECT_THROW(
      heed::naive_hgrn_backward<double>({read(x), read(x), {}, {}, {}, 0}, {heed::as_view(d)}),
      heed::option_error);
  auto wide = other;
  EXPECT_THROW(heed::naive_hgrn_backward<double>({read(x), read(x)}, {heed::as_view(wide)}),
               heed::shape_error);
  const auto weight = random_tensor<2>({3, 4}, 1);
  EXPECT_THROW(
      heed::naive_causal_convolution_backward<double>({read(x), read(weight)}, {heed::as_view(d)}),
      heed::shape_error);
  const heed::tensor<double, 3> none({1, 0, 2});
  heed::tensor<double, 3> d_none({1, 0, 2});
  heed::naive_hgrn_backward<double>({read(none), read(none)}, {heed::as_view(d_none)});
}

}  // namespace
