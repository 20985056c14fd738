// SPDX-License-Identifier: MIT
// Backward passes of the scans and of the convolution, packets of channels at a time, against the
// textbook, channel by channel in double: shapes, options, ragged batches, threads, scalars, extremes.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "heed/linear/convolution/convolution_backward.hpp"
#include "heed/linear/scan/backward/hgrn_backward.hpp"
#include "heed/linear/scan/backward/rwkv4_backward.hpp"
#include "heed/linear/scan/backward/selective_scan_backward.hpp"
#include "heed/parallel.hpp"
#include "heed/tensor.hpp"
#include "support/expect_error.hpp"

namespace {

using heed::accumulate_t;
using heed::as_view;
using heed::index;

constexpr double infinity = std::numeric_limits<double>::infinity();

template <int R>
heed::tensor<double, R> random_tensor(const std::array<index, std::size_t{R}>& extents,
                                      unsigned seed, double least = -1, double most = 1) {
  heed::tensor<double, R> t(extents);
  std::mt19937 engine(seed);
  std::uniform_real_distribution<double> uniform(least, most);
  for (index i = 0; i < t.size(); ++i) t.data()[i] = uniform(engine);
  return t;
}

/// x of another scalar.
template <class T, class S, int R>
heed::tensor<T, R> rounded(const heed::tensor<S, R>& x) {
  heed::tensor<T, R> y(x.extents());
  for (index i = 0; i < x.size(); ++i)
    y.data()[i] = static_cast<T>(static_cast<double>(x.data()[i]));
  return y;
}

/// The largest error, relative to the largest number expected.
template <class T, int R>
double error(const heed::tensor<T, R>& got, const heed::tensor<double, R>& want) {
  double size = 1e-30, worst = 0;
  for (index i = 0; i < want.size(); ++i) {
    const double e = std::abs(static_cast<double>(got.data()[i]) - want.data()[i]);
    if (!std::isfinite(e)) return infinity;
    size = std::max(size, std::abs(want.data()[i]));
    worst = std::max(worst, e);
  }
  return worst / size;
}

template <class T, int R>
bool same_bits(const heed::tensor<T, R>& a, const heed::tensor<T, R>& b) {
  return std::equal(a.data(), a.data() + a.size(), b.data());
}

/// Sizes of a call; `bounds` cut the tokens of a batch of 1.
struct sizes {
  index batch = 1, tokens = 1, channels = 1, chunk = 64;
  std::vector<index> bounds{};

  [[nodiscard]] std::array<index, 3> extents() const { return {batch, tokens, channels}; }
  [[nodiscard]] index sequences() const {
    return bounds.empty() ? batch : static_cast<index>(bounds.size()) - 1;
  }
  [[nodiscard]] heed::gradient_options options() const {
    return {.sequence_bounds = std::span<const index>(bounds)};
  }
};

sizes any_sizes(index most_channels) {
  sizes s;
  s.batch = *rc::gen::inRange<index>(1, 4);
  s.tokens = *rc::gen::inRange<index>(0, 150);
  s.channels = *rc::gen::inRange<index>(1, most_channels);
  s.chunk = *rc::gen::inRange<index>(1, 100);
  if (*rc::gen::inRange(0, 3) == 0) {
    s.batch = 1;
    const index one = *rc::gen::inRange<index>(0, s.tokens + 1);
    const index two = *rc::gen::inRange<index>(0, s.tokens + 1);
    s.bounds = {0, std::min(one, two), std::max(one, two), s.tokens};
  }
  return s;
}

/// f(sequence, batch entry, first token, past the last one).
template <class F>
void each_sequence(const sizes& s, const F& f) {
  for (index n = 0; n < s.sequences(); ++n) {
    const auto at = static_cast<std::size_t>(n);
    if (s.bounds.empty()) {
      f(n, n, index{0}, s.tokens);
    } else {
      f(n, index{0}, s.bounds[at], s.bounds[at + 1]);
    }
  }
}
/// The tokens of one sequence, as a batch of 1.
template <class T, int R>
heed::view<T, R> tokens_of(const heed::view<T, R>& x, index entry, index begin, index end) {
  return x.slice(0, entry, entry + 1).slice(1, begin, end);
}
template <class T, int R>
void add_to(heed::tensor<T, R>& sum, const heed::tensor<T, R>& x) {
  for (index i = 0; i < x.size(); ++i) sum.data()[i] += x.data()[i];
}

// HGRN -------------------------------------------------------------------------------------------

template <class T>
struct hgrn_problem {
  sizes s;
  heed::tensor<T, 3> x, g, d_out, dx, dg;
  heed::tensor<accumulate_t<T>, 2> initial, d_final, d_initial;

  explicit hgrn_problem(const sizes& of, double least_gate = -1, double most_gate = 0)
      : s(of),
        x(random_tensor<3>(s.extents(), 1)),
        g(random_tensor<3>(s.extents(), 2, least_gate, most_gate)),
        d_out(random_tensor<3>(s.extents(), 3)),
        dx(s.extents()),
        dg(s.extents()),
        initial(random_tensor<2>({s.sequences(), s.channels}, 4)),
        d_final(random_tensor<2>({s.sequences(), s.channels}, 5)),
        d_initial(initial.extents()) {}
  template <class S>
  explicit hgrn_problem(const hgrn_problem<S>& o)
      : s(o.s),
        x(rounded<T>(o.x)),
        g(rounded<T>(o.g)),
        d_out(rounded<T>(o.d_out)),
        dx(x.extents()),
        dg(x.extents()),
        initial(rounded<accumulate_t<T>>(o.initial)),
        d_final(rounded<accumulate_t<T>>(o.d_final)),
        d_initial(initial.extents()) {}

  void run(index threads = 1) {
    heed::thread_pool pool(threads);
    heed::hgrn_backward<heed::thread_pool&, T>(
        pool, {as_view(x), as_view(g), as_view(initial), as_view(d_out), as_view(d_final), s.chunk},
        {as_view(dx), as_view(dg), as_view(d_initial)}, s.options());
  }
  void run_textbook() {
    each_sequence(s, [&](index n, index b, index begin, index end) {
      const auto in = [&](auto& t) {
        return tokens_of(heed::view<const T, 3>(as_view(t)), b, begin, end);
      };
      const auto out = [&](auto& t) { return tokens_of(as_view(t), b, begin, end); };
      const auto one = [&](auto& t) { return as_view(t).slice(0, n, n + 1); };
      heed::naive_hgrn_backward<T>({in(x), in(g), one(initial), in(d_out), one(d_final)},
                                   {out(dx), out(dg), one(d_initial)});
    });
  }
  [[nodiscard]] double error_from(const hgrn_problem<double>& want) const {
    return std::max({error(dx, want.dx), error(dg, want.dg), error(d_initial, want.d_initial)});
  }
};

RC_GTEST_PROP(ScanBackward, HgrnAgreesWithTheTextbook, ()) {
  hgrn_problem<double> x(any_sizes(200), -1, *rc::gen::inRange(0, 2) * 0.05), want(x);
  x.run();
  want.run_textbook();
  RC_ASSERT(x.error_from(want) < 1e-12);
}

// RWKV-4 -----------------------------------------------------------------------------------------

template <class T>
struct rwkv4_problem {
  sizes s;
  heed::tensor<T, 3> k, v, d_out, dk, dv;
  heed::tensor<accumulate_t<T>, 1> decay, bonus, d_decay, d_bonus;
  heed::tensor<accumulate_t<T>, 3> initial, d_final, d_initial;

  explicit rwkv4_problem(const sizes& of)
      : s(of),
        k(random_tensor<3>(s.extents(), 1, -3, 3)),
        v(random_tensor<3>(s.extents(), 2)),
        d_out(random_tensor<3>(s.extents(), 3)),
        dk(s.extents()),
        dv(s.extents()),
        decay(random_tensor<1>({s.channels}, 4, -4, 1)),
        bonus(random_tensor<1>({s.channels}, 5)),
        d_decay({s.channels}),
        d_bonus({s.channels}),
        initial(random_tensor<3>({s.sequences(), 3, s.channels}, 6, 0.1, 1)),
        d_final(random_tensor<3>(initial.extents(), 7)),
        d_initial(initial.extents()) {}
  template <class S>
  explicit rwkv4_problem(const rwkv4_problem<S>& o)
      : s(o.s),
        k(rounded<T>(o.k)),
        v(rounded<T>(o.v)),
        d_out(rounded<T>(o.d_out)),
        dk(k.extents()),
        dv(k.extents()),
        decay(rounded<accumulate_t<T>>(o.decay)),
        bonus(rounded<accumulate_t<T>>(o.bonus)),
        d_decay(decay.extents()),
        d_bonus(decay.extents()),
        initial(rounded<accumulate_t<T>>(o.initial)),
        d_final(rounded<accumulate_t<T>>(o.d_final)),
        d_initial(initial.extents()) {}

  void run(index threads = 1) {
    heed::thread_pool pool(threads);
    heed::rwkv4_backward<heed::thread_pool&, T>(
        pool,
        {as_view(k), as_view(v), as_view(decay), as_view(bonus), as_view(d_out), as_view(initial),
         as_view(d_final), s.chunk},
        {as_view(dk), as_view(dv), as_view(d_decay), as_view(d_bonus), as_view(d_initial)},
        s.options());
  }
  void run_textbook() {
    each_sequence(s, [&](index n, index b, index begin, index end) {
      const auto in = [&](auto& t) {
        return tokens_of(heed::view<const T, 3>(as_view(t)), b, begin, end);
      };
      const auto out = [&](auto& t) { return tokens_of(as_view(t), b, begin, end); };
      auto of_decay = decay, of_bonus = bonus;
      const auto one = [&](auto& t) { return as_view(t).slice(0, n, n + 1); };
      heed::naive_rwkv4_backward<T>(
          {in(k), in(v), as_view(decay), as_view(bonus), in(d_out), one(initial), one(d_final)},
          {out(dk), out(dv), as_view(of_decay), as_view(of_bonus), one(d_initial)});
      add_to(d_decay, of_decay);
      add_to(d_bonus, of_bonus);
    });
  }
  [[nodiscard]] double error_from(const rwkv4_problem<double>& want) const {
    return std::max({error(dk, want.dk), error(dv, want.dv), error(d_decay, want.d_decay),
                     error(d_bonus, want.d_bonus), error(d_initial, want.d_initial)});
  }
};

RC_GTEST_PROP(ScanBackward, Rwkv4AgreesWithTheTextbook, ()) {
  rwkv4_problem<double> x(any_sizes(100)), want(x);
  x.run();
  want.run_textbook();
  RC_ASSERT(x.error_from(want) < 1e-11);
}

// S6 ---------------------------------------------------------------------------------------------

struct s6_options {
  index states = 4, groups = 1;
  bool skip = false, gate = false, bias = false, softplus = false;
  double most_rate = -0.1;
};

template <class T>
struct s6_problem {
  using A = accumulate_t<T>;
  sizes s;
  s6_options o;
  heed::tensor<T, 3> x, dt, gate, d_out, dx, d_dt, d_gate;
  heed::tensor<T, 4> b, c, db, dc;
  heed::tensor<A, 2> a, da;
  heed::tensor<A, 1> skip, bias, d_skip, d_bias;
  heed::tensor<A, 3> initial, d_final, d_initial;

  s6_problem(const sizes& of, const s6_options& with)
      : s6_problem(of, with, random_tensor<3>(of.extents(), 1),
                   random_tensor<3>(of.extents(), 2, with.softplus ? -2 : 0, 0.3),
                   random_tensor<3>(of.extents(), 3, -2, 2), random_tensor<3>(of.extents(), 4),
                   random_tensor<4>({of.batch, of.tokens, with.groups, with.states}, 5),
                   random_tensor<4>({of.batch, of.tokens, with.groups, with.states}, 6),
                   random_tensor<2>({of.channels, with.states}, 7, -4, with.most_rate),
                   random_tensor<1>({of.channels}, 8), random_tensor<1>({of.channels}, 9),
                   random_tensor<3>({of.sequences(), of.channels, with.states}, 10),
                   random_tensor<3>({of.sequences(), of.channels, with.states}, 11)) {}
  template <class S>
  explicit s6_problem(const s6_problem<S>& p)
      : s6_problem(p.s, p.o, rounded<T>(p.x), rounded<T>(p.dt), rounded<T>(p.gate),
                   rounded<T>(p.d_out), rounded<T>(p.b), rounded<T>(p.c), rounded<A>(p.a),
                   rounded<A>(p.skip), rounded<A>(p.bias), rounded<A>(p.initial),
                   rounded<A>(p.d_final)) {}

  [[nodiscard]] heed::selective_scan_backward_inputs<T> inputs() const {
    heed::selective_scan_backward_inputs<T> in{as_view(x), as_view(dt), as_view(a), as_view(b),
                                               as_view(c)};
    if (o.skip) in.skip = as_view(skip);
    if (o.gate) in.gate = as_view(gate);
    if (o.bias) in.dt_bias = as_view(bias);
    in.initial_state = as_view(initial);
    in.softplus = o.softplus;
    in.d_out = as_view(d_out);
    in.d_final_state = as_view(d_final);
    in.chunk = s.chunk;
    return in;
  }
  [[nodiscard]] heed::selective_scan_gradients<T> gradients() {
    heed::selective_scan_gradients<T> to{as_view(dx), as_view(d_dt), as_view(da), as_view(db),
                                         as_view(dc)};
    if (o.skip) to.skip = as_view(d_skip);
    if (o.gate) to.gate = as_view(d_gate);
    if (o.bias) to.dt_bias = as_view(d_bias);
    to.initial_state = as_view(d_initial);
    return to;
  }
  void run(index threads = 1) {
    heed::thread_pool pool(threads);
    heed::selective_scan_backward(pool, inputs(), gradients(), s.options());
  }
  void run_textbook() {
    const auto in = inputs();
    const auto to = gradients();
    each_sequence(s, [&](index n, index entry, index begin, index end) {
      const auto cut = [&](const auto& t) { return tokens_of(t, entry, begin, end); };
      auto one = in;
      auto out = to;
      one.x = cut(in.x);
      one.dt = cut(in.dt);
      one.b = cut(in.b);
      one.c = cut(in.c);
      one.d_out = cut(in.d_out);
      if (o.gate) one.gate = cut(in.gate);
      one.initial_state = in.initial_state.slice(0, n, n + 1);
      one.d_final_state = in.d_final_state.slice(0, n, n + 1);
      out.x = cut(to.x);
      out.dt = cut(to.dt);
      out.b = cut(to.b);
      out.c = cut(to.c);
      if (o.gate) out.gate = cut(to.gate);
      out.initial_state = to.initial_state.slice(0, n, n + 1);
      auto of_a = a;
      auto of_skip = skip, of_bias = bias;
      out.a = as_view(of_a);
      if (o.skip) out.skip = as_view(of_skip);
      if (o.bias) out.dt_bias = as_view(of_bias);
      heed::naive_selective_scan_backward(one, out);
      add_to(da, of_a);
      if (o.skip) add_to(d_skip, of_skip);
      if (o.bias) add_to(d_bias, of_bias);
    });
  }
  [[nodiscard]] double error_from(const s6_problem<double>& want) const {
    return std::max({error(dx, want.dx), error(d_dt, want.d_dt), error(d_gate, want.d_gate),
                     error(da, want.da), error(db, want.db), error(dc, want.dc),
                     error(d_skip, want.d_skip), error(d_bias, want.d_bias),
                     error(d_initial, want.d_initial)});
  }

 private:
  template <int R>
  using numbers = heed::tensor<A, R>;
  s6_problem(const sizes& of, const s6_options& with, heed::tensor<T, 3> of_x,
             heed::tensor<T, 3> of_dt, heed::tensor<T, 3> of_gate, heed::tensor<T, 3> of_out,
             heed::tensor<T, 4> of_b, heed::tensor<T, 4> of_c, numbers<2> of_a, numbers<1> of_skip,
             numbers<1> of_bias, numbers<3> of_initial, numbers<3> of_final)
      : s(of),
        o(with),
        x(std::move(of_x)),
        dt(std::move(of_dt)),
        gate(std::move(of_gate)),
        d_out(std::move(of_out)),
        dx(x.extents()),
        d_dt(x.extents()),
        d_gate(x.extents()),
        b(std::move(of_b)),
        c(std::move(of_c)),
        db(b.extents()),
        dc(b.extents()),
        a(std::move(of_a)),
        da(a.extents()),
        skip(std::move(of_skip)),
        bias(std::move(of_bias)),
        d_skip(skip.extents()),
        d_bias(skip.extents()),
        initial(std::move(of_initial)),
        d_final(std::move(of_final)),
        d_initial(initial.extents()) {}
};

RC_GTEST_PROP(ScanBackward, SelectiveScanAgreesWithTheTextbook, ()) {
  s6_options o;
  o.states = *rc::gen::inRange<index>(0, 10);
  o.groups = *rc::gen::inRange<index>(1, 4);
  o.skip = *rc::gen::inRange(0, 2) == 1;
  o.gate = *rc::gen::inRange(0, 2) == 1;
  o.bias = *rc::gen::inRange(0, 2) == 1;
  o.softplus = *rc::gen::inRange(0, 2) == 1;
  o.most_rate = *rc::gen::inRange(0, 2) == 1 ? 0.1 : -0.1;
  sizes s = any_sizes(60);
  s.channels *= o.groups;
  s6_problem<double> x(s, o), want(x);
  x.run();
  want.run_textbook();
  RC_ASSERT(x.error_from(want) < 1e-11);
}

// Convolution ------------------------------------------------------------------------------------

/// x [batch, channels, tokens]; with `tokens_first` tokens lie before channels in memory.
template <class T>
struct convolution_problem {
  using A = accumulate_t<T>;
  sizes s;
  index taps;
  bool silu, tokens_first;
  heed::tensor<T, 3> x, d_out, dx;
  heed::tensor<A, 2> weight, d_weight;
  heed::tensor<A, 1> bias, d_bias;
  heed::tensor<A, 3> past, d_final, d_past;

  convolution_problem(const sizes& of, index width, bool with_silu, bool turned)
      : s(of),
        taps(width),
        silu(with_silu),
        tokens_first(turned),
        x(random_tensor<3>(memory(), 1)),
        d_out(random_tensor<3>(memory(), 2)),
        dx(memory()),
        weight(random_tensor<2>({s.channels, taps}, 3)),
        d_weight(weight.extents()),
        bias(random_tensor<1>({s.channels}, 4)),
        d_bias(bias.extents()),
        past(random_tensor<3>({s.sequences(), s.channels, taps - 1}, 5)),
        d_final(random_tensor<3>(past.extents(), 6)),
        d_past(past.extents()) {}
  template <class S>
  explicit convolution_problem(const convolution_problem<S>& o)
      : s(o.s),
        taps(o.taps),
        silu(o.silu),
        tokens_first(o.tokens_first),
        x(rounded<T>(o.x)),
        d_out(rounded<T>(o.d_out)),
        dx(x.extents()),
        weight(rounded<A>(o.weight)),
        d_weight(weight.extents()),
        bias(rounded<A>(o.bias)),
        d_bias(bias.extents()),
        past(rounded<A>(o.past)),
        d_final(rounded<A>(o.d_final)),
        d_past(past.extents()) {}

  [[nodiscard]] std::array<index, 3> memory() const {
    return tokens_first ? s.extents() : std::array<index, 3>{s.batch, s.channels, s.tokens};
  }
  template <class S>
  [[nodiscard]] auto as_seen(S& t) const {
    const auto v = as_view(t);
    return tokens_first ? v.swap_axes(1, 2) : v;
  }
  void run(index threads = 1) {
    heed::thread_pool pool(threads);
    heed::causal_convolution_backward<heed::thread_pool&, T>(
        pool,
        {as_seen(x), as_view(weight), as_view(bias), as_view(past), silu, as_seen(d_out),
         as_view(d_final)},
        {as_seen(dx), as_view(d_weight), as_view(d_bias), as_view(d_past)}, s.options());
  }
  void run_textbook() {
    each_sequence(s, [&](index n, index entry, index begin, index end) {
      const auto cut = [&](auto& t) {
        return as_seen(t).slice(0, entry, entry + 1).slice(2, begin, end);
      };
      const auto one = [&](auto& t) { return as_view(t).slice(0, n, n + 1); };
      auto of_weight = weight;
      auto of_bias = bias;
      heed::naive_causal_convolution_backward<T>(
          {cut(x), as_view(weight), as_view(bias), one(past), silu, cut(d_out), one(d_final)},
          {cut(dx), as_view(of_weight), as_view(of_bias), one(d_past)});
      add_to(d_weight, of_weight);
      add_to(d_bias, of_bias);
    });
  }
  [[nodiscard]] double error_from(const convolution_problem<double>& want) const {
    return std::max({error(dx, want.dx), error(d_weight, want.d_weight), error(d_bias, want.d_bias),
                     error(d_past, want.d_past)});
  }
};

RC_GTEST_PROP(ScanBackward, ConvolutionAgreesWithTheTextbook, ()) {
  const index taps = *rc::gen::inRange<index>(1, 8);
  const bool silu = *rc::gen::inRange(0, 2) == 1, turned = *rc::gen::inRange(0, 2) == 1;
  convolution_problem<double> x(any_sizes(100), taps, silu, turned), want(x);
  x.run();
  want.run_textbook();
  RC_ASSERT(x.error_from(want) < 1e-12);
}

// All of them ------------------------------------------------------------------------------------

template <class F>
void each_problem(const F& f) {
  const sizes s{2, 133, 300, 40};
  f(hgrn_problem<double>(s));
  f(rwkv4_problem<double>(s));
  f(s6_problem<double>(s, {5, 2, true, true, true, true}));
  f(convolution_problem<double>({2, 1200, 20}, 4, true, false));
  f(convolution_problem<double>(s, 4, true, true));
}

template <template <class> class Problem, class T>
Problem<T> as(const Problem<double>& x) {
  return Problem<T>(x);
}

/// Of the numbers that the scalar T holds.
template <class T, template <class> class Problem>
void expect_near_the_textbook(const Problem<double>& exact, double tolerance) {
  Problem<T> got(exact);
  Problem<double> want(got);
  got.run();
  want.run_textbook();
  EXPECT_LE(got.error_from(want), tolerance);
}

// Of sums of up to 2,400 terms of any sign; half and bfloat16 round once.
TEST(ScanBackward, EveryScalar) {
  each_problem([](const auto& x) {
    expect_near_the_textbook<float>(x, 3e-5);
    expect_near_the_textbook<heed::half>(x, 0x1p-11 + 3e-5);
    expect_near_the_textbook<heed::bfloat16>(x, 0x1p-8 + 3e-5);
  });
}

template <template <class> class Problem>
void expect_same_bits(const Problem<double>& exact) {
  Problem<float> one(exact);
  one.run(1);
  for (const index threads : {2, 5}) {
    Problem<float> many(exact);
    many.run(threads);
    if constexpr (requires { one.dg; }) {
      EXPECT_TRUE(same_bits(one.dg, many.dg));
    }
    if constexpr (requires { one.d_decay; }) {
      EXPECT_TRUE(same_bits(one.dk, many.dk));
      EXPECT_TRUE(same_bits(one.d_decay, many.d_decay));
    }
    if constexpr (requires { one.taps; }) {
      EXPECT_TRUE(same_bits(one.dx, many.dx));
      EXPECT_TRUE(same_bits(one.d_weight, many.d_weight));
    }
    if constexpr (requires { one.db; }) {
      EXPECT_TRUE(same_bits(one.db, many.db));
      EXPECT_TRUE(same_bits(one.da, many.da));
      EXPECT_TRUE(same_bits(one.d_dt, many.d_dt));
    }
  }
}

TEST(ParallelScanBackward, SameBitsForAnyThreads) {
  each_problem([](const auto& x) { expect_same_bits(x); });
}

// Gates of 0, of -60 and of -inf, side by side.
TEST(ScanBackward, GatesOfAnySizeAreFinite) {
  const sizes s{1, 90, 70, 32};
  hgrn_problem<double> x(s);
  s6_problem<double> y(s, {4});
  rwkv4_problem<double> z(s);
  for (index i = 0; i < x.g.size(); ++i) {
    const index kind = i * 7 % 11;
    if (kind < 4) x.g.data()[i] = kind < 2 ? 0 : kind == 2 ? -60 : -infinity;
    if (kind < 3) z.k.data()[i] = kind == 0 ? -infinity : kind == 1 ? 800 : -800;
    y.dt.data()[i] = 1;
  }
  for (index i = 0; i < y.a.size(); ++i) {
    const index kind = i * 5 % 7;
    if (kind < 3) y.a.data()[i] = kind == 0 ? 0 : kind == 1 ? -60 : -infinity;
  }
  hgrn_problem<double> want_x(x);
  s6_problem<double> want_y(y);
  rwkv4_problem<double> want_z(z);
  x.run();
  y.run();
  z.run();
  want_x.run_textbook();
  want_y.run_textbook();
  want_z.run_textbook();
  EXPECT_LE(x.error_from(want_x), 1e-12);
  EXPECT_LE(y.error_from(want_y), 1e-12);
  EXPECT_LE(z.error_from(want_z), 1e-11);
  for (index i = 0; i < x.g.size(); ++i) {
    if (x.g.data()[i] == -infinity) {
      EXPECT_EQ(x.dg.data()[i], 0) << i;
    }
    if (z.k.data()[i] == -infinity) {
      EXPECT_EQ(z.dk.data()[i], 0) << i;
    }
  }
  for (index i = 0; i < y.a.size(); ++i) {
    if (y.a.data()[i] == -infinity) {
      EXPECT_EQ(y.da.data()[i], 0) << i;
    }
  }
}

// What is not given is zeros, what is not wanted is not written; channels before tokens.
TEST(ScanBackward, PartsAndStrides) {
  const sizes s{2, 50, 20, 16};
  s6_problem<double> x(s, {3, 1, true, true}), want(x);
  auto in = want.inputs();
  in.d_out = {};
  heed::selective_scan_gradients<double> of_x{as_view(want.dx)};
  heed::naive_selective_scan_backward(in, of_x);
  heed::tensor<double, 3> turned({s.batch, s.channels, s.tokens}), dx(turned.extents());
  for (index b = 0; b < s.batch; ++b) {
    for (index t = 0; t < s.tokens; ++t) {
      for (index c = 0; c < s.channels; ++c) turned(b, c, t) = x.x(b, t, c);
    }
  }
  in.x = heed::view<const double, 3>(as_view(turned)).swap_axes(1, 2);
  heed::selective_scan_backward(in, {as_view(dx).swap_axes(1, 2)});
  for (index b = 0; b < s.batch; ++b) {
    for (index t = 0; t < s.tokens; ++t) {
      for (index c = 0; c < s.channels; ++c) {
        ASSERT_NEAR(dx(b, c, t), want.dx(b, t, c), 1e-13);
      }
    }
  }
}

TEST(ScanBackward, EmptyAndRefused) {
  hgrn_problem<double> none(sizes{2, 0, 5});
  none.run();  // the final state is the initial one
  EXPECT_TRUE(same_bits(none.d_initial, none.d_final));
  hgrn_problem<double> x(sizes{1, 4, 5});
  x.s.chunk = 0;
  EXPECT_THROW(x.run(), heed::option_error);
  x.s.chunk = 4;
  x.s.bounds = {0, 3};
  EXPECT_THROW(x.run(), heed::shape_error);
  x.s.bounds = {0, 3, 4};  // two sequences, and states of one
  EXPECT_THROW(x.run(), heed::shape_error);
  s6_problem<double> y(sizes{1, 4, 5}, {3, 2});
  EXPECT_THROW(y.run(), heed::shape_error);
  // The gradient of a gate that is not there.
  const heed::tensor<float, 3> plain({1, 4, 5}), weights({1, 4, 2});
  const heed::tensor<float, 2> rates({5, 2});
  const heed::view<const float, 4> of_group(weights.data(), {1, 4, 1, 2});
  heed::tensor<float, 3> d_gate({1, 4, 5});
  heed::selective_scan_gradients<float> to;
  to.gate = as_view(d_gate);
  EXPECT_THROW(heed::selective_scan_backward(
                   heed::selective_scan_backward_inputs<float>{as_view(plain), as_view(plain),
                                                               as_view(rates), of_group, of_group},
                   to),
               heed::option_error);
}

}  // namespace
