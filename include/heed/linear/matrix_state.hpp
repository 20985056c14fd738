// SPDX-License-Identifier: MIT
// The core of every recurrence with a matrix state S [Dk, Dv]: decay, correction, outer product.
//
//   S_i = diag(d_i) S_{i-1} + write_i,    d_i = exp g_i: 1, a number, or one a key channel
//   write_i  outer     k_i v_i'
//            delta     k_i x_i',            x_i = beta_i (v_i - (diag(d_i) S_{i-1})'k_i)
//            low rank  k_i v_i' + b_i x_i', x_i = S_{i-1}'a_i
//   out_i = scale S_i'q_i,  or before the write: scale (S_{i-1} + diag(u) k_i v_i')'q_i
//
// A chunk, P_i the product of its decays to token i and P_ij that of those after j to i:
//
//   X solves a unit lower triangular system: x_i = (a_i P_{i-1})'S + sum_{j<i} (a_i'P_{i-1,j} b_j)
//   x_j
//   + ..., out_i = (q_i P_i)'S + sum_{j<=i} (q_i'P_ij k_j) v_j + ...,  S = P_C S + sum_j P_Cj k_j
//   v_j'
//
// One number a token: the products q k' first, then the decays of their pairs. One a channel: the
// keys of a short chunk decay where they stand, token by token, and meet each query at its time.
// Sources: Yang et al. 2023, arXiv 2312.06635, section 4 (gated chunks); Yang et al. 2024, arXiv
// 2406.06484, section 3 (the delta rule as a triangular system, after Bischof and Van Loan).
#pragma once

#include <algorithm>

#include "heed/core/types.hpp"
#include "heed/linear/decayed_products.hpp"
#include "heed/linear/matrix_tokens.hpp"

namespace heed {

namespace detail {

template <class A>
struct matrix_recurrence : matrix_tokens<A> {
  using base = matrix_tokens<A>;
  using base::batch_of, base::head_of, base::group, base::state_heads;
  using base::gates, base::writes, base::read_before, base::chunk_tokens;
  using base::k, base::v, base::out, base::bonus, base::scale;
  using base::load, base::load_query, base::finish, base::look_ahead, base::span_of;
  using typename base::scratch_type;

  /// One token, by the formulas on top.
  void step(index head, index token, scratch_type& s) const noexcept {
    const range t{token, token + 1};
    load(head, t, s);
    const index d = k.channels(), columns = padded(v.channels());
    if (gates != gate_kind::per_channel) std::fill_n(s.decay[0], padded(d), A(1));
    if (gates == gate_kind::per_token) std::fill_n(s.decay[0], padded(d), s.step[0]);
    const auto each_row = [&](auto&& f) {
      for (index r = 0; r < d; ++r) f(r);
    };
    if (read_before) answers(head, t, s);
    if (writes != write_kind::outer) {
      std::fill_n(s.x[0], columns, A(0));
      each_row([&](index r) {
        const A by = writes == write_kind::delta ? s.k[0][r] * s.decay[0][r] : s.a[0][r];
        add_multiple(by, s.sum[r], s.x[0], columns);
      });
      if (writes == write_kind::delta) correct(s, 0, columns);
    }
    const A* value = writes == write_kind::delta ? s.x[0] : s.values[0];
    each_row([&](index r) {
      multiply_by(s.sum[r], s.decay[0][r], columns);
      add_multiple(s.k[0][r], value, s.sum[r], columns);
      if (writes == write_kind::low_rank) add_multiple(s.b[0][r], s.x[0], s.sum[r], columns);
    });
    if (!read_before) answers(head, t, s);
  }

  void chunk(index head, range t, scratch_type& s) const noexcept {
    const index n = t.size(), d = k.channels();
    const bool by_channel = gates == gate_kind::per_channel;
    read_ahead ahead;
    look_ahead(ahead, head, {t.end, std::min(t.end + n, span_of(head).end)});
    load(head, t, s);
    if (by_channel) {
      for (index g = 0; g < group(); ++g) load_query(head, g, t, query_rows(s, g));
      decay_by_channel(n, s);
    } else {
      decay_by_products(n, s, ahead);
    }
    solve(n, s, ahead);
    const bool low = writes == write_kind::low_rank;
    const matrix_rows<const A> values = writes == write_kind::delta ? in(s.x) : s.values;
    for (index g = 0; g < group(); ++g) {
      if (!by_channel) {
        load_query(head, g, t, s.q);
        weigh_query(n, s, ahead);
      }
      const index h = head_of(head) * group() + g;
      const matrix_rows<A> o = out.rows(batch_of(head), h, t, s.out);
      const matrix_rows<const A> rows_q = in(by_channel ? query_rows(s, g) : s.q);
      const matrix_rows<const A> w = in(by_channel ? pairs(s.w, g) : s.w);
      const matrix_rows<const A> w2 = in(by_channel && low ? pairs(s.w2, g) : s.w2);
      if (low) {
        answer_chunk<A, true>(rows_q, in(s.sum), d, w, values, w2, in(s.x), scale, n, v.channels(),
                              o, ahead);
      } else {
        answer_chunk<A, false>(rows_q, in(s.sum), d, w, values, {}, {}, scale, n, v.channels(), o,
                               ahead);
      }
      finish(head, h, t, o, s);
    }
    if (low) {
      decay_and_write<A>(in(s.b), in(s.x), s.prefix, n, d, v.channels(), s.sum, ahead);
      std::fill_n(s.prefix, padded(d), A(1));
    }
    decay_and_write<A>(in(s.k), values, s.prefix, n, d, v.channels(), s.sum, ahead);
  }

 private:
  using base::add_multiple, base::in, base::lanes, base::padded;

  [[nodiscard]] matrix_rows<A> query_rows(const scratch_type& s, index g) const noexcept {
    return {s.q[g * padded(chunk_tokens)], s.q.stride};
  }
  [[nodiscard]] matrix_rows<A> pairs(matrix_rows<A> w, index g) const noexcept {
    return {w[g * padded(chunk_tokens)], w.stride};
  }

  /// x = beta (v - x) of one token.
  static void correct(scratch_type& s, index i, index columns) noexcept {
    for (index c = 0; c < columns; c += lanes) {
      simd::store(s.x[i] + c,
                  simd::mul(simd::broadcast(s.beta[i]),
                            simd::sub(simd::load<A>(s.values[i] + c), simd::load<A>(s.x[i] + c))));
    }
  }
  /// q_i'diag(u) k_i.
  [[nodiscard]] A current(const A* query, const A* key, const scratch_type& s) const noexcept {
    A total = A(0);
    if (bonus.present()) {
      for (index f = 0; f < k.channels(); ++f) total += query[f] * s.bonus[f] * key[f];
    }
    return total;
  }

  void answers(index head, range t, scratch_type& s) const noexcept {
    const index columns = padded(v.channels());
    for (index g = 0; g < group(); ++g) {
      load_query(head, g, t, s.q);
      const index h = head_of(head) * group() + g;
      const matrix_rows<A> o = out.rows(batch_of(head), h, t, s.out);
      std::fill_n(o[0], columns, A(0));
      for (index r = 0; r < k.channels(); ++r) add_multiple(s.q[0][r], s.sum[r], o[0], columns);
      if (read_before) add_multiple(current(s.q[0], s.k[0], s), s.values[0], o[0], columns);
      multiply_by(o[0], scale, columns);
      finish(head, h, t, o, s);
    }
  }

  void decay_by_channel(index n, scratch_type& s) const noexcept {
    const index d = padded(k.channels());
    const bool low = writes == write_kind::low_rank;
    std::fill_n(s.prefix, d, A(1));
    for (index i = 0; i < n; ++i) {
      if (low) {
        dot_rows<A>(s.a[i], in(s.b), i, d, s.m[i]);
        dot_rows<A>(s.a[i], in(s.k), i, d, s.n[i]);
        multiply_by(s.a[i], s.prefix, d);
      }
      if (read_before) meet_queries(i, i, d, s);
      multiply_by(s.prefix, s.decay[i], d);
      for (index j = 0; j < i; ++j) multiply_by(s.k[j], s.decay[i], d);
      for (index j = 0; low && j < i; ++j) multiply_by(s.b[j], s.decay[i], d);
      if (writes == write_kind::delta) {
        dot_rows<A>(s.k[i], in(s.k), i, d, s.m[i]);
        std::copy_n(s.k[i], d, s.a[i]);
        multiply_by(s.a[i], s.prefix, d);
      }
      if (!read_before) meet_queries(i, i + 1, d, s);
    }
  }

  void meet_queries(index i, index count, index d, scratch_type& s) const noexcept {
    for (index g = 0; g < group(); ++g) {
      A* query = query_rows(s, g)[i];
      A* w = pairs(s.w, g)[i];
      dot_rows<A>(query, in(s.k), count, d, w);
      if (writes == write_kind::low_rank) {
        dot_rows<A>(query, in(s.b), count, d, pairs(s.w2, g)[i]);
      }
      if (read_before) w[i] = current(query, s.k[i], s);
      multiply_by(query, s.prefix, d);
    }
  }

  void decay_by_products(index n, scratch_type& s, read_ahead& ahead) const noexcept {
    const index d = k.channels();
    const bool gated = gates == gate_kind::per_token, low = writes == write_kind::low_rank;
    turn(s.k, n, s.kt);
    if (low) turn(s.b, n, s.bt);
    if (writes == write_kind::delta) {
      causal_weights<A>(in(s.k), in(s.kt), d, n, s.m, ahead);
      for (index i = 0; i < n; ++i) std::copy_n(s.k[i], padded(d), s.a[i]);
    } else if (low) {
      causal_weights<A>(in(s.a), in(s.bt), d, n, s.m, ahead);
      causal_weights<A>(in(s.a), in(s.kt), d, n, s.n, ahead);
    }
    std::fill_n(s.prefix, padded(d), A(1));
    if (!gated) return;
    running_decays(s.step, n, s.decay);
    if (writes != write_kind::outer) decay_pairs<A>(s.m, in(s.decay), n, low);
    if (low) decay_pairs<A>(s.n, in(s.decay), n, true);
    A before = A(1);
    for (index i = 0; i < n; ++i) {
      const A after = before * s.step[i];
      if (writes != write_kind::outer) multiply_by(s.a[i], low ? before : after, padded(d));
      multiply_by(s.k[i], s.decay[n - 1][i], padded(d));
      if (low) multiply_by(s.b[i], s.decay[n - 1][i], padded(d));
      before = after;
    }
    std::fill_n(s.prefix, padded(d), before);
  }

  void weigh_query(index n, scratch_type& s, read_ahead& ahead) const noexcept {
    const index d = k.channels();
    const bool gated = gates == gate_kind::per_token, low = writes == write_kind::low_rank;
    causal_weights<A>(in(s.q), in(s.kt), d, n, s.w, ahead);
    if (low) causal_weights<A>(in(s.q), in(s.bt), d, n, s.w2, ahead);
    for (index i = 0; read_before && i < n; ++i) {
      A total = A(0);  // the key itself may have decayed by now
      for (index f = 0; bonus.present() && f < d; ++f) {
        total += s.q[i][f] * s.bonus[f] * s.kt[f][i];
      }
      s.w[i][i] = total;
    }
    if (!gated) return;
    decay_pairs<A>(s.w, in(s.decay), n, read_before);
    if (low) decay_pairs<A>(s.w2, in(s.decay), n, read_before);
    A before = A(1);
    for (index i = 0; i < n; ++i) {
      const A after = before * s.step[i];
      multiply_by(s.q[i], read_before ? before : after, padded(d));
      before = after;
    }
  }

  void solve(index n, scratch_type& s, read_ahead& ahead) const noexcept {
    const index d = k.channels();
    if (writes == write_kind::delta) {
      solve_rows<A, false>(in(s.a), in(s.sum), d, in(s.m), {}, {}, n, v.channels(), s.x, ahead,
                           [&](index i, index c, const simd::packet<A>& u) HEED_INLINE_LAMBDA {
                             return simd::mul(simd::broadcast(s.beta[i]),
                                              simd::sub(simd::load<A>(s.values[i] + c), u));
                           });
    } else if (writes == write_kind::low_rank) {
      solve_rows<A, true>(
          in(s.a), in(s.sum), d, in(s.m), in(s.n), s.values, n, v.channels(), s.x, ahead,
          [](index, index, const simd::packet<A>& u) HEED_INLINE_LAMBDA { return u; });
    }
  }

  /// The keys' columns as rows.
  static void turn(matrix_rows<A> x, index n, matrix_rows<A> to) noexcept {
    for (index i = 0; i < n; i += lanes) {
      for (index f = 0; f < x.stride; f += lanes) {
        simd::transpose(x[i] + f, x.stride, to[f] + i, to.stride);
      }
    }
  }
};

}  // namespace detail
}  // namespace heed
