// SPDX-License-Identifier: MIT
// Gradients by chunks against the textbook, token by token, in double: every kind of gate, with and
// without the delta rule, of many sizes.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "heed/linear/matrix_state/backward/dplr_backward.hpp"
#include "heed/linear/matrix_state/backward/matrix_state_backward.hpp"
#include "heed/linear/matrix_state/backward/naive_low_rank_backward.hpp"
#include "heed/linear/matrix_state/backward/naive_matrix_state_backward.hpp"
#include "heed/parallel.hpp"
#include "heed/tensor.hpp"

namespace {

using heed::index;
template <class A>
using numbers = heed::tensor<A, 4>;

struct shape {
  index batch = 1, heads = 1, group = 1, tokens = 1, d = 1, dv = 1;
  index gate_channels = 0;  // 0: no gates, 1, or d
  bool delta = false;
};

template <class A>
struct problem {
  shape s;
  numbers<A> q, k, v, gate, beta, initial, d_out, d_state;

  explicit problem(const shape& x, double least_gate = -1)
      : s(x),
        q(random({x.batch, x.heads * x.group, x.tokens, x.d}, 1)),
        k(random({x.batch, x.heads, x.tokens, x.d}, 2)),
        v(random({x.batch, x.heads, x.tokens, x.dv}, 3)),
        gate(random({x.batch, x.heads, x.tokens, x.gate_channels}, 4, least_gate, 0)),
        beta(random({x.batch, x.heads, x.tokens, 1}, 5, 0, 1)),
        initial(random({x.batch, x.heads, x.d, x.dv}, 6)),
        d_out(random({x.batch, x.heads * x.group, x.tokens, x.dv}, 7)),
        d_state(random({x.batch, x.heads, x.d, x.dv}, 8)) {
    // Keys of length 1 keep the delta rule from growing.
    for (index b = 0; b < x.batch; ++b) {
      for (index h = 0; h < x.heads; ++h) {
        for (index t = 0; t < x.tokens; ++t) {
          double square = 0;
          for (index f = 0; f < x.d; ++f) square += double(k(b, h, t, f)) * double(k(b, h, t, f));
          for (index f = 0; f < x.d; ++f) {
            k(b, h, t, f) = static_cast<A>(double(k(b, h, t, f)) / std::sqrt(square));
          }
        }
      }
    }
  }
  static numbers<A> random(const std::array<index, 4>& extents, unsigned seed, double least = -1,
                           double most = 1) {
    std::mt19937 generator(seed);
    std::uniform_real_distribution<double> uniform(least, most);
    numbers<A> x(extents);
    for (index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<A>(uniform(generator));
    return x;
  }
};

template <class A>
struct results {
  explicit results(const problem<A>& x)
      : q(x.q.extents()),
        k(x.k.extents()),
        v(x.v.extents()),
        gate(x.gate.extents()),
        beta(x.beta.extents()),
        initial(x.initial.extents()) {}
  numbers<A> q, k, v, gate, beta, initial;
};

template <class A>
heed::matrix_state_inputs<A> inputs(const problem<A>& x, index chunk) {
  heed::matrix_state_inputs<A> in{heed::as_view(x.q), heed::as_view(x.k), heed::as_view(x.v)};
  if (x.s.gate_channels > 0) in.gate = heed::as_view(x.gate);
  if (x.s.delta) in.beta = heed::as_view(x.beta);
  in.initial_state = heed::as_view(x.initial);
  in.chunk = chunk;
  return in;
}
template <class A>
heed::matrix_state_gradients<A> outputs(const problem<A>& x, results<A>& g) {
  heed::matrix_state_gradients<A> to{heed::as_view(g.q), heed::as_view(g.k), heed::as_view(g.v)};
  if (x.s.gate_channels > 0) to.gate = heed::as_view(g.gate);
  if (x.s.delta) to.beta = heed::as_view(g.beta);
  to.initial_state = heed::as_view(g.initial);
  return to;
}
template <class A>
results<A> by_chunks(const problem<A>& x, index chunk, index threads = 1) {
  results<A> g(x);
  heed::thread_pool pool(threads);
  const heed::matrix_state_cotangents<A> given{heed::as_view(x.d_out), heed::as_view(x.d_state)};
  heed::matrix_state_backward(pool, inputs(x, chunk), given, outputs(x, g));
  return g;
}
template <class A>
results<A> by_tokens(const problem<A>& x) {
  results<A> g(x);
  const heed::matrix_state_cotangents<A> given{heed::as_view(x.d_out), heed::as_view(x.d_state)};
  heed::naive_matrix_state_backward(inputs(x, 64), given, outputs(x, g));
  return g;
}

/// The largest error, relative to the largest number expected.
template <class A, class B>
double error(const numbers<A>& got, const numbers<B>& want) {
  double size = 1e-30;
  double worst = 0;
  for (index i = 0; i < want.size(); ++i) {
    const double e = std::abs(double(got.data()[i]) - double(want.data()[i]));
    if (!std::isfinite(e)) return INFINITY;
    size = std::max(size, std::abs(double(want.data()[i])));
    worst = std::max(worst, e);
  }
  return worst / size;
}
template <class A, class B>
void expect_close(const results<A>& got, const results<B>& want, double tolerance) {
  EXPECT_LE(error(got.q, want.q), tolerance);
  EXPECT_LE(error(got.k, want.k), tolerance);
  EXPECT_LE(error(got.v, want.v), tolerance);
  EXPECT_LE(error(got.gate, want.gate), tolerance);
  EXPECT_LE(error(got.beta, want.beta), tolerance);
  EXPECT_LE(error(got.initial, want.initial), tolerance);
}

std::vector<shape> all_kinds(index batch, index heads, index group, index tokens, index d,
                             index dv) {
  std::vector<shape> kinds;
  for (const index gates : {index{0}, index{1}, d}) {
    for (const bool delta : {false, true}) {
      kinds.push_back({batch, heads, group, tokens, d, dv, gates, delta});
    }
  }
  return kinds;
}

// Sums of up to 200 x 20 terms near 1: a thousand eps or so.
TEST(ChunkBackward, AgreesWithTheTextbookInDouble) {
  for (const index tokens : {1, 7, 16, 65, 200}) {
    for (const shape& s : all_kinds(2, 2, tokens % 2 + 1, tokens, 5, 9)) {
      const problem<double> x(s);
      const results<double> want = by_tokens(x);
      for (const index chunk : {1, 6, 40, 64, 150}) {
        SCOPED_TRACE(testing::Message() << tokens << " tokens, gates " << s.gate_channels
                                        << " delta " << s.delta << " chunk " << chunk);
        expect_close(by_chunks(x, chunk), want, 1e-12);
      }
    }
  }
}

TEST(ChunkBackward, AgreesWithTheTextbookInFloat) {
  for (const shape& s : all_kinds(1, 2, 2, 300, 32, 16)) {
    SCOPED_TRACE(testing::Message() << "gates " << s.gate_channels << " delta " << s.delta);
    const problem<float> x(s, -0.1);
    const problem<double> wide(s, -0.1);  // the same numbers but for their rounding
    expect_close(by_chunks(x, 64), by_tokens(wide), 2e-5);
  }
}

// Gates of 0, of -60 and of -inf, side by side.
TEST(ChunkBackward, GatesOfAnySizeAreFinite) {
  const double inf = std::numeric_limits<double>::infinity();
  for (const shape& s : all_kinds(1, 2, 1, 90, 4, 8)) {
    if (s.gate_channels == 0) continue;
    problem<double> x(s);
    for (index i = 0; i < x.gate.size(); ++i) {
      const index kind = i * 7 % 11;
      if (kind < 4) x.gate.data()[i] = kind < 2 ? 0 : kind == 2 ? -60 : -inf;
    }
    const results<double> got = by_chunks(x, 64);
    expect_close(got, by_tokens(x), 1e-12);
    for (index i = 0; i < x.gate.size(); ++i) {
      if (x.gate.data()[i] != -inf) continue;
      EXPECT_EQ(got.gate.data()[i], 0) << i;
    }
  }
}

TEST(ChunkBackward, ParallelSameBits) {
  for (const shape& s : all_kinds(2, 3, 1, 150, 8, 8)) {
    const problem<float> x(s);
    const results<float> want = by_chunks(x, 64);
    for (const index threads : {2, 5}) {
      const results<float> got = by_chunks(x, 64, threads);
      for (index i = 0; i < want.k.size(); ++i) ASSERT_EQ(got.k.data()[i], want.k.data()[i]);
      for (index i = 0; i < want.gate.size(); ++i) {
        ASSERT_EQ(got.gate.data()[i], want.gate.data()[i]);
      }
    }
  }
}

// What is not given is zeros, what is not wanted is not written; tensors of any strides.
TEST(ChunkBackward, PartsAndStrides) {
  // Few tokens: many would correct the state's gradient to almost nothing, and its rounding remains.
  const problem<double> x(shape{2, 2, 1, 20, 3, 5, 1, true}, -0.1);
  const heed::view<const double, 4> no_cotangent;
  results<double> want(x), got(x);
  for (const bool of_state : {false, true}) {
    heed::matrix_state_cotangents<double> given{heed::as_view(x.d_out)};
    if (of_state) given = {no_cotangent, heed::as_view(x.d_state)};
    heed::naive_matrix_state_backward(inputs(x, 16), given, outputs(x, want));
    heed::matrix_state_backward(inputs(x, 16), given, outputs(x, got));
    expect_close(got, want, 1e-12);
  }
  // Tokens before heads, as many models keep them.
  const auto turned = [](const numbers<double>& a) {
    numbers<double> b({a.extent(0), a.extent(2), a.extent(1), a.extent(3)});
    for (index i = 0; i < a.extent(0); ++i) {
      for (index h = 0; h < a.extent(1); ++h) {
        for (index t = 0; t < a.extent(2); ++t) {
          for (index c = 0; c < a.extent(3); ++c) b(i, t, h, c) = a(i, h, t, c);
        }
      }
    }
    return b;
  };
  const numbers<double> q = turned(x.q), k = turned(x.k);
  const auto by_heads = [](const numbers<double>& a) {
    return heed::view<const double, 4>(heed::as_view(a)).swap_axes(1, 2);
  };
  auto in = inputs(x, 16);
  in.q = by_heads(q);
  in.k = by_heads(k);
  numbers<double> dk(k.extents());
  heed::matrix_state_gradients<double> to;
  to.k = heed::as_view(dk).swap_axes(1, 2);
  heed::matrix_state_backward(in, {no_cotangent, heed::as_view(x.d_state)}, to);
  EXPECT_LE(error(dk, turned(want.k)), 1e-12);
}

// Without gates a state and the gradient of one add up all tokens, of positive numbers here: one
// float sum of chunks is 3e-6 off at a million. Chunks of 64 terms err by a few eps.
TEST(ChunkBackward, ManyTokensLoseNoDigits) {
  problem<float> x({.tokens = 1'048'576, .d = 2, .dv = 2});
  for (auto* t : {&x.q, &x.k, &x.v, &x.d_out}) {
    for (index i = 0; i < t->size(); ++i) t->data()[i] = std::abs(t->data()[i]) / 2 + 0.5f;
  }
  numbers<float> dq(x.q.extents()), dk(x.k.extents()), dv(x.v.extents());
  heed::matrix_state_inputs<float> in{heed::as_view(x.q), heed::as_view(x.k), heed::as_view(x.v)};
  in.scale = 1;
  heed::matrix_state_backward(in, {heed::as_view(x.d_out)},
                              {heed::as_view(dq), heed::as_view(dk), heed::as_view(dv)});
  const auto at = [](const numbers<float>& t, index i, index c) {
    return static_cast<double>(t(0, 0, i, c));
  };
  double state[2][2] = {}, back[2][2] = {};
  for (index i = 0; i < x.s.tokens; ++i) {
    for (index f = 0; f < 2; ++f) {
      double want = 0;
      for (index c = 0; c < 2; ++c) {
        state[f][c] += at(x.k, i, f) * at(x.v, i, c);
        want += state[f][c] * at(x.d_out, i, c);
      }
      if (i % 977 != 0) continue;
      ASSERT_NEAR(dq(0, 0, i, f), want, 2e-6 * want) << i;
    }
  }
  for (index i = x.s.tokens; i-- > 0;) {
    for (index f = 0; f < 2; ++f) {
      for (index c = 0; c < 2; ++c) back[f][c] += at(x.q, i, f) * at(x.d_out, i, c);
    }
    if (i % 977 != 0) continue;
    for (index f = 0; f < 2; ++f) {
      const double key = back[f][0] * at(x.v, i, 0) + back[f][1] * at(x.v, i, 1);
      const double value = back[0][f] * at(x.k, i, 0) + back[1][f] * at(x.k, i, 1);
      ASSERT_NEAR(dk(0, 0, i, f), key, 2e-6 * key) << i;
      ASSERT_NEAR(dv(0, 0, i, f), value, 2e-6 * value) << i;
    }
  }
}

// A ragged batch is its sequences one by one, some of them empty; to the last bit, whatever others are
// there.
const std::array<index, 6> ragged_bounds{0, 37, 37, 38, 350, 400};

template <class T>
heed::view<T, 4> tokens_of(const heed::view<T, 4>& x, std::size_t sequence) {
  return x.data() == nullptr ? x : x.slice(2, ragged_bounds[sequence], ragged_bounds[sequence + 1]);
}
template <class T>
heed::view<T, 4> state_of(const heed::view<T, 4>& x, std::size_t sequence) {
  const auto at = static_cast<index>(sequence);
  return x.slice(0, at, at + 1);
}
template <class T>
void expect_same_bits(const T& got, const T& want) {
  for (index i = 0; i < want.size(); ++i) ASSERT_EQ(got.data()[i], want.data()[i]) << i;
}

TEST(ChunkBackward, RaggedBatchesAreTheirSequences) {
  for (const shape& s : all_kinds(1, 2, 2, ragged_bounds.back(), 5, 9)) {
    SCOPED_TRACE(testing::Message() << "gates " << s.gate_channels << " delta " << s.delta);
    problem<double> x(s);
    x.initial = problem<double>::random({5, 2, 5, 9}, 6);
    x.d_state = problem<double>::random({5, 2, 5, 9}, 8);
    results<double> got(x), alone(x), want(x);
    const auto in = inputs(x, 40);
    heed::thread_pool pool(3);
    heed::matrix_state_backward(pool, in, {heed::as_view(x.d_out), heed::as_view(x.d_state)},
                                outputs(x, got), {.sequence_bounds = ragged_bounds});
    for (std::size_t i = 0; i + 1 < ragged_bounds.size(); ++i) {
      auto part = in;
      part.q = tokens_of(in.q, i);
      part.k = tokens_of(in.k, i);
      part.v = tokens_of(in.v, i);
      part.gate = tokens_of(in.gate, i);
      part.beta = tokens_of(in.beta, i);
      part.initial_state = state_of(in.initial_state, i);
      const heed::matrix_state_cotangents<double> given{
          tokens_of(heed::view<const double, 4>(heed::as_view(x.d_out)), i),
          state_of(heed::view<const double, 4>(heed::as_view(x.d_state)), i)};
      const auto parts = [&](results<double>& g) {
        auto to = outputs(x, g);
        for (auto* t : {&to.q, &to.k, &to.v, &to.gate, &to.beta}) *t = tokens_of(*t, i);
        to.initial_state = state_of(to.initial_state, i);
        return to;
      };
      heed::matrix_state_backward(part, given, parts(alone));
      heed::naive_matrix_state_backward(part, given, parts(want));
    }
    expect_close(got, want, 1e-12);
    expect_same_bits(got.q, alone.q);
    expect_same_bits(got.k, alone.k);
    expect_same_bits(got.v, alone.v);
    expect_same_bits(got.gate, alone.gate);
    expect_same_bits(got.beta, alone.beta);
    expect_same_bits(got.initial, alone.initial);
  }
}

// Rows of bfloat16 and half are widened and their gradients rounded once: those of float, rounded.
template <class T>
numbers<T> narrowed(const numbers<float>& x) {
  numbers<T> y(x.extents());
  for (index i = 0; i < x.size(); ++i) y.data()[i] = static_cast<T>(x.data()[i]);
  return y;
}
template <class T>
void round_to(numbers<float>& x) {
  for (index i = 0; i < x.size(); ++i) {
    x.data()[i] = static_cast<float>(static_cast<T>(x.data()[i]));
  }
}

template <class T>
void expect_narrow_gradients() {
  for (const shape& s : all_kinds(1, 2, 2, 90, 5, 9)) {
    SCOPED_TRACE(testing::Message() << "gates " << s.gate_channels << " delta " << s.delta);
    problem<float> x(s);
    for (auto* t : {&x.q, &x.k, &x.v, &x.gate, &x.beta, &x.d_out}) round_to<T>(*t);
    const results<float> want = by_chunks(x, 64);
    const auto q = narrowed<T>(x.q), k = narrowed<T>(x.k), v = narrowed<T>(x.v),
               gate = narrowed<T>(x.gate), beta = narrowed<T>(x.beta), d_out = narrowed<T>(x.d_out);
    heed::matrix_state_inputs<T> in{heed::as_view(q), heed::as_view(k), heed::as_view(v)};
    numbers<T> dq(q.extents()), dk(k.extents()), dv(v.extents()), dg(gate.extents()),
        dbeta(beta.extents());
    numbers<float> d_initial(x.initial.extents());
    heed::matrix_state_gradients<T> to{heed::as_view(dq), heed::as_view(dk), heed::as_view(dv)};
    if (s.gate_channels > 0) {
      in.gate = heed::as_view(gate);
      to.gate = heed::as_view(dg);
    }
    if (s.delta) {
      in.beta = heed::as_view(beta);
      to.beta = heed::as_view(dbeta);
    }
    in.initial_state = heed::as_view(x.initial);
    to.initial_state = heed::as_view(d_initial);
    heed::matrix_state_backward(in, {heed::as_view(d_out), heed::as_view(x.d_state)}, to);
    expect_same_bits(dq, narrowed<T>(want.q));
    expect_same_bits(dk, narrowed<T>(want.k));
    expect_same_bits(dv, narrowed<T>(want.v));
    expect_same_bits(dg, narrowed<T>(want.gate));
    expect_same_bits(dbeta, narrowed<T>(want.beta));
    expect_same_bits(d_initial, want.initial);
  }
}
TEST(ChunkBackward, NarrowRowsAreWidenedAndRoundedOnce) {
  expect_narrow_gradients<heed::bfloat16>();
  expect_narrow_gradients<heed::half>();
}

TEST(ChunkBackward, EmptyAndRefused) {
  const problem<double> none(shape{1, 2, 1, 0, 3, 5, 1, true});
  const results<double> g = by_chunks(none, 64);
  for (index i = 0; i < g.initial.size(); ++i) {  // the final state is the initial one
    EXPECT_EQ(g.initial.data()[i], none.d_state.data()[i]);
  }
  problem<double> x(shape{1, 2, 1, 4, 3, 5, 1, true});
  x.beta = numbers<double>({1, 2, 5, 1});
  EXPECT_THROW(by_chunks(x, 64), heed::shape_error);
  EXPECT_THROW(by_chunks(problem<double>(shape{1, 2, 1, 4, 3, 5, 1, false}), 0),
               heed::option_error);
  // Gradients of what was not given, and bounds that are none.
  const problem<double> plain(shape{1, 2, 1, 4, 3, 5});
  results<double> to(plain);
  auto wanted = outputs(plain, to);
  wanted.beta = heed::as_view(to.beta);
  EXPECT_THROW(heed::matrix_state_backward(inputs(plain, 64), {}, wanted), heed::option_error);
  EXPECT_THROW(heed::matrix_state_backward(inputs(plain, 64), {}, outputs(plain, to),
                                           {.sequence_bounds = std::array<index, 2>{0, 3}}),
               heed::shape_error);
  EXPECT_THROW(heed::matrix_state_backward(inputs(plain, 64), {}, outputs(plain, to),
                                           {.sequence_bounds = std::array<index, 3>{0, 2, 4}}),
               heed::shape_error);  // one state for two sequences
}

// RWKV-6 and 7 and low rank.

struct low_rank_shape {
  index batch = 1, heads = 1, tokens = 1, d = 1, dv = 1;
  bool gated = false, low = false, bonus = false;
  index group = 1;
};

template <class A>
struct low_rank_problem {
  low_rank_shape s;
  numbers<A> q, k, v, gate, a, b, initial, d_out, d_final;
  heed::tensor<A, 2> bonus;
  numbers<A> dq, dk, dv, d_gate, da, db, d_initial;
  heed::tensor<A, 2> d_bonus;

  explicit low_rank_problem(const low_rank_shape& x, double least_gate = -1)
      : s(x),
        q(random({x.batch, x.heads * x.group, x.tokens, x.d}, 1, 1)),
        k(random(keys(), 2, 1)),
        v(random({x.batch, x.heads, x.tokens, x.dv}, 3, 1)),
        gate(problem<A>::random(keys(), 4, least_gate, 0)),
        a(random(keys(), 5, 1 / std::sqrt(static_cast<double>(x.d)))),
        b(random(keys(), 6, 1 / std::sqrt(static_cast<double>(x.d)))),
        initial(random({x.batch, x.heads, x.d, x.dv}, 7, 1)),
        d_out(random({x.batch, x.heads * x.group, x.tokens, x.dv}, 8, 1)),
        d_final(random(initial.extents(), 9, 1)),
        bonus({x.heads, x.d}),
        dq(q.extents()),
        dk(keys()),
        dv(v.extents()),
        d_gate(keys()),
        da(keys()),
        db(keys()),
        d_initial(initial.extents()),
        d_bonus(bonus.extents()) {
    const numbers<A> u = random({1, 1, x.heads, x.d}, 10, 1);
    std::copy_n(u.data(), u.size(), bonus.data());
  }
  [[nodiscard]] std::array<index, 4> keys() const { return {s.batch, s.heads, s.tokens, s.d}; }
  static numbers<A> random(const std::array<index, 4>& extents, unsigned seed, double most) {
    return problem<A>::random(extents, seed, -most, most);
  }

  [[nodiscard]] heed::dplr_backward_inputs<A> inputs(index chunk) const {
    heed::dplr_backward_inputs<A> in{heed::as_view(q), heed::as_view(k), heed::as_view(v)};
    if (s.gated) in.gate = heed::as_view(gate);
    if (s.low) in.a = heed::as_view(a);
    if (s.low) in.b = heed::as_view(b);
    if (s.bonus) in.bonus = heed::as_view(bonus);
    in.initial_state = heed::as_view(initial);
    in.d_out = heed::as_view(d_out);
    in.d_final_state = heed::as_view(d_final);
    in.scale = 0.5;
    in.chunk = chunk;
    return in;
  }
  [[nodiscard]] heed::dplr_gradients<A> gradients() {
    heed::dplr_gradients<A> to{heed::as_view(dq), heed::as_view(dk), heed::as_view(dv)};
    if (s.gated) to.gate = heed::as_view(d_gate);
    if (s.low) to.a = heed::as_view(da);
    if (s.low) to.b = heed::as_view(db);
    if (s.bonus) to.bonus = heed::as_view(d_bonus);
    to.initial_state = heed::as_view(d_initial);
    return to;
  }
  void run(index chunk, index threads = 1, std::span<const index> bounds = {}) {
    heed::thread_pool pool(threads);
    heed::dplr_backward(pool, inputs(chunk), gradients(), {.sequence_bounds = bounds});
  }
  void run_textbook() { heed::naive_dplr_backward(inputs(64), gradients()); }

  template <class B>
  [[nodiscard]] double error_from(const low_rank_problem<B>& want) const {
    double worst = 0;
    const auto add = [&](const auto& got, const auto& expected) {
      double size = 1e-30, most = 0;
      for (index i = 0; i < expected.size(); ++i) {
        const double e = std::abs(double(got.data()[i]) - double(expected.data()[i]));
        most = std::isfinite(e) ? std::max(most, e) : INFINITY;
        size = std::max(size, std::abs(double(expected.data()[i])));
      }
      worst = std::max(worst, most / size);
    };
    add(dq, want.dq);
    add(dk, want.dk);
    add(dv, want.dv);
    add(d_gate, want.d_gate);
    add(da, want.da);
    add(db, want.db);
    add(d_initial, want.d_initial);
    add(d_bonus, want.d_bonus);
    return worst;
  }
};

std::vector<low_rank_shape> low_rank_kinds(index batch, index tokens, index d, index dv) {
  std::vector<low_rank_shape> kinds;
  for (const bool gated : {false, true}) {
    for (const bool low : {false, true}) {
      for (const bool bonus : {false, true}) {
        kinds.push_back({batch, 2, tokens, d, dv, gated, low, bonus, tokens % 3 + 1});
      }
    }
  }
  return kinds;
}

TEST(LowRankBackward, AgreesWithTheTextbookInDouble) {
  for (const index tokens : {0, 1, 7, 16, 65, 150}) {
    for (const low_rank_shape& s : low_rank_kinds(2, tokens, 5, 9)) {
      low_rank_problem<double> x(s), want(s);
      want.run_textbook();
      for (const index chunk : {1, 6, 40, 64, 150}) {
        SCOPED_TRACE(testing::Message() << tokens << " tokens, gated " << s.gated << " low rank "
                                        << s.low << " bonus " << s.bonus << " chunk " << chunk);
        x.run(chunk);
        EXPECT_LE(x.error_from(want), 1e-12);
      }
    }
  }
}

TEST(LowRankBackward, AgreesWithTheTextbookInFloat) {
  for (const low_rank_shape& s : low_rank_kinds(1, 300, 32, 16)) {
    SCOPED_TRACE(testing::Message() << s.gated << s.low << s.bonus);
    low_rank_problem<float> x(s, -0.1);
    low_rank_problem<double> want(s, -0.1);  // the same numbers but for their rounding
    x.run(64);
    want.run_textbook();
    EXPECT_LE(x.error_from(want), 4e-5);
  }
}

// Gates of 0, of -60 and of -inf, side by side.
TEST(LowRankBackward, GatesOfAnySizeAreFinite) {
  const double inf = std::numeric_limits<double>::infinity();
  for (const low_rank_shape& s : low_rank_kinds(1, 90, 4, 8)) {
    if (!s.gated) continue;
    low_rank_problem<double> x(s);
    for (index i = 0; i < x.gate.size(); ++i) {
      const index kind = i * 7 % 11;
      if (kind < 4) x.gate.data()[i] = kind < 2 ? 0 : kind == 2 ? -60 : -inf;
    }
    low_rank_problem<double> want(x);
    x.run(64);
    want.run_textbook();
    EXPECT_LE(x.error_from(want), 1e-12);
    for (index i = 0; i < x.gate.size(); ++i) {
      if (x.gate.data()[i] != -inf) continue;
      EXPECT_EQ(x.d_gate.data()[i], 0) << i;
    }
  }
}

TEST(LowRankBackward, ParallelSameBits) {
  for (const low_rank_shape& s : low_rank_kinds(2, 150, 8, 8)) {
    low_rank_problem<float> want(s);
    want.run(64);
    for (const index threads : {2, 5}) {
      low_rank_problem<float> got(s);
      got.run(64, threads);
      EXPECT_EQ(got.error_from(want), 0);
    }
  }
}

TEST(LowRankBackward, RaggedBatchesAreTheirSequences) {
  for (const low_rank_shape& s : low_rank_kinds(1, ragged_bounds.back(), 5, 9)) {
    SCOPED_TRACE(testing::Message() << s.gated << s.low << s.bonus);
    low_rank_problem<double> got(s);
    got.initial = problem<double>::random({5, 2, 5, 9}, 6);
    got.d_final = problem<double>::random({5, 2, 5, 9}, 7);
    got.d_initial = got.initial;
    auto alone = got, want = got;
    got.run(40, 3, ragged_bounds);
    heed::tensor<double, 2> d_bonus(got.bonus.extents());
    const auto run_parts = [&](low_rank_problem<double>& x, auto&& backward) {
      std::fill_n(d_bonus.data(), d_bonus.size(), 0.0);
      for (std::size_t i = 0; i + 1 < ragged_bounds.size(); ++i) {
        auto in = x.inputs(40);
        for (auto* t : {&in.q, &in.k, &in.v, &in.gate, &in.a, &in.b, &in.d_out}) {
          *t = tokens_of(*t, i);
        }
        for (auto* t : {&in.initial_state, &in.d_final_state}) *t = state_of(*t, i);
        auto to = x.gradients();
        for (auto* t : {&to.q, &to.k, &to.v, &to.gate, &to.a, &to.b}) *t = tokens_of(*t, i);
        to.initial_state = state_of(to.initial_state, i);
        backward(in, to);
        for (index u = 0; u < d_bonus.size(); ++u) d_bonus.data()[u] += x.d_bonus.data()[u];
      }
      x.d_bonus = d_bonus;
    };
    run_parts(want, [](const auto& in, const auto& to) { heed::naive_dplr_backward(in, to); });
    run_parts(alone, [](const auto& in, const auto& to) { heed::dplr_backward(in, to); });
    EXPECT_LE(got.error_from(want), 1e-12);
    EXPECT_EQ(got.error_from(alone), 0);
  }
}

TEST(LowRankBackward, NarrowRowsAreWidenedAndRoundedOnce) {
  using T = heed::bfloat16;
  for (const low_rank_shape& s : low_rank_kinds(1, 90, 5, 9)) {
    SCOPED_TRACE(testing::Message() << s.gated << s.low << s.bonus);
    low_rank_problem<float> x(s);
    for (auto* t : {&x.q, &x.k, &x.v, &x.gate, &x.a, &x.b, &x.d_out}) round_to<T>(*t);
    x.run(64);
    const auto q = narrowed<T>(x.q), k = narrowed<T>(x.k), v = narrowed<T>(x.v),
               gate = narrowed<T>(x.gate), a = narrowed<T>(x.a), b = narrowed<T>(x.b),
               d_out = narrowed<T>(x.d_out);
    const auto wide = x.inputs(64);
    heed::dplr_backward_inputs<T> in{heed::as_view(q), heed::as_view(k), heed::as_view(v)};
    numbers<T> dq(q.extents()), dk(k.extents()), dv(v.extents()), dg(k.extents()), da(k.extents()),
        db(k.extents());
    heed::tensor<float, 2> d_bonus(x.bonus.extents());
    heed::dplr_gradients<T> to{heed::as_view(dq), heed::as_view(dk), heed::as_view(dv)};
    if (s.gated) in.gate = heed::as_view(gate);
    if (s.gated) to.gate = heed::as_view(dg);
    if (s.low) in.a = heed::as_view(a);
    if (s.low) in.b = heed::as_view(b);
    if (s.low) to.a = heed::as_view(da);
    if (s.low) to.b = heed::as_view(db);
    if (s.bonus) to.bonus = heed::as_view(d_bonus);
    in.bonus = wide.bonus;
    in.initial_state = wide.initial_state;
    in.d_out = heed::as_view(d_out);
    in.d_final_state = wide.d_final_state;
    in.scale = wide.scale;
    heed::dplr_backward(in, to);
    expect_same_bits(dq, narrowed<T>(x.dq));
    expect_same_bits(dk, narrowed<T>(x.dk));
    expect_same_bits(dv, narrowed<T>(x.dv));
    if (s.gated) expect_same_bits(dg, narrowed<T>(x.d_gate));
    if (s.low) expect_same_bits(da, narrowed<T>(x.da));
    if (s.low) expect_same_bits(db, narrowed<T>(x.db));
    if (s.bonus) expect_same_bits(d_bonus, x.d_bonus);
  }
}

TEST(LowRankBackward, RefusesWhatDoesNotFit) {
  low_rank_problem<float> x({1, 2, 4, 3, 5, true, true, false, 2});
  const auto refused = [&](auto&& change) {
    auto in = x.inputs(64);
    auto to = x.gradients();
    change(in, to);
    EXPECT_ANY_THROW(heed::dplr_backward(in, to));
    for (index i = 0; i < x.dk.size(); ++i)
      ASSERT_EQ(x.dk.data()[i], 0) << "written before checked";
  };
  refused([](auto& in, auto&) { in.b = {}; });
  refused([](auto& in, auto&) { in.a = in.v; });
  refused([](auto& in, auto&) { in.gate = {}; });  // whose gradient is wanted
  refused([](auto& in, auto&) { in.k = in.k.slice(1, 0, 1); });
  refused([](auto& in, auto&) { in.q = in.q.slice(1, 0, 3); });
  refused([](auto& in, auto&) { in.scale = std::numeric_limits<double>::infinity(); });
  refused([&](auto&, auto& to) { to.bonus = heed::as_view(x.d_bonus); });
  refused([](auto&, auto& to) { to.v = to.v.slice(2, 0, 3); });
}

}  // namespace
