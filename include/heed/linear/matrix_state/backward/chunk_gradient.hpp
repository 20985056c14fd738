// SPDX-License-Identifier: MIT
// The gradient of a recurrence with a matrix state, a chunk of tokens at a time, the last one first.
//
// A chunk of C tokens from the state S, P_i the product of its decays to token i and P_ij that of
// those after j to i; H is the gradient of the state after it, e_i the cotangent of out_i:
//
//   out_i = scale (P_i S)'q_i + sum_{j<=i} w_ij x_j         w_ij = scale q_i.(P_ij k_j)
//   dq_i  = scale P_i S e_i + sum_{j<=i} b_ij P_ij k_j      b_ij = scale e_i.x_j
//   dk_j  = P_Cj H x_j + sum_{i>=j} b_ij P_ij q_i
//   dx_j  = H'(P_Cj k_j) + sum_{i>=j} w_ij e_i              x_j = v_j: dv
//   H     = P_C H + sum_i scale P_i q_i e_i'
//   dg_t  = sum over everything that crosses token t: pairs i >= t > j, S to a query i >= t,
//           a key j < t to H, and S to H
//
// By the delta rule x_i = beta_i r_i, r_i = v_i - (P_i S)'k_i - sum_{j<i} a_ij x_j, a_ij =
// k_i.(P_ij k_j): the keys are one more stream of queries, read before the write, of scale 1 and
// cotangents -z_i, where z solves the transposed system, the last token first:
//
//   y_j = dx_j - sum_{i>j} a_ij z_i,   z_j = beta_j y_j = dv_j,   dbeta_j = y_j.r_j
//
// Nothing divides by a decay, and no sum of gates is a difference: a gate of -inf makes exact zeros.
// Yang et al. 2023, arXiv 2312.06635, section 4; Yang et al. 2024, arXiv 2406.06484, section 3.
#pragma once

#include <algorithm>

#include "heed/core/target.hpp"
#include "heed/linear/matrix_state/backward/chunk_operands.hpp"

namespace heed::inline HEED_TARGET::detail {

template <class A>
class matrix_gradient : public gradient_chunks<A> {
  using base = gradient_chunks<A>;

 protected:
  using base::in, base::load, base::store, base::load_keys, base::load_written, base::run_chunks;
  using base::in_, base::by_channel_, base::delta_, base::rows_, base::d_, base::c_;
  using base::pair_weights, base::scale_pairs, base::begin_writes, base::more_writes;
  using base::write_waiting;

 public:
  using base::base;
  using typename base::scratch_type;

  /// One state head of one sequence.
  void run(index task, scratch_type& s) const noexcept {
    run_chunks(
        task, s,
        [&](const chunk_place& at, bool again, bool write) noexcept {
          base::advance(at, again, write, s);
        },
        [&](const chunk_place& at) noexcept { reverse(at, s); });
  }
  static void allocate_sums(arena&) noexcept {}
  [[nodiscard]] static index sum_tasks() noexcept { return 0; }
  static void sum(index) noexcept {}

 protected:
  /// The gradients of a chunk; s.turned is S', s.back H, which becomes that of S.
  void reverse(const chunk_place& at, scratch_type& s) const noexcept {
    const index n = at.tokens.size(), d = in_.key_channels(), c = in_.value_channels();
    const bool gated = in_.d_gate.copy != nullptr;
    load_keys(at, s);
    load_written(at, s);
    if (!by_channel_) transpose_rows(in(s.k), round_up(n, simd::lanes<A>), d_, s.kt);
    transpose_rows(in(s.x), round_up(n, simd::lanes<A>), c_, s.xt);
    transpose_rows(in(s.back), d_, c_, s.back_turned);
    product<A>(in(s.x), in(s.back_turned), c, n, d, s.dk);
    s.suffix.apply(s.dk, n, d_);
    if (gated) begin_gates(n, s);
    for (index i = 0; i < n; ++i) std::copy_n(s.k[i], d_, s.a[i]);
    s.suffix.apply(s.a, n, d_);
    product<A>(in(s.a), in(s.back), d, n, c, s.dx);

    const A* decay = s.whole;  // of H, once
    begin_writes(s);
    for (index q = at.head * in_.group(); q < (at.head + 1) * in_.group(); ++q) {
      if (!in_.d_out.present()) {
        for (index i = 0; i < n; ++i) std::fill_n(s.dq[i], d_, A(0));
      } else {
        const matrix_rows<A> left = more_writes(n, decay, s);
        load(in_.q, at, q, s.q);
        load(in_.d_out, at, q, s.e);
        pair_weights(in(s.q), in_.scale, false, n, s.w, s);
        reverse_stream(s.q, s.w, in_.scale, false, n, gated, left, s);
        add_lower_transposed<A>(in(s.w), in(s.e), n, c, s.dx);
      }
      store(in_.dq, at, q, s.dq);
    }
    if (delta_) {
      const matrix_rows<A> left = more_writes(n, decay, s);
      reverse_solve(at, s);
      reverse_stream(s.k, s.m, A(1), true, n, gated, left, s);
      for (index i = 0; i < n; ++i) add_rows(s.dq[i], s.dk[i], d_);
    }
    write_waiting(decay, s);
    store(in_.dk, at, at.head, s.dk);
    if (!delta_) store(in_.dv, at, at.head, s.dx);
    if (gated) end_gates(at, s);
  }

  /// A stream of rows x with cotangents s.e, whose pairs have weights w: s.dq becomes their gradients;
  /// the keys' gradients and the gates' receive theirs, H by way of `left`.
  void reverse_stream(matrix_rows<A> x, matrix_rows<A> w, A scale, bool strict, index n, bool gated,
                      matrix_rows<A> left, scratch_type& s) const noexcept {
    const index d = in_.key_channels(), c = in_.value_channels();
    prefetch_stream none;
    causal_weights<A>(in(s.e), in(s.xt), c, n, s.b, none);
    product<A>(in(s.e), in(s.turned), c, n, d, s.dq);
    s.prefix.apply(s.dq, n, d_);
    for (index i = 0; i < n; ++i) {
      multiply_by(s.dq[i], scale, d_);
      if (gated) add_products<A>(x[i], s.dq[i], s.past[i], d_);
    }
    if (by_channel_) {
      scale_pairs(s.b, scale, strict, n, s);
      decayed_pair_gradients<A, channel_chunk>(in(s.b), in(x), in(s.k), in(s.decay), n, d_, s.dq,
                                               s.dk, gated ? s.rect : matrix_rows<A>{});
    } else {
      if (gated) add_crossing_pairs(w, n, s);
      scale_pairs(s.b, scale, strict, n, s);
      add_lower<A>(in(s.b), in(s.k), n, d, s.dq);
      add_lower_transposed<A>(in(s.b), in(x), n, d, s.dk);
    }
    for (index i = 0; i < n; ++i) {
      std::copy_n(x[i], d_, left[i]);
      multiply_by(left[i], scale, d_);
    }
    s.prefix.apply(left, n, d_);
  }

  /// dv and dbeta from dx, and the cotangents of the keys' stream: s.e = -z.
  void reverse_solve(const chunk_place& at, scratch_type& s) const noexcept {
    const index n = at.tokens.size();
    solve_transposed<A>(in(s.m), n, c_, s.dx, s.e,
                        [&](index i, const simd::packet<A>& y) HEED_INLINE_LAMBDA {
                          return simd::mul(simd::broadcast(-s.beta[i]), y);
                        });
    for (index i = 0; i < n; ++i) {
      s.column[i] = dot(s.dx[i], s.r[i], c_);
      multiply_by(s.dx[i], s.beta[i], c_);
    }
    store(in_.dv, at, at.head, s.dx);
    store(in_.d_beta, at, at.head, {s.column, 1});
  }
  /// Sum of x y, whole packets.
  [[nodiscard]] static A dot(const A* x, const A* y, index count) noexcept {
    auto sum = simd::zero<A>();
    for (index c = 0; c < count; c += simd::lanes<A>) {
      sum = simd::fmadd(simd::load<A>(x + c), simd::load<A>(y + c), sum);
    }
    return simd::sum(sum);
  }
  /// y += by x, whole packets.
  static void add_rows(const A* x, A* y, index count, A by = A(1)) noexcept {
    const auto factor = simd::broadcast(by);
    for (index c = 0; c < count; c += simd::lanes<A>) {
      simd::store(y + c, simd::fmadd(factor, simd::load<A>(x + c), simd::load<A>(y + c)));
    }
  }

  // Gates. What crosses a token is summed apart: S to queries at or past it, keys before it to H,
  // pairs of both, S to H.

  void begin_gates(index n, scratch_type& s) const noexcept {
    for (index i = 0; i < n; ++i) {
      std::fill_n(s.past[i], d_, A(0));
      std::copy_n(s.dk[i], d_, s.carry[i]);
      multiply_by(s.carry[i], static_cast<const A*>(s.k[i]), d_);
    }
    std::fill_n(s.rect.data, rows_ * s.rect.stride, A(0));
    in_steps<4>(d_ / simd::lanes<A>, [&](auto packets, index p) {
      const index f = p * simd::lanes<A>;
      simd::packet<A> sum[std::size_t{decltype(packets)::value}];
      const auto each = [&](auto&& g) HEED_INLINE_LAMBDA {
        simd::unroll<decltype(packets)::value>(
            [&](auto i) HEED_INLINE_LAMBDA { g(sum[i], f + i * simd::lanes<A>); });
      };
      each([&](auto& x, index) HEED_INLINE_LAMBDA { x = simd::zero<A>(); });
      for (index c = 0; c < c_; ++c) {
        const A* const state = s.turned[c];
        const A* const back = s.back_turned[c];
        each([&](auto& x, index i) HEED_INLINE_LAMBDA {
          x = simd::fmadd(simd::load<A>(state + i), simd::load<A>(back + i), x);
        });
      }
      each([&](auto& x, index i) HEED_INLINE_LAMBDA {
        simd::store(s.through + i, simd::mul(simd::load<A>(s.whole + i), x));
      });
    });
  }
  /// Pairs i >= t > j by gates of tokens: from their weights and the products e_i.x_j in s.b.
  void add_crossing_pairs(matrix_rows<A> w, index n, scratch_type& s) const noexcept {
    std::fill_n(s.column, rows_, A(0));
    for (index i = n; i-- > 1;) {
      A sum = A(0);
      for (index j = 0; j < i; ++j) {
        s.column[j] += w[i][j] * s.b[i][j];
        sum += s.column[j];
      }
      s.rect.data[i] += sum;
    }
  }
  void end_gates(const chunk_place& at, scratch_type& s) const noexcept {
    const index n = at.tokens.size();
    const matrix_rows<A> to{s.rect.data, by_channel_ ? s.rect.stride : 1};
    if (by_channel_) {
      for (index f = 0; f < d_; f += simd::lanes<A>) {
        const auto add_to = [&](index i, const simd::packet<A>& x) HEED_INLINE_LAMBDA {
          simd::store(to[i] + f, simd::add(simd::load<A>(to[i] + f), x));
        };
        auto sum = simd::load<A>(s.through + f);
        for (index i = n; i-- > 0;) {
          sum = simd::add(sum, simd::load<A>(s.past[i] + f));
          add_to(i, sum);
        }
        sum = simd::zero<A>();
        for (index i = 0; i < n; ++i) {
          add_to(i, sum);
          sum = simd::add(sum, simd::load<A>(s.carry[i] + f));
        }
      }
    } else {
      const auto total = [&](const A* row) {
        A sum = A(0);
        for (index f = 0; f < in_.key_channels(); ++f) sum += row[f];
        return sum;
      };
      A sum = total(s.through);
      for (index i = n; i-- > 0;) {
        sum += total(s.past[i]);
        to[i][0] += sum;
      }
      sum = A(0);
      for (index i = 0; i < n; ++i) {
        to[i][0] += sum;
        sum += total(s.carry[i]);
      }
    }
    store(in_.d_gate, at, at.head, to);
  }
};

}  // namespace heed::inline HEED_TARGET::detail
