// SPDX-License-Identifier: MIT
// What the gradient of a chunk of tokens works on: the chunk's rows and decays, the weights of its
// pairs, and the state after it. The arithmetic of the gradient is in chunk_gradient.hpp.
#pragma once

#include <algorithm>
#include <array>

#include "heed/core/target.hpp"
#include "heed/core/workspace.hpp"
#include "heed/linear/matrix_state/backward/arguments.hpp"
#include "heed/linear/matrix_state/backward/chunk_products.hpp"
#include "heed/linear/matrix_state/token_input.hpp"

namespace heed::inline HEED_TARGET::detail {

/// Chunks of so many tokens at most: 16 where decays differ by channel, as in the forward pass.
inline constexpr int channel_chunk = 16;
inline constexpr int token_chunk = 64;

template <class A>
class gradient_chunks {
 public:
  gradient_chunks(const matrix_state_inputs<A>& in, const matrix_state_cotangents<A>& given,
                  const matrix_state_gradients<A>& to, A scale)
      : in_(in),
        given_(given),
        to_(to),
        scale_(scale),
        by_channel_(in.gate.data() != nullptr && in.gate.extent(3) != 1),
        delta_(in.beta.data() != nullptr),
        step_(std::clamp<index>(in.chunk, 1, by_channel_ ? channel_chunk : token_chunk)),
        keep_(round_up(std::clamp(in.chunk, step_, (std::max)(in.k.extent(2), step_)), step_)),
        rows_(padded(step_)),
        d_(padded(in.k.extent(3))),
        c_(padded(in.v.extent(3))) {}

  struct scratch_type {
    matrix_rows<A> q, k, a, x, r, z, e, kt, xt;  // of the tokens; kt, xt: as columns
    matrix_rows<A> w, b, m, decay;  // of pairs; decay: of the channels, where they differ
    matrix_rows<A> dq, dk, dx;
    matrix_rows<A> past, carry, rect;  // gates: S to queries, keys to H, pairs; rect of tokens
    A *step, *beta, *prefix_number, *suffix_number, *column, *whole, *ones, *through, *parts;
    row_decays<A> prefix, suffix;                     // P_i and P_Cj
    matrix_rows<A> state, back, turned, back_turned;  // S, H and their transposes
    matrix_rows<A> state_low, back_low;               // what roundings have taken from S and H
    A* kept;                                          // S every keep_ tokens
    A* inner;                                         // and every step_ tokens of one of these
  };

  [[nodiscard]] index tasks() const noexcept { return in_.k.extent(0) * in_.k.extent(1); }

  [[nodiscard]] scratch_type allocate(arena& c) const noexcept {
    const auto take = [&c](index rows, index columns) {
      return matrix_rows<A>{c.allocate<A>(rows * columns), columns};
    };
    scratch_type s{};
    for (matrix_rows<A>* x : {&s.q, &s.k, &s.a, &s.dq, &s.dk, &s.past, &s.carry}) {
      *x = take(rows_, d_);
    }
    for (matrix_rows<A>* x : {&s.x, &s.r, &s.z, &s.e, &s.dx}) *x = take(rows_, c_);
    s.kt = take(d_, rows_);
    s.xt = take(c_, rows_);
    for (matrix_rows<A>* x : {&s.w, &s.b, &s.m}) *x = take(rows_, rows_);
    s.decay = take(rows_, by_channel_ ? d_ : rows_);
    s.rect = take(rows_, by_channel_ ? d_ : simd::lanes<A>);
    for (A** x : {&s.step, &s.beta, &s.prefix_number, &s.suffix_number, &s.column}) {
      *x = c.allocate<A>(rows_);
    }
    for (A** x : {&s.whole, &s.ones, &s.through}) *x = c.allocate<A>(d_);
    s.parts = c.allocate<A>(by_channel_ ? pair_numbers<A>(step_) : 0);
    s.prefix = {by_channel_, s.prefix_number, take(by_channel_ ? rows_ : 0, d_)};
    s.suffix = {by_channel_, s.suffix_number, take(by_channel_ ? rows_ : 0, d_)};
    s.state = take(d_, c_);
    s.back = take(d_, c_);
    s.turned = take(c_, d_);
    s.back_turned = take(c_, d_);
    // As in the forward pass, where a sequence is long enough to lose digits.
    if (in_.k.extent(2) > 16 * step_) {
      s.state_low = take(d_, c_);
      s.back_low = take(d_, c_);
    }
    s.kept = c.allocate<A>(ceil_div(in_.k.extent(2), keep_), d_, c_);
    s.inner = c.allocate<A>(keep_ / step_, d_, c_);
    return s;
  }

 protected:
  [[nodiscard]] static constexpr index padded(index n) noexcept {
    return round_up((std::max)(n, index{1}), simd::lanes<A>);
  }
  [[nodiscard]] static matrix_rows<const A> in(matrix_rows<A> x) noexcept {
    return {x.data, x.stride};
  }
  template <class F>
  void each_chunk(index first, F&& f) const noexcept {
    const index end = (std::min)(in_.k.extent(2), first + keep_);
    for (index t = first; t < end; t += step_) f(range{t, (std::min)(t + step_, end)});
  }
  /// No roundings so far.
  void clear_low(matrix_rows<A> low) const noexcept {
    if (low.data != nullptr) std::fill_n(low.data, d_ * c_, A(0));
  }
  void load_state(const view<const A, 4>& from, index b, index h, matrix_rows<A> to,
                  matrix_rows<A> low) const noexcept {
    clear_low(low);
    std::fill_n(to.data, d_ * c_, A(0));
    if (from.data() == nullptr) return;
    for (index f = 0; f < from.extent(2); ++f) {
      for (index c = 0; c < from.extent(3); ++c) to[f][c] = from(b, h, f, c);
    }
  }
  void store_state(index b, index h, matrix_rows<A> from) const noexcept {
    if (to_.initial_state.data() == nullptr) return;
    for (index f = 0; f < to_.initial_state.extent(2); ++f) {
      for (index c = 0; c < to_.initial_state.extent(3); ++c) {
        to_.initial_state(b, h, f, c) = from[f][c];
      }
    }
  }
  void load(const view<const A, 4>& x, index b, index h, range t,
            matrix_rows<A> to) const noexcept {
    make_token_input<A>(x).load(b, h, x.extent(1), t, to);
  }
  static void store(const view<A, 4>& x, index b, index h, range t, matrix_rows<A> from) noexcept {
    if (x.data() != nullptr) make_token_output<A>(x).store(b, h, t, in(from));
  }

  /// Keys, what is written, and the decays; of the delta rule also a_ij, r and x.
  void load_chunk(index b, index h, range t, scratch_type& s) const noexcept {
    const index n = t.size();
    load(in_.k, b, h, t, s.k);
    load(in_.v, b, h, t, delta_ ? s.r : s.x);
    load_decays(b, h, t, s);
    if (!by_channel_) transpose_rows(in(s.k), round_up(n, simd::lanes<A>), d_, s.kt);
    if (!delta_) return;
    make_token_input<A>(in_.beta).load_numbers(b, h, in_.beta.extent(1), t, s.beta);
    pair_weights(in(s.k), A(1), true, n, s.m, s);
    for (index i = 0; i < n; ++i) std::copy_n(s.k[i], d_, s.a[i]);
    s.prefix.apply(s.a, n, d_);
    prefetch_stream none;
    solve_rows<A, false>(in(s.a), in(s.state), in_.k.extent(3), in(s.m), {}, {}, n, c_, s.x, none,
                         [&](index i, index c, const simd::packet<A>& u) HEED_INLINE_LAMBDA {
                           const auto rest = simd::sub(simd::load<A>(s.r[i] + c), u);
                           simd::store(s.r[i] + c, rest);
                           return simd::mul(simd::broadcast(s.beta[i]), rest);
                         });
  }
  void load_decays(index b, index h, range t, scratch_type& s) const noexcept {
    const index n = t.size();
    if (by_channel_) {
      load(in_.gate, b, h, t, s.decay);
      for (index i = 0; i < n; ++i) exponentials(s.decay[i], d_, s.decay[i]);
      const matrix_rows<A> p = s.prefix.channel, q = s.suffix.channel;
      for (index i = 0; i < n; ++i) {
        std::copy_n(s.decay[i], d_, p[i]);
        if (i > 0) multiply_by(p[i], static_cast<const A*>(p[i - 1]), d_);
      }
      std::fill_n(q[n - 1], d_, A(1));
      for (index i = n - 1; i-- > 0;) {
        std::copy_n(q[i + 1], d_, q[i]);
        multiply_by(q[i], static_cast<const A*>(s.decay[i + 1]), d_);
      }
      std::copy_n(p[n - 1], d_, s.whole);
      return;
    }
    std::fill_n(s.step, rows_, A(0));
    if (in_.gate.data() != nullptr) {
      make_token_input<A>(in_.gate).load_numbers(b, h, in_.gate.extent(1), t, s.step);
    }
    exponentials(s.step, n, s.step);
    cumulative_decays<A>(s.step, n, s.decay);
    A product = A(1);
    for (index i = 0; i < n; ++i) {
      product *= s.step[i];
      s.prefix_number[i] = product;
      s.suffix_number[i] = s.decay[n - 1][i];
    }
    std::fill_n(s.whole, d_, product);
  }
  /// w_ij = scale x_i.(P_ij k_j) for j <= i, j < i where `strict`; 0 elsewhere.
  void pair_weights(matrix_rows<const A> x, A scale, bool strict, index n, matrix_rows<A> w,
                    scratch_type& s) const noexcept {
    prefetch_stream none;
    if (by_channel_) {
      const std::array<meeting_rows<A>, 1> meet{meeting_rows<A>{x, w}};
      decayed_pairs<A, false, 1>(meet, in(s.k), in(s.decay), d_, n, s.dq, s.parts);
    } else {
      causal_weights<A>(x, in(s.kt), in_.k.extent(3), n, w, none);
    }
    scale_pairs(w, scale, strict, n, s);
  }
  /// Pairs j <= i times `scale` and, of one number a token, P_ij; 0 elsewhere.
  void scale_pairs(matrix_rows<A> w, A scale, bool strict, index n,
                   const scratch_type& s) const noexcept {
    for (index i = 0; i < n; ++i) {
      const index end = strict ? i : i + 1;
      multiply_by(w[i], scale, end);
      if (!by_channel_) multiply_by(w[i], static_cast<const A*>(s.decay[i]), end);
      std::fill_n(w[i] + end, w.stride - end, A(0));
    }
  }

  /// The state after a chunk from that before it.
  void advance(index b, index h, range t, scratch_type& s) const noexcept {
    load_chunk(b, h, t, s);
    s.suffix.apply(s.k, t.size(), d_);
    write_state(s.k, s.x, s.whole, t.size(), s.state, s.state_low);
  }
  void write_state(matrix_rows<A> k, matrix_rows<A> x, const A* decay, index n,
                   matrix_rows<A> state, matrix_rows<A> low) const noexcept {
    prefetch_stream none;
    decay_and_write<A>(in(k), in(x), decay, n, in_.k.extent(3), in_.v.extent(3), state, low, none);
  }

  const matrix_state_inputs<A>& in_;
  const matrix_state_cotangents<A>& given_;
  const matrix_state_gradients<A>& to_;
  A scale_;
  bool by_channel_, delta_;
  index step_, keep_;   // tokens of a chunk, and from one kept state to the next
  index rows_, d_, c_;  // step_, Dk and Dv in whole packets
};

}  // namespace heed::inline HEED_TARGET::detail
