// SPDX-License-Identifier: MIT
// The gradient of a diagonal plus low rank, and of RWKV-6 and 7, a chunk of tokens at a time.
//
// Two pairs are written, k_j v_j' and b_j x_j', where x_i = S_(i-1)'a_i is what a_i reads of the state
// before its token; q_i reads it after the write, or with a bonus before. With P, S, H as in
// chunk_gradient.hpp, y_i the gradient of x_i, and (w_j, z_j) for either pair:
//
//   x_i  = (P_(i-1) S)'a_i + sum_{j<i} sum_pairs a_i.(P_(i-1)j w_j) z_j
//   dz_j = H'(P_Cj w_j) + sum_{i>=j} scale q_i.(P_ij w_j) e_i + sum_{i>j} a_i.(P_(i-1)j w_j) y_i
//   dw_j = P_Cj H z_j   + sum_{i>=j} scale e_i.z_j P_ij q_i   + sum_{i>j} y_i.z_j P_(i-1)j a_i
//   da_i = P_(i-1) S y_i + sum_{j<i} sum_pairs y_i.z_j P_(i-1)j w_j,   dq_i likewise of e_i
//   H    = P_C H + sum_i (scale P_i q_i e_i' + P_(i-1) a_i y_i')
//
// y is solved from the last token: y_j = dx_j, of which the third term is known by then. Gates as
// in chunk_gradient.hpp: what is read before token i crosses the tokens before i alone.
#pragma once

#include <algorithm>
#include <array>

#include "heed/core/target.hpp"
#include "heed/linear/matrix_state/backward/chunk_gradient.hpp"

namespace heed::inline HEED_TARGET::detail {

template <class A>
class low_rank_gradient : public matrix_gradient<A> {
  using base = matrix_gradient<A>;
  using base::add_rows, base::dot, base::begin_gates, base::end_gates;
  using base::begin_writes, base::more_writes, base::write_waiting, base::find_solved;
  using base::in, base::load, base::store, base::load_keys, base::scale_pairs, base::write_state;
  using base::in_, base::by_channel_, base::low_, base::longest_, base::rows_, base::d_, base::c_;

 public:
  explicit low_rank_gradient(const gradient_call<A>& call)
      : base(call), bonus_(has_data(call.bonus)) {}

  struct scratch_type : base::scratch_type {
    matrix_rows<A> reads, writes, writes_t, d_writes;  // a; b, also as columns; db
    matrix_rows<A> v, vt, dv, decayed;
    matrix_rows<A> met_keys, n;  // pairs of a and k, of all tokens and of a chunk
    A *bonus, *d_bonus;
  };
  [[nodiscard]] scratch_type allocate(arena& c) const noexcept {
    const auto take = [&c](index rows, index columns) {
      return matrix_rows<A>{c.allocate<A>(rows, columns), columns};
    };
    scratch_type s{base::allocate(c), {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, nullptr, nullptr};
    for (matrix_rows<A>* x : {&s.reads, &s.d_writes, &s.decayed}) *x = take(rows_, d_);
    s.writes_t = take(d_, rows_);
    s.v = s.x;
    s.dv = take(rows_, c_);
    s.vt = take(c_, rows_);
    s.met_keys = take(low_ ? round_up(longest_, rows_) : 0, rows_);
    s.bonus = c.allocate<A>(d_);
    return s;
  }
  void allocate_sums(arena& c) noexcept { sums_ = c.allocate<A>(bonus_ ? base::tasks() : 0, d_); }

  void run(index task, scratch_type& s) const noexcept {
    if (bonus_) {
      s.d_bonus = sums_ + task * d_;
      std::fill_n(s.d_bonus, d_, A(0));
      std::fill_n(s.bonus, d_, A(0));
      for (index f = 0; f < in_.key_channels(); ++f) s.bonus[f] = in_.bonus(task % in_.heads(), f);
    }
    base::run_chunks(
        task, s,
        [&](const chunk_place& at, bool again, bool write) noexcept {
          advance(at, again, write, s);
        },
        [&](const chunk_place& at) noexcept { reverse(at, s); });
  }

  [[nodiscard]] index sum_tasks() const noexcept { return has_data(in_.d_bonus) ? in_.heads() : 0; }
  /// A head's, over the batch.
  void sum(index h) const noexcept {
    for (index f = 0; f < in_.key_channels(); ++f) {
      A total = A(0);
      for (index task = h; task < base::tasks(); task += in_.heads()) {
        total += sums_[task * d_ + f];
      }
      in_.d_bonus(h, f) = total;
    }
  }

 private:
  /// x_i times P_i, or P_(i-1).
  void decay_rows(matrix_rows<A> x, index n, bool before, const scratch_type& s) const noexcept {
    if (!by_channel_) return;
    const index late = before ? 1 : 0;
    for (index i = late; i < n; ++i) {
      multiply_by(x[i], static_cast<const A*>(s.prefix.channel[i - late]), d_);
    }
  }
  /// w_ij = scale x_i.(P_ij k_j) for j <= i, or P_(i-1)j for j < i.
  void weights(matrix_rows<A> x, matrix_rows<A> k, matrix_rows<A> kt, A scale, bool before, index n,
               matrix_rows<A> w, scratch_type& s) const noexcept {
    const std::array<meeting_rows<A>, 1> meet{meeting_rows<A>{in(x), w}};
    prefetch_stream none;
    if (!by_channel_) {
      causal_weights<A>(in(x), in(kt), in_.key_channels(), n, w, none);
    } else if (before) {
      decayed_pairs<A, true, 1>(meet, in(k), in(s.decay), d_, n, s.decayed, s.parts);
    } else {
      decayed_pairs<A, false, 1>(meet, in(k), in(s.decay), d_, n, s.decayed, s.parts);
    }
    scale_pairs(w, scale, before, n, s);
  }

  /// Keys, values and decays; b and x, which follow keys and values at once, and a where wanted.
  void load_chunk(const chunk_place& at, bool reads, bool solved, scratch_type& s) const noexcept {
    const index n = at.tokens.size();
    load_keys(at, s);
    load(in_.v, at, at.head, s.v);
    if (!low_) return;
    s.writes = {s.k[n], d_};
    s.x = {s.v[n], c_};
    find_solved(at, s);
    s.n = {s.met_keys[at.row], rows_};
    load(in_.b, at, at.head, s.writes);
    if (reads) load(in_.a, at, at.head, s.reads);
    if (!solved) return;
    for (index i = 0; i < n; ++i) std::copy_n(s.r[i], c_, s.x[i]);
  }
  void turn_keys(index n, scratch_type& s) const noexcept {
    if (by_channel_) return;
    transpose_rows(in(s.k), round_up(n, simd::lanes<A>), d_, s.kt);
    if (low_) transpose_rows(in(s.writes), round_up(n, simd::lanes<A>), d_, s.writes_t);
  }
  /// The pairs of a, and x.
  void solve_reads(const chunk_place& at, scratch_type& s) const noexcept {
    const index n = at.tokens.size();
    turn_keys(n, s);
    weights(s.reads, s.writes, s.writes_t, A(1), true, n, s.m, s);
    weights(s.reads, s.k, s.kt, A(1), true, n, s.n, s);
    for (index i = 0; i < n; ++i) std::copy_n(s.reads[i], d_, s.a[i]);
    decay_rows(s.a, n, true, s);
    prefetch_stream none;
    solve_rows<A, true>(
        in(s.a), in(s.state), in_.key_channels(), in(s.m), in(s.n), in(s.v), n, c_, s.x, none,
        [](index, index, const simd::packet<A>& u) HEED_INLINE_LAMBDA { return u; });
    for (index i = 0; i < n; ++i) std::copy_n(s.x[i], c_, s.r[i]);
  }

  void advance(const chunk_place& at, bool again, bool write, scratch_type& s) const noexcept {
    if (!write && !low_) return;
    const index n = at.tokens.size();
    load_chunk(at, !again, again, s);
    if (low_ && !again) solve_reads(at, s);
    if (!write) return;
    s.suffix.apply(s.k, n, d_);
    if (low_) s.suffix.apply(s.writes, n, d_);
    // Both pairs at once where they are few.
    const bool both = low_ && 2 * n <= token_chunk;
    write_state(s.k, s.v, s.whole, both ? 2 * n : n, s.state, s.state_low);
    if (low_ && !both) write_state(s.writes, s.x, s.ones, n, s.state, s.state_low);
  }

  /// The gradients of a chunk; s.turned is S', s.back H, which becomes that of S.
  void reverse(const chunk_place& at, scratch_type& s) const noexcept {
    const index n = at.tokens.size();
    const bool gated = in_.d_gate.copy != nullptr;
    load_chunk(at, true, true, s);
    turn_keys(n, s);
    transpose_rows(in(s.back), d_, c_, s.back_turned);
    begin_pair(s.k, s.v, n, s.vt, s.dk, s.dv, s);
    if (gated) begin_gates(n, s);
    if (low_) {
      begin_pair(s.writes, s.x, n, s.xt, s.d_writes, s.dx, s);
      for (index i = 0; gated && i < n; ++i) {
        add_products<A>(s.writes[i], s.d_writes[i], s.carry[i], d_);
      }
    }
    const A* decay = s.whole;  // of H, once
    begin_writes(s);
    for (index q = at.head * in_.group(); q < (at.head + 1) * in_.group(); ++q) {
      if (!in_.d_out.present()) {
        for (index i = 0; i < n; ++i) std::fill_n(s.dq[i], d_, A(0));
      } else {
        const matrix_rows<A> left = more_writes(n, decay, s);
        load(in_.q, at, q, s.q);
        load(in_.d_out, at, q, s.e);
        add_read_values(s.k, s.kt, s.dv, n, s);
        if (low_) add_read_values(s.writes, s.writes_t, s.dx, n, s);
        reverse_reads(s.q, in_.scale, bonus_, n, gated, left, s);
        if (bonus_) add_bonus(n, s);
      }
      store(in_.dq, at, q, s.dq);
    }
    if (low_) {
      const matrix_rows<A> left = more_writes(n, decay, s);
      // s.e = y, from s.dx.
      solve_transposed<A>(in(s.m), n, c_, s.dx, s.e,
                          [](index, const simd::packet<A>& y) HEED_INLINE_LAMBDA { return y; });
      add_lower_transposed<A>(in(s.n), in(s.e), n, in_.value_channels(), s.dv);
      reverse_reads(s.reads, A(1), true, n, gated, left, s);
      store(in_.da, at, at.head, s.dq);
      store(in_.db, at, at.head, s.d_writes);
    }
    write_waiting(decay, s);
    store(in_.dk, at, at.head, s.dk);
    store(in_.dv, at, at.head, s.dv);
    if (gated) end_gates(at, s);
  }

  /// What H gives to a pair, and its values as columns.
  void begin_pair(matrix_rows<A> k, matrix_rows<A> x, index n, matrix_rows<A> xt, matrix_rows<A> dk,
                  matrix_rows<A> dx, scratch_type& s) const noexcept {
    const index d = in_.key_channels(), c = in_.value_channels();
    transpose_rows(in(x), round_up(n, simd::lanes<A>), c_, xt);
    product<A>(in(x), in(s.back_turned), c, n, d, dk);
    s.suffix.apply(dk, n, d_);
    for (index i = 0; i < n; ++i) std::copy_n(k[i], d_, s.a[i]);
    s.suffix.apply(s.a, n, d_);
    product<A>(in(s.a), in(s.back), d, n, c, dx);
  }
  /// What the queries' cotangents s.e give to a pair's values.
  void add_read_values(matrix_rows<A> k, matrix_rows<A> kt, matrix_rows<A> dx, index n,
                       scratch_type& s) const noexcept {
    weights(s.q, k, kt, in_.scale, bonus_, n, s.w, s);
    add_lower_transposed<A>(in(s.w), in(s.e), n, in_.value_channels(), dx);
  }

  /// Rows x that read with cotangents s.e: s.dq becomes their gradients; the pairs' keys and the gates
  /// receive theirs, H by way of `left`.
  void reverse_reads(matrix_rows<A> x, A scale, bool before, index n, bool gated,
                     matrix_rows<A> left, scratch_type& s) const noexcept {
    product<A>(in(s.e), in(s.turned), in_.value_channels(), n, in_.key_channels(), s.dq);
    decay_rows(s.dq, n, before, s);
    for (index i = 0; i < n; ++i) {
      multiply_by(s.dq[i], scale, d_);
      const index last = before ? i - 1 : i;  // the last token it crosses
      if (gated && last >= 0) add_products<A>(x[i], s.dq[i], s.past[last], d_);
    }
    reverse_pairs(x, s.k, s.vt, s.dk, scale, before, n, gated, s);
    if (low_) reverse_pairs(x, s.writes, s.xt, s.d_writes, scale, before, n, gated, s);
    for (index i = 0; i < n; ++i) {
      std::copy_n(x[i], d_, left[i]);
      multiply_by(left[i], scale, d_);
    }
    decay_rows(left, n, before, s);
  }
  void reverse_pairs(matrix_rows<A> x, matrix_rows<A> k, matrix_rows<A> values_t, matrix_rows<A> dk,
                     A scale, bool before, index n, bool gated, scratch_type& s) const noexcept {
    prefetch_stream none;
    const index d = in_.key_channels();
    causal_weights<A>(in(s.e), in(values_t), in_.value_channels(), n, s.b, none);
    scale_pairs(s.b, scale, before, n, s);
    const matrix_rows<A> rect = gated ? s.rect : matrix_rows<A>{};
    if (!by_channel_) {
      add_lower<A>(in(s.b), in(k), n, d, s.dq);
      add_lower_transposed<A>(in(s.b), in(x), n, d, dk);
    } else if (before) {
      decayed_pair_gradients<A, channel_chunk, true>(in(s.b), in(x), in(k), in(s.decay), n, d_,
                                                     s.dq, dk, rect);
    } else {
      decayed_pair_gradients<A, channel_chunk>(in(s.b), in(x), in(k), in(s.decay), n, d_, s.dq, dk,
                                               rect);
    }
  }

  /// The current token's pair, which q reads times u: s.dq, s.dk, s.dv and the bonus' gradient.
  void add_bonus(index n, scratch_type& s) const noexcept {
    using packet = simd::packet<A>;
    constexpr index lanes = simd::lanes<A>;
    for (index i = 0; i < n; ++i) {
      packet read = simd::zero<A>();
      const packet w = simd::broadcast(in_.scale * dot(s.v[i], s.e[i], c_));
      for (index f = 0; f < d_; f += lanes) {
        const packet u = simd::load<A>(s.bonus + f);
        const packet q = simd::load<A>(s.q[i] + f), k = simd::load<A>(s.k[i] + f);
        const packet uw = simd::mul(u, w), qk = simd::mul(q, k);
        read = simd::fmadd(u, qk, read);
        simd::store(s.dq[i] + f, simd::fmadd(uw, k, simd::load<A>(s.dq[i] + f)));
        simd::store(s.dk[i] + f, simd::fmadd(uw, q, simd::load<A>(s.dk[i] + f)));
        simd::store(s.d_bonus + f, simd::fmadd(w, qk, simd::load<A>(s.d_bonus + f)));
      }
      add_rows(s.e[i], s.dv[i], c_, in_.scale * simd::sum(read));
    }
  }

  bool bonus_;
  A* sums_ = nullptr;  // of the tasks: the bonus'
};

}  // namespace heed::inline HEED_TARGET::detail
