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
  using base::in, base::each_chunk, base::load, base::store, base::load_state, base::store_state;
  using base::in_, base::given_, base::to_, base::scale_, base::by_channel_, base::delta_;
  using base::load_chunk, base::pair_weights, base::scale_pairs, base::advance, base::write_state;
  using base::step_, base::keep_, base::rows_, base::d_, base::c_;

 public:
  using base::base;
  using typename base::scratch_type;

  /// One state head of one batch.
  void run(index task, scratch_type& s) const noexcept {
    run_chunks(
        task, s, [&](index b, index h, range t) noexcept { advance(b, h, t, s); },
        [&](index b, index h, range t) noexcept { reverse(b, h, t, s); });
  }

 protected:
  /// advance(b, h, tokens) leaves the state after them in s.state; reverse(b, h, tokens), with that
  /// before them there, makes their gradients.
  template <class Advance, class Reverse>
  void run_chunks(index task, scratch_type& s, const Advance& forward,
                  const Reverse& back) const noexcept {
    const index b = task / in_.k.extent(1), h = task % in_.k.extent(1), size = d_ * c_;
    const index tokens = in_.k.extent(2);
    std::fill_n(s.ones, d_, A(1));
    load_state(in_.initial_state, b, h, s.state, s.state_low);
    for (index first = 0; first < tokens; first += keep_) {
      std::copy_n(s.state.data, size, s.kept + first / keep_ * size);
      if (first + keep_ < tokens) {
        each_chunk(first, [&](range t) { forward(b, h, t); });
      }
    }
    load_state(given_.final_state, b, h, s.back, s.back_low);
    for (index first = (ceil_div(tokens, keep_) - 1) * keep_; first >= 0; first -= keep_) {
      std::copy_n(s.kept + first / keep_ * size, size, s.state.data);
      base::clear_low(s.state_low);
      each_chunk(first, [&](range t) {
        std::copy_n(s.state.data, size, s.inner + (t.begin - first) / step_ * size);
        if (t.end < (std::min)(tokens, first + keep_)) forward(b, h, t);
      });
      const index last = (std::min)(tokens, first + keep_) - first;
      for (index at = (ceil_div(last, step_) - 1) * step_; at >= 0; at -= step_) {
        std::copy_n(s.inner + at / step_ * size, size, s.state.data);
        back(b, h, range{first + at, (std::min)(first + last, first + at + step_)});
      }
    }
    store_state(b, h, s.back);
  }

  /// The gradients of a chunk; s.state is S, s.back H, which becomes that of S.
  void reverse(index b, index h, range t, scratch_type& s) const noexcept {
    const index n = t.size(), d = in_.k.extent(3), c = in_.v.extent(3);
    const bool gated = to_.gate.data() != nullptr;
    load_chunk(b, h, t, s);
    transpose_rows(in(s.x), round_up(n, simd::lanes<A>), c_, s.xt);
    transpose_rows(in(s.state), d_, c_, s.turned);
    transpose_rows(in(s.back), d_, c_, s.back_turned);
    product<A>(in(s.x), in(s.back_turned), c, n, d, s.dk);
    s.suffix.apply(s.dk, n, d_);
    if (gated) begin_gates(n, s);
    for (index i = 0; i < n; ++i) std::copy_n(s.k[i], d_, s.a[i]);
    s.suffix.apply(s.a, n, d_);
    product<A>(in(s.a), in(s.back), d, n, c, s.dx);

    const A* decay = s.whole;  // of H, once
    const index group = in_.q.extent(1) / in_.k.extent(1);
    for (index q = h * group; q < (h + 1) * group; ++q) {
      if (given_.out.data() == nullptr) {
        for (index i = 0; i < n; ++i) std::fill_n(s.dq[i], d_, A(0));
      } else {
        load(in_.q, b, q, t, s.q);
        load(given_.out, b, q, t, s.e);
        reverse_stream(s.q, scale_, false, n, decay, gated, s);
        add_lower_transposed<A>(in(s.w), in(s.e), n, c, s.dx);
        decay = s.ones;
      }
      store(to_.q, b, q, t, s.dq);
    }
    if (delta_) {
      reverse_solve(b, h, t, s);
      reverse_stream(s.k, A(1), true, n, decay, gated, s);
      decay = s.ones;
      for (index i = 0; i < n; ++i) add_rows(s.dq[i], s.dk[i], d_);
    }
    if (decay == s.whole) write_state(s.k, s.x, decay, 0, s.back, s.back_low);
    store(to_.k, b, h, t, s.dk);
    if (!delta_) store(to_.v, b, h, t, s.dx);
    if (gated) end_gates(b, h, t, s);
  }

  /// A stream of rows x with cotangents s.e: s.dq becomes their gradients, s.w their weights; the
  /// keys' gradients, the gates' and H receive theirs.
  void reverse_stream(matrix_rows<A> x, A scale, bool strict, index n, const A* decay, bool gated,
                      scratch_type& s) const noexcept {
    const index d = in_.k.extent(3), c = in_.v.extent(3);
    prefetch_stream none;
    pair_weights(in(x), scale, strict, n, s.w, s);
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
      if (gated) add_crossing_pairs(n, s);
      scale_pairs(s.b, scale, strict, n, s);
      add_lower<A>(in(s.b), in(s.k), n, d, s.dq);
      add_lower_transposed<A>(in(s.b), in(x), n, d, s.dk);
    }
    for (index i = 0; i < n; ++i) {
      std::copy_n(x[i], d_, s.a[i]);
      multiply_by(s.a[i], scale, d_);
    }
    s.prefix.apply(s.a, n, d_);
    write_state(s.a, s.e, decay, n, s.back, s.back_low);
  }

  /// dv and dbeta from dx, and the cotangents of the keys' stream: s.e = -z.
  void reverse_solve(index b, index h, range t, scratch_type& s) const noexcept {
    for (index i = t.size(); i-- > 0;) {
      A sum = A(0);
      for (index c = 0; c < in_.v.extent(3); ++c) sum += s.dx[i][c] * s.r[i][c];
      s.column[i] = sum;
      std::copy_n(s.dx[i], c_, s.z[i]);
      multiply_by(s.z[i], s.beta[i], c_);
      std::copy_n(s.z[i], c_, s.e[i]);
      multiply_by(s.e[i], A(-1), c_);
      for (index j = 0; j < i; ++j) add_rows(s.e[i], s.dx[j], c_, s.m[i][j]);
    }
    store(to_.v, b, h, t, s.z);
    store(to_.beta, b, h, t, {s.column, 1});
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
    for (index f = 0; f < d_; ++f) {
      auto sum = simd::zero<A>();
      for (index c = 0; c < c_; c += simd::lanes<A>) {
        sum = simd::fmadd(simd::load<A>(s.state[f] + c), simd::load<A>(s.back[f] + c), sum);
      }
      s.through[f] = s.whole[f] * simd::sum(sum);
    }
  }
  /// Pairs i >= t > j by gates of tokens: from s.w and the products e_i.x_j in s.b.
  void add_crossing_pairs(index n, scratch_type& s) const noexcept {
    std::fill_n(s.column, rows_, A(0));
    for (index i = n; i-- > 1;) {
      A sum = A(0);
      for (index j = 0; j < i; ++j) {
        s.column[j] += s.w[i][j] * s.b[i][j];
        sum += s.column[j];
      }
      s.rect.data[i] += sum;
    }
  }
  void end_gates(index b, index h, range t, scratch_type& s) const noexcept {
    const index n = t.size(), width = by_channel_ ? d_ : 1;
    const matrix_rows<A> to{s.rect.data, by_channel_ ? s.rect.stride : 1};
    if (!by_channel_) {  // of all channels
      const auto total = [&](const A* row) {
        A sum = A(0);
        for (index f = 0; f < in_.k.extent(3); ++f) sum += row[f];
        return sum;
      };
      for (index i = 0; i < n; ++i) {
        s.past[i][0] = total(s.past[i]);
        s.carry[i][0] = total(s.carry[i]);
      }
      s.through[0] = total(s.through);
    }
    for (index f = 0; f < width; ++f) {
      A sum = s.through[f];
      for (index i = n; i-- > 0;) {
        sum += s.past[i][f];
        to[i][f] += sum;
      }
      sum = A(0);
      for (index i = 0; i < n; ++i) {
        to[i][f] += sum;
        sum += s.carry[i][f];
      }
    }
    store(to_.gate, b, h, t, to);
  }
};

}  // namespace heed::inline HEED_TARGET::detail
