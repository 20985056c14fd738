// SPDX-License-Identifier: MIT
// The core of every recurrence with a matrix state S [Dk, Dv]: decay, correction, outer product.
//
//   S_i = diag(d_i) S_{i-1} + write_i,    d_i = exp g_i: 1, a number, or one a key channel
//   write_i  outer     k_i v_i'
//            delta     k_i x_i',            x_i = beta_i (v_i - (diag(d_i) S_{i-1})'k_i)
//            low rank  k_i v_i' + b_i x_i', x_i = S_{i-1}'a_i
//   out_i = scale S_i'q_i,  or before the write: scale (S_{i-1} + diag(u) k_i v_i')'q_i
//
// A chunk of C tokens, P_i the product of its decays to token i and P_ij that of those after j to i:
//
//   x_i   = (a_i P_{i-1})'S + sum_{j<i} (a_i'P_{i-1,j} b_j) x_j + sum_{j<i} (a_i'P_{i-1,j} k_j) v_j
//           a unit lower triangular system; the delta rule's is alike
//   out_i = (q_i P_i)'S + sum_{j<=i} (q_i'P_ij k_j) v_j + sum_{j<=i} (q_i'P_ij b_j) x_j
//   S     = P_C S + sum_j (P_Cj k_j) v_j' + sum_j (P_Cj b_j) x_j'
//
// One number a token: the products q k' first, then the decays of their pairs. One a channel: the
// keys of a short chunk decay where they lie, token by token, and meet each query at its time.
// In a sequence of more than 16 chunks S carries low parts: where it hardly decays, sums of chunks
// are added to it with a compensated sum, so that no digits go however many the tokens.
// Sources: Yang et al. 2023, arXiv 2312.06635, section 4 (gated chunks); Yang et al. 2024, arXiv
// 2406.06484, section 3 (the delta rule as a triangular system, after Bischof and Van Loan).
#pragma once

#include <algorithm>
#include <array>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/kernel/chunk/decayed_gemm.hpp"
#include "heed/linear/matrix_state/operands.hpp"

namespace heed::inline HEED_TARGET::detail {

template <class A>
struct matrix_recurrence : matrix_tokens<A> {
  using base = matrix_tokens<A>;
  using base::batch_of, base::head_of, base::group, base::state_heads;
  using base::gates, base::writes, base::read_before, base::chunk_tokens;
  using base::k, base::v, base::out, base::bonus, base::scale;
  using base::load, base::load_query, base::finish, base::add_multiple;
  using base::lost_of_decay, base::log_of, base::finite_multiple, base::low_parts;
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
    if (read_before) compute_outputs(head, t, s);
    if (writes != write_kind::outer) {
      std::fill_n(s.x[0], columns, A(0));
      each_row([&](index r) {
        const A by = writes == write_kind::delta ? s.keys[0][r] * s.decay[0][r] : s.a[0][r];
        add_multiple(by, s.sum[r], s.x[0], columns);
      });
      if (writes == write_kind::delta) correct(s, 0, columns);
    }
    const A* value = writes == write_kind::delta ? s.x[0] : s.values[0];
    each_row([&](index r) {
      if (s.low.data != nullptr) {
        s.low_is_zero = false;
        return add_token(r, value, columns, s);
      }
      multiply_by(s.sum[r], s.decay[0][r], columns);
      add_multiple(s.keys[0][r], value, s.sum[r], columns);
      if (writes == write_kind::low_rank) add_multiple(s.b[0][r], s.x[0], s.sum[r], columns);
    });
    if (!read_before) compute_outputs(head, t, s);
  }

  void chunk(index head, range t, scratch_type& s) const noexcept {
    const index n = t.size(), d = k.channels();
    const bool by_channel = gates == gate_kind::per_channel;
    prefetch_stream stream = next_rows(head, {t.end, (std::min)(t.end + n, base::q.extents[2])});
    load(head, t, s);
    if (by_channel) {
      decay_by_channel(head, t, s);
    } else {
      decay_by_products(n, s, stream);
    }
    solve(n, s, stream);
    const bool low = writes == write_kind::low_rank;
    const matrix_rows<const A> values = writes == write_kind::delta ? in(s.x) : s.values;
    for (index g = 0; g < group(); ++g) {
      if (!by_channel) {
        load_query(head, g, t, s.q);
        query_weights(n, s, stream);
      }
      const index h = head_of(head) * group() + g;
      const matrix_rows<A> o = out.rows(batch_of(head), h, t, s.out);
      const matrix_rows<const A> rows_q = in(by_channel ? query_rows(s, g) : s.q);
      const matrix_rows<const A> w = in(by_channel ? pairs(s.w, g) : s.w);
      const matrix_rows<const A> w2 = in(by_channel && low ? pairs(s.w2, g) : s.w2);
      if (low) {
        output_chunk<A, true>(rows_q, in(s.sum), d, w, values, w2, in(s.x), scale, n, v.channels(),
                              o, stream);
      } else {
        output_chunk<A, false>(rows_q, in(s.sum), d, w, values, {}, {}, scale, n, v.channels(), o,
                               stream);
      }
      finish(head, h, t, o, s);
    }
    const matrix_rows<A> lost = low_parts(s);
    if (low) {
      decay_and_write<A>(in(s.written_b), in(s.x), s.prefix, n, d, v.channels(), s.sum, lost,
                         stream);
      std::fill_n(s.prefix, padded(d), A(1));
    }
    decay_and_write<A>(in(s.written_k), values, s.prefix, n, d, v.channels(), s.sum, lost, stream);
  }

 private:
  using base::in, base::lanes, base::padded;

  [[nodiscard]] matrix_rows<A> query_rows(const scratch_type& s, index g) const noexcept {
    return {s.q[g * padded(chunk_tokens)], s.q.stride};
  }
  [[nodiscard]] matrix_rows<A> pairs(matrix_rows<A> w, index g) const noexcept {
    return {w[g * padded(chunk_tokens)], w.stride};
  }

  /// Prefetches what the next chunk reads and writes while this one is computed: about as many lines
  /// with each of its register tiles.
  [[nodiscard]] prefetch_stream next_rows(index head, range t) const noexcept {
    using plan = linear_plan<A>;
    const index bt = batch_of(head), h = head_of(head), of = state_heads();
    const index tiles = (ceil_div(t.size(), plan::rows) + ceil_div(k.channels(), plan::rows)) *
                        ceil_div(v.channels(), plan::packets * lanes);
    const index numbers = t.size() * (3 * k.channels() + 2 * v.channels());
    const index lines = ceil_div(numbers * static_cast<index>(sizeof(A)), index{64});
    // A short chunk is over soon: its lines are prefetched in its first half.
    const index share = gates == gate_kind::per_channel ? 2 : 1;
    prefetch_stream stream(ceil_div(lines * share, std::max<index>(tiles, 1)));
    for (const token_input<A>* x : {&this->gate, &k, &this->a, &this->b, &v}) {
      if (x->present()) x->prefetch_rows(stream, bt, h, of, t);
    }
    for (index g = 0; g < group(); ++g) {
      base::q.prefetch_rows(stream, bt, h * group() + g, out.extents[1], t);
      out.prefetch_rows(stream, bt, h * group() + g, t);
    }
    return stream;
  }

  /// One token's decay of and write to row r of S, compensated.
  void add_token(index r, const A* value, index columns, const scratch_type& s) const noexcept {
    const A lost = lost_of_decay(log_of(r, s), s.decay[0][r]);
    for (index c = 0; c < columns; c += lanes) {
      auto x = simd::mul(simd::broadcast(s.keys[0][r]), simd::load<A>(value + c));
      if (writes == write_kind::low_rank) {
        x = simd::fmadd(simd::broadcast(s.b[0][r]), simd::load<A>(s.x[0] + c), x);
      }
      if (lost != A(0)) x = simd::add(x, finite_multiple(lost, s.sum[r] + c));
      decay_and_add(s.decay[0][r], s.sum[r] + c, s.low[r] + c, x);
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

  void compute_outputs(index head, range t, scratch_type& s) const noexcept {
    const index columns = padded(v.channels());
    for (index g = 0; g < group(); ++g) {
      load_query(head, g, t, s.q);
      const index h = head_of(head) * group() + g;
      const matrix_rows<A> o = out.rows(batch_of(head), h, t, s.out);
      std::fill_n(o[0], columns, A(0));
      for (index r = 0; r < k.channels(); ++r) add_multiple(s.q[0][r], s.sum[r], o[0], columns);
      if (read_before) add_multiple(current(s.q[0], s.keys[0], s), s.values[0], o[0], columns);
      multiply_by(o[0], scale, columns);
      finish(head, h, t, o, s);
    }
  }

  void decay_by_channel(index head, range t, scratch_type& s) const noexcept {
    const index n = t.size(), d = padded(k.channels());
    const matrix_rows<const A> decay = in(s.decay);
    for (index g = 0; g < group() && !base::q.packets_fit; ++g) {
      load_query(head, g, t, query_rows(s, g));
    }
    using rows = meeting_rows<A>;
    using one = std::array<rows, 1>;
    using two = std::array<rows, 2>;
    for (index g = 0; g == 0 || g < group(); ++g) {
      // Where no query meets the keys, they meet themselves: they decay all the same.
      const rows met{group() > 0 ? query(head, g, t, s) : s.keys, pairs(s.w, g)};
      const rows met_b{met.x, pairs(s.w2, g)};
      if (writes == write_kind::low_rank && g == 0) {
        decayed_pairs<A, true, 2>(two{rows{in(s.a), s.n}, met}, s.keys, decay, d, n, s.written_k,
                                  s.parts);
        decayed_pairs<A, true, 2>(two{rows{in(s.a), s.m}, met_b}, in(s.b), decay, d, n, s.written_b,
                                  s.parts);
      } else if (writes == write_kind::delta && g == 0) {
        decayed_pairs<A, false, 2>(two{rows{s.keys, s.m}, met}, s.keys, decay, d, n, s.written_k,
                                   s.parts);
      } else if (read_before) {
        decayed_pairs<A, true, 1>(one{met}, s.keys, decay, d, n, s.written_k, s.parts);
        for (index i = 0; i < n; ++i) met.w[i][i] = current(met.x[i], s.keys[i], s);
      } else {
        decayed_pairs<A, false, 1>(one{met}, s.keys, decay, d, n, s.written_k, s.parts);
        if (writes == write_kind::low_rank) {
          decayed_pairs<A, false, 1>(one{met_b}, in(s.b), decay, d, n, s.written_b, s.parts);
        }
      }
    }
    for (index f = 0; f < d; f += lanes) decay_packet(head, t, f, s);
  }

  /// One packet of channels of what meets the state before the chunk: the decays since.
  void decay_packet(index head, range t, index f, scratch_type& s) const noexcept {
    const auto each_token = [&](const matrix_rows<const A>& from, const matrix_rows<A>& to,
                                bool before) HEED_INLINE_LAMBDA {
      auto product = simd::broadcast(A(1));
      for (index i = 0; i < t.size(); ++i) {
        const auto after = simd::mul(product, simd::load<A>(s.decay[i] + f));
        simd::store(to[i] + f, simd::mul(simd::load<A>(from[i] + f), before ? product : after));
        product = after;
      }
      simd::store(s.prefix + f, product);
    };
    if (writes == write_kind::low_rank) {
      each_token(in(s.a), s.a, true);
    } else if (writes == write_kind::delta || group() == 0) {
      each_token(s.keys, s.a, false);
    }
    for (index g = 0; g < group(); ++g) {
      each_token(query(head, g, t, s), query_rows(s, g), read_before);
    }
  }

  /// A head's queries of the chunk, where they lie or in the rows that they will decay to.
  [[nodiscard]] matrix_rows<const A> query(index head, index g, range t,
                                           scratch_type& s) const noexcept {
    if (!base::q.packets_fit) return in(query_rows(s, g));
    return base::q.rows(batch_of(head), head_of(head) * group() + g, out.extents[1], t,
                        query_rows(s, g));
  }

  void decay_by_products(index n, scratch_type& s, prefetch_stream& stream) const noexcept {
    const index d = k.channels();
    const bool gated = gates == gate_kind::per_token, low = writes == write_kind::low_rank;
    transpose(s.k, n, s.kt);
    if (low) transpose(s.b, n, s.bt);
    if (writes == write_kind::delta) {
      causal_weights<A>(in(s.k), in(s.kt), d, n, s.m, stream);
      for (index i = 0; i < n; ++i) std::copy_n(s.k[i], padded(d), s.a[i]);
    } else if (low) {
      causal_weights<A>(in(s.a), in(s.bt), d, n, s.m, stream);
      causal_weights<A>(in(s.a), in(s.kt), d, n, s.n, stream);
    }
    std::fill_n(s.prefix, padded(d), A(1));
    if (!gated) return;
    cumulative_decays(s.step, n, s.decay);
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

  void query_weights(index n, scratch_type& s, prefetch_stream& stream) const noexcept {
    const index d = k.channels();
    const bool gated = gates == gate_kind::per_token, low = writes == write_kind::low_rank;
    causal_weights<A>(in(s.q), in(s.kt), d, n, s.w, stream);
    if (low) causal_weights<A>(in(s.q), in(s.bt), d, n, s.w2, stream);
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

  void solve(index n, scratch_type& s, prefetch_stream& stream) const noexcept {
    const index d = k.channels();
    if (writes == write_kind::delta) {
      solve_rows<A, false>(in(s.a), in(s.sum), d, in(s.m), {}, {}, n, v.channels(), s.x, stream,
                           [&](index i, index c, const simd::packet<A>& u) HEED_INLINE_LAMBDA {
                             return simd::mul(simd::broadcast(s.beta[i]),
                                              simd::sub(simd::load<A>(s.values[i] + c), u));
                           });
    } else if (writes == write_kind::low_rank) {
      solve_rows<A, true>(
          in(s.a), in(s.sum), d, in(s.m), in(s.n), s.values, n, v.channels(), s.x, stream,
          [](index, index, const simd::packet<A>& u) HEED_INLINE_LAMBDA { return u; });
    }
  }

  /// to = x'.
  static void transpose(matrix_rows<A> x, index n, matrix_rows<A> to) noexcept {
    for (index i = 0; i < n; i += lanes) {
      for (index f = 0; f < x.stride; f += lanes) {
        simd::transpose(x[i] + f, x.stride, to[f] + i, to.stride);
      }
    }
  }
};

}  // namespace heed::inline HEED_TARGET::detail
