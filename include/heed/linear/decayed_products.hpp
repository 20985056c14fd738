// SPDX-License-Identifier: MIT
// Products of a chunk whose pairs decay, and the triangular system of a state that is corrected.
//
//   pairs      w[i][j] = sum_d x_id k_jd prod_{j < t <= i} decay_td
//   solve      u[i] = a[i] s + sum_{j < i} m[i][j] w_j ...                   block forward
//   substitution writes     s[f][c] = decay[f] s[f][c] + sum_j k[j][f] v[j][c]
//
// Decays are multiplied up token by token, never divided and never taken as exp of a difference of
// running sums: every factor is at most 1, so that nothing overflows, a gate of -inf is an exact
// reset (0), and no digits cancel however far the running sum has gone.
#pragma once

#include <algorithm>
#include <type_traits>

#include "heed/linear/products.hpp"
#include "heed/simd/exponential.hpp"
#include "heed/simd/packet.hpp"

namespace heed {

/// x = exp(x) in place, `count` rounded up to whole packets. x <= 0.
template <class A>
HEED_NOINLINE void exponentials(A* x, index count) noexcept {
  for (index i = 0; i < count; i += simd::lanes<A>) {
    simd::store(x + i, simd::exp_nonpositive<A>(simd::load<A>(x + i)));
  }
}

/// x *= y, whole packets.
template <class A>
HEED_INLINE void multiply_by(A* x, const A* y, index count) noexcept {
  for (index i = 0; i < count; i += simd::lanes<A>) {
    simd::store(x + i, simd::mul(simd::load<A>(x + i), simd::load<A>(y + i)));
  }
}

/// x *= y, whole packets, y a number.
template <class A>
HEED_INLINE void multiply_by(A* x, A y, index count) noexcept {
  const auto factor = simd::broadcast(y);
  for (index i = 0; i < count; i += simd::lanes<A>) {
    simd::store(x + i, simd::mul(simd::load<A>(x + i), factor));
  }
}

/// w[j] = x . k[j] for j < count, rows of `features` rounded up to whole packets, zero there.
template <class A>
HEED_NOINLINE void dot_rows(const A* x, matrix_rows<const A> k, index count, index features,
                            A* w) noexcept {
  constexpr index lanes = simd::lanes<A>;
  in_steps<8>(count, [&](auto rows, index j) HEED_INLINE_LAMBDA {
    constexpr int n = decltype(rows)::value;
    simd::packet<A> sums[std::size_t{n}];
    simd::unroll<n>([&](auto r) HEED_INLINE_LAMBDA { sums[r] = simd::zero<A>(); });
    for (index f = 0; f < features; f += lanes) {
      const auto factor = simd::load<A>(x + f);
      simd::unroll<n>([&](auto r) HEED_INLINE_LAMBDA {
        sums[r] = simd::fmadd(factor, simd::load<A>(k[j + r] + f), sums[r]);
      });
    }
    simd::unroll<n>([&](auto r) HEED_INLINE_LAMBDA { w[j + r] = simd::sum(sums[r]); });
  });
}

/// w[i][j] for the pairs j < i of a chunk, m[i][j] = w[i][j] decay: decays of one number a token.
/// `before`: those to the token before i alone. The diagonal is left as it is.
template <class A>
HEED_NOINLINE void decay_pairs(matrix_rows<A> w, matrix_rows<const A> decay, index tokens,
                               bool before) noexcept {
  for (index i = 1; i < tokens; ++i) {
    const A* d = decay[before ? i - 1 : i];
    for (index j = 0; j < i; ++j) w[i][j] *= d[j];
  }
}

/// decay[i][j] = prod_{j < t <= i} step_t for j <= i, whole packets a row; 0 for j > i.
template <class A>
HEED_NOINLINE void running_decays(const A* step, index tokens, matrix_rows<A> decay) noexcept {
  const index columns = round_up(tokens, simd::lanes<A>);
  for (index i = 0; i < tokens; ++i) {
    if (i == 0) {
      std::fill_n(decay[0], columns, A(0));
    } else {
      const auto factor = simd::broadcast(step[i]);
      for (index j = 0; j < columns; j += simd::lanes<A>) {
        simd::store(decay[i] + j, simd::mul(simd::load<A>(decay[i - 1] + j), factor));
      }
    }
    decay[i][i] = A(1);
  }
}

/// The next lines of `ahead`. Out of line: between register tiles, whose loops need every register.
HEED_NOINLINE inline void issue_lines(read_ahead& ahead) noexcept { ahead.issue(); }

/// w[j] of one token from those before it in its chunk: a lower triangle, block by block.
///
///   u_i = a_i s + sum_{j < i} m_ij x_j + sum_{j < i} n_ij v_j,     n absent: no third term
///   x_i = write(i, u_i packets): what the row leaves for later ones; stored to x
///
/// Within a register tile the rows follow one another in registers. Here and below `ahead` is asked
/// for a few lines a register tile.
template <class A, bool Extra, class F>
HEED_NOINLINE void solve_rows(matrix_rows<const A> a, matrix_rows<const A> s, index features,
                              matrix_rows<const A> m, matrix_rows<const A> n,
                              matrix_rows<const A> v, index tokens, index channels,
                              matrix_rows<A> x, read_ahead& ahead, F&& write) noexcept {
  constexpr index lanes = simd::lanes<A>;
  detail::for_each_register_tile<A>(
      tokens, channels, [&](auto rows, index i, auto packets, index c) {
        constexpr int r_count = decltype(rows)::value;
        detail::register_sums<A, r_count, decltype(packets)::value> sums;
        issue_lines(ahead);
        sums.clear();
        sums.add_product({a[i], a.stride}, {s.data + c, s.stride}, features);
        sums.add_product({m[i], m.stride}, {x.data + c, x.stride}, i);
        if constexpr (Extra) {
          sums.add_product({n[i], n.stride}, {v.data + c, v.stride}, i);
          sums.add_below_diagonal({n[i] + i, n.stride}, {v[i] + c, v.stride});
        }
        simd::unroll<r_count>([&](auto r) HEED_INLINE_LAMBDA {
          simd::unroll<decltype(packets)::value>([&](auto p) HEED_INLINE_LAMBDA {
            simd::store(x[i + r] + c + p * lanes, write(i + r, c + p * lanes, sums.at[r][p]));
          });
          if constexpr (decltype(r)::value + 1 < r_count) {
            sums.template add_outer<decltype(r)::value + 1>(
                [&](auto later) HEED_INLINE_LAMBDA { return m[i + later][i + r]; }, x[i + r] + c);
          }
        });
      });
}

/// out = factor (q s + lower(w) v + lower(w2) v2).
template <class A, bool Extra>
HEED_NOINLINE void answer_chunk(matrix_rows<const A> q, matrix_rows<const A> s, index features,
                                matrix_rows<const A> w, matrix_rows<const A> v,
                                matrix_rows<const A> w2, matrix_rows<const A> v2, A factor,
                                index tokens, index channels, matrix_rows<A> out,
                                read_ahead& ahead) noexcept {
  detail::for_each_register_tile<A>(
      tokens, channels, [&](auto rows, index i, auto packets, index c) {
        detail::register_sums<A, decltype(rows)::value, decltype(packets)::value> sums;
        issue_lines(ahead);
        sums.clear();
        sums.add_product({q[i], q.stride}, {s.data + c, s.stride}, features);
        sums.add_product({w[i], w.stride}, {v.data + c, v.stride}, i);
        sums.add_lower_triangle({w[i] + i, w.stride}, {v[i] + c, v.stride});
        if constexpr (Extra) {
          sums.add_product({w2[i], w2.stride}, {v2.data + c, v2.stride}, i);
          sums.add_lower_triangle({w2[i] + i, w2.stride}, {v2[i] + c, v2.stride});
        }
        sums.each([&](auto r, auto p) HEED_INLINE_LAMBDA {
          simd::store(out[i + r] + c + p * linear_plan<A>::lanes,
                      simd::mul(sums.at[r][p], simd::broadcast(factor)));
        });
      });
}

/// s[f] = decay[f] s[f] + sum_j k[j][f] v[j].
template <class A>
HEED_NOINLINE void decay_and_write(matrix_rows<const A> k, matrix_rows<const A> v, const A* decay,
                                   index tokens, index features, index channels, matrix_rows<A> s,
                                   read_ahead& ahead) noexcept {
  detail::for_each_register_tile<A>(
      features, channels, [&](auto rows, index f, auto packets, index c) {
        detail::register_sums<A, decltype(rows)::value, decltype(packets)::value> sums;
        issue_lines(ahead);
        sums.clear();
        sums.add_transposed_product({k.data + f, k.stride}, {v.data + c, v.stride}, tokens);
        sums.each([&](auto r, auto p) HEED_INLINE_LAMBDA {
          A* at = s[f + r] + c + p * linear_plan<A>::lanes;
          simd::store(at,
                      simd::fmadd(simd::broadcast(decay[f + r]), simd::load<A>(at), sums.at[r][p]));
        });
      });
}

}  // namespace heed
