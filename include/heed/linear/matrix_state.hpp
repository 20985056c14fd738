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
#include <span>

#include "heed/core/types.hpp"
#include "heed/core/workspace.hpp"
#include "heed/linear/decayed_products.hpp"
#include "heed/linear/tokens.hpp"
#include "heed/tensor/view.hpp"

namespace heed {

enum class gate_kind { none, per_token, per_channel };
enum class write_kind { outer, delta, low_rank };

namespace detail {

template <class A>
struct matrix_recurrence {
  token_input<A> q, k, v;
  token_input<A> gate;         // natural logs
  token_input<A> gate_factor;  // of a head, times its gates; may be absent, as all below
  token_input<A> value_scale;  // beta of the delta rule, dt of SSD
  token_input<A> a, b;         // low rank
  token_input<A> bonus;        // u, read before the write
  token_input<A> skip;         // D of a head: out += D v
  token_output<A> out;
  view<A, 4> state{};  // null data where the caller keeps none
  std::span<const index> bounds{};
  A scale = A(1);
  index chunk_tokens = 1;
  gate_kind gates = gate_kind::none;
  write_kind writes = write_kind::outer;
  bool read_before = false;

  struct scratch_type {
    matrix_rows<A> sum;  // S
    matrix_rows<A> k, kt, a, b, bt, q, v, x, out, raw;
    matrix_rows<A> w, w2, m, n;  // weights of pairs: q k', q b', and those of x
    matrix_rows<A> decay;        // of pairs, or of channels
    A *step, *prefix, *beta, *bonus;
    matrix_rows<const A> values;  // v, where it lies or scaled
  };

  [[nodiscard]] index state_heads() const noexcept { return std::max(k.heads(), v.heads()); }
  [[nodiscard]] index sequences() const noexcept {
    return bounds.empty() ? q.extents[0] : static_cast<index>(bounds.size()) - 1;
  }
  [[nodiscard]] index heads() const noexcept { return sequences() * state_heads(); }
  [[nodiscard]] index chunk_size() const noexcept { return chunk_tokens; }
  /// The tokens of a head's sequence.
  [[nodiscard]] range span_of(index head) const noexcept {
    if (bounds.empty()) return {0, q.extents[2]};
    const auto at = static_cast<std::size_t>(head / state_heads());
    return {bounds[at], bounds[at + 1]};
  }

  [[nodiscard]] scratch_type carve(carver& c) const noexcept {
    const index rows = padded(chunk_tokens);
    const index d = padded(k.channels());
    const index members = gates == gate_kind::per_channel ? group() : 1;
    const bool low = writes == write_kind::low_rank;
    const auto take = [&c](index r, index columns) {
      return matrix_rows<A>{c.take<A>(r * padded(columns)), padded(columns)};
    };
    scratch_type s{};
    s.sum = take(d, v.channels());
    s.k = take(rows, d);
    s.kt = take(d, rows);
    s.a = take(rows, d);
    if (low) s.b = take(rows, d);
    if (low) s.bt = take(d, rows);
    s.q = take(members * rows, d);
    s.v = take(rows, v.channels());
    s.x = take(rows, v.channels());
    s.out = take(rows, v.channels());
    s.raw = take(rows, v.channels());
    s.w = take(members * rows, rows);
    s.w2 = take(low ? members * rows : 0, rows);
    s.m = take(rows, rows);
    s.n = take(low ? rows : 0, rows);
    s.decay = take(rows, gates == gate_kind::per_channel ? d : rows);
    s.step = c.take<A>(rows);
    s.prefix = c.take<A>(d);
    s.beta = c.take<A>(rows);
    s.bonus = c.take<A>(d);
    return s;
  }

  void enter(index head, scratch_type& s) const noexcept {
    for (index f = 0; f < padded(k.channels()); ++f) std::fill_n(s.sum[f], s.sum.stride, A(0));
    if (state.data() != nullptr) {
      const auto home = state_at(head);
      copy_tile(rectangle<const A>{home.data, home.row, home.column},
                rectangle<A>{s.sum.data, s.sum.stride, 1}, k.channels(), v.channels());
    }
    if (bonus.present()) bonus.load(0, head_of(head), state_heads(), {0, 1}, {s.bonus, 0});
  }
  void leave(index head, scratch_type& s) const noexcept {
    if (state.data() == nullptr) return;
    copy_tile(rectangle<const A>{s.sum.data, s.sum.stride, 1}, state_at(head), k.channels(),
              v.channels());
  }

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
    load(head, t, s);
    if (by_channel) {
      for (index g = 0; g < group(); ++g) load_query(head, g, t, query_rows(s, g));
      decay_by_channel(n, s);
    } else {
      decay_by_products(n, s);
    }
    solve(n, s);
    const bool low = writes == write_kind::low_rank;
    const matrix_rows<const A> values = writes == write_kind::delta ? in(s.x) : s.values;
    for (index g = 0; g < group(); ++g) {
      if (!by_channel) {
        load_query(head, g, t, s.q);
        weigh_query(n, s);
      }
      const index h = head_of(head) * group() + g;
      const matrix_rows<A> o = out.rows(batch_of(head), h, t, s.out);
      const matrix_rows<const A> rows_q = in(by_channel ? query_rows(s, g) : s.q);
      const matrix_rows<const A> w = in(by_channel ? pairs(s.w, g) : s.w);
      const matrix_rows<const A> w2 = in(by_channel && low ? pairs(s.w2, g) : s.w2);
      if (low) {
        answer_chunk<A, true>(rows_q, in(s.sum), d, w, values, w2, in(s.x), scale, n, v.channels(),
                              o);
      } else {
        answer_chunk<A, false>(rows_q, in(s.sum), d, w, values, {}, {}, scale, n, v.channels(), o);
      }
      finish(head, h, t, o, s);
    }
    if (low) {
      decay_and_write<A>(in(s.b), in(s.x), s.prefix, n, d, v.channels(), s.sum);
      std::fill_n(s.prefix, padded(d), A(1));
    }
    decay_and_write<A>(in(s.k), values, s.prefix, n, d, v.channels(), s.sum);
  }

  [[nodiscard]] index group() const noexcept {
    return state_heads() == 0 ? 0 : out.extents[1] / state_heads();
  }
  /// Of the inputs and the output: the sequences of a ragged batch all lie in the first.
  [[nodiscard]] index batch_of(index head) const noexcept {
    return bounds.empty() ? head / state_heads() : 0;
  }
  [[nodiscard]] index head_of(index head) const noexcept { return head % state_heads(); }
  [[nodiscard]] rectangle<A> state_at(index head) const noexcept {
    return {state.data() + head / state_heads() * state.stride(0) + head_of(head) * state.stride(1),
            state.stride(2), state.stride(3)};
  }
  [[nodiscard]] A number(const token_input<A>& x, index head) const noexcept {
    A value{};
    x.load_numbers(0, head_of(head), state_heads(), {0, 1}, &value);
    return value;
  }
  void load_query(index head, index g, range t, matrix_rows<A> to) const noexcept {
    q.load(batch_of(head), head_of(head) * group() + g, out.extents[1], t, to);
  }

  /// Keys, values, gates and whatever else of the tokens.
  void load(index head, range t, scratch_type& s) const noexcept {
    const index bt = batch_of(head), h = head_of(head), of = state_heads(), n = t.size();
    k.load(bt, h, of, t, s.k);
    if (a.present()) a.load(bt, h, of, t, s.a);
    if (b.present()) b.load(bt, h, of, t, s.b);
    s.values = v.rows(bt, h, of, t, s.v);
    if (value_scale.present()) {
      value_scale.load_numbers(bt, h, of, t, s.beta);
      if (writes == write_kind::outer) {
        if (v.packets_fit) v.load(bt, h, of, t, s.v);
        for (index i = 0; i < n; ++i) multiply_by(s.v[i], s.beta[i], padded(v.channels()));
        s.values = in(s.v);
      }
    } else {
      std::fill_n(s.beta, n, A(1));
    }
    const A factor = gate_factor.present() ? number(gate_factor, head) : A(1);
    if (gates == gate_kind::per_token) {
      std::fill_n(s.step, padded(n), A(0));
      gate.load_numbers(bt, h, of, t, s.step);
      if (gate_factor.present()) multiply_by(s.step, factor, padded(n));
      exponentials(s.step, n);
    } else if (gates == gate_kind::per_channel) {
      gate.load(bt, h, of, t, s.decay);
      for (index i = 0; i < n; ++i) exponentials(s.decay[i], k.channels());
    }
  }

  /// The output's last additions, and the way home.
  void finish(index head, index h, range t, matrix_rows<A> o, scratch_type& s) const noexcept {
    if (skip.present()) {
      const A factor = number(skip, head);
      const auto raw = v.rows(batch_of(head), head_of(head), state_heads(), t, s.raw);
      for (index i = 0; i < t.size(); ++i) add_multiple(factor, raw[i], o[i], padded(v.channels()));
    }
    if (!out.packets_fit) out.store(batch_of(head), h, t, in(o));
  }

 private:
  static constexpr index lanes = simd::lanes<A>;
  [[nodiscard]] static constexpr index padded(index n) noexcept { return round_up(n, lanes); }
  [[nodiscard]] static matrix_rows<const A> in(matrix_rows<A> x) noexcept {
    return {x.data, x.stride};
  }
  [[nodiscard]] matrix_rows<A> query_rows(const scratch_type& s, index g) const noexcept {
    return {s.q[g * padded(chunk_tokens)], s.q.stride};
  }
  [[nodiscard]] matrix_rows<A> pairs(matrix_rows<A> w, index g) const noexcept {
    return {w[g * padded(chunk_tokens)], w.stride};
  }

  static void add_multiple(A by, const A* x, A* y, index count) noexcept {
    const auto factor = simd::broadcast(by);
    for (index c = 0; c < count; c += lanes) {
      simd::store(y + c, simd::fmadd(factor, simd::load<A>(x + c), simd::load<A>(y + c)));
    }
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

  void decay_by_products(index n, scratch_type& s) const noexcept {
    const index d = k.channels();
    const bool gated = gates == gate_kind::per_token, low = writes == write_kind::low_rank;
    turn(s.k, n, s.kt);
    if (low) turn(s.b, n, s.bt);
    read_ahead none;
    if (writes == write_kind::delta) {
      causal_weights<A>(in(s.k), in(s.kt), d, n, s.m, none);
      for (index i = 0; i < n; ++i) std::copy_n(s.k[i], padded(d), s.a[i]);
    } else if (low) {
      causal_weights<A>(in(s.a), in(s.bt), d, n, s.m, none);
      causal_weights<A>(in(s.a), in(s.kt), d, n, s.n, none);
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

  void weigh_query(index n, scratch_type& s) const noexcept {
    const index d = k.channels();
    const bool gated = gates == gate_kind::per_token, low = writes == write_kind::low_rank;
    read_ahead none;
    causal_weights<A>(in(s.q), in(s.kt), d, n, s.w, none);
    if (low) causal_weights<A>(in(s.q), in(s.bt), d, n, s.w2, none);
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

  void solve(index n, scratch_type& s) const noexcept {
    const index d = k.channels();
    if (writes == write_kind::delta) {
      solve_rows<A, false>(in(s.a), in(s.sum), d, in(s.m), {}, {}, n, v.channels(), s.x,
                           [&](index i, index c, const simd::packet<A>& u) HEED_INLINE_LAMBDA {
                             return simd::mul(simd::broadcast(s.beta[i]),
                                              simd::sub(simd::load<A>(s.values[i] + c), u));
                           });
    } else if (writes == write_kind::low_rank) {
      solve_rows<A, true>(in(s.a), in(s.sum), d, in(s.m), in(s.n), s.values, n, v.channels(), s.x,
                          [](index, index, const simd::packet<A>& u)
                              HEED_INLINE_LAMBDA { return u; });
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
