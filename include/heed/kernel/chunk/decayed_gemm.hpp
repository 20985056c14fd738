// SPDX-License-Identifier: MIT
// Products of a chunk whose pairs decay, and the triangular system of a state that is corrected.
//
//   pairs    w[i][j] = sum_f x[i][f] k[j][f] prod_{j < t <= i} decay[t][f]
//   solve    u_i = a_i s + sum_{j < i} m[i][j] x_j + ...,  x_i = write(i, u_i)    forward substitution
//   writes   s[f][c] = decay[f] s[f][c] + sum_j k[j][f] v[j][c]
//
// Decays are multiplied up token by token, never divided and never taken as exp of a difference of
// running sums: every factor is at most 1, so that nothing overflows, a gate of -inf is an exact
// reset (0), and no digits cancel however far the running sum has gone.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/kernel/chunk/gemm.hpp"
#include "heed/simd/exponential.hpp"
#include "heed/simd/packet.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// y = exp(x), `count` rounded up to whole packets; y may be x. x <= 0.
template <class A>
HEED_NOINLINE void exponentials(const A* x, index count, A* y) noexcept {
  for (index i = 0; i < count; i += simd::lanes<A>) {
    simd::store(y + i, simd::exp_nonpositive<A>(simd::load<A>(x + i)));
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

/// Rows that meet keys, and where their weights go.
template <class A>
struct meeting_rows {
  matrix_rows<const A> x{};
  matrix_rows<A> w{};
};

/// Packets that `decayed_pairs` keeps of `tokens` tokens: one a pair, whose lanes add up to it.
template <class A>
[[nodiscard]] constexpr index pair_numbers(index tokens) noexcept {
  return tokens * round_up(tokens, simd::lanes<A>) * simd::lanes<A>;
}

/// Weights of pairs whose decays differ by channel, and the keys decayed to the chunk's end.
///
///   w[i][j] = sum_f x[i][f] k[j][f] prod_{j < t <= i} decay[t][f]    j <= i; others: no meaning
///   to[j][f] = k[j][f] prod_{j < t < tokens} decay[t][f]
///
/// With Before the first of `Count` rows x meets the keys before its own token's decay. Two keys at
/// a time walk through the tokens in registers; `features` are whole packets. `parts` are
/// pair_numbers() numbers for each of the Count.
template <class A, bool Before, int Count>
HEED_NOINLINE void decayed_pairs(const std::array<meeting_rows<A>, std::size_t{Count}>& meet,
                                 matrix_rows<const A> k, matrix_rows<const A> decay, index features,
                                 index tokens, matrix_rows<A> to, A* parts) noexcept {
  constexpr index lanes = simd::lanes<A>;
  using packet = simd::packet<A>;
  const index columns = round_up(tokens, lanes);
  const auto part = [&](auto c, index i, index j) HEED_INLINE_LAMBDA {
    return parts + ((decltype(c)::value * tokens + i) * columns + j) * lanes;
  };
  if (features == 0) std::fill_n(parts, Count * tokens * columns * lanes, A(0));
  index done = 0;
  in_steps<4>(features / lanes, [&](auto packets, index) {
    constexpr int n = decltype(packets)::value;
    const index f = done * lanes;
    in_steps<2>(tokens, [&](auto rows, index j) {
      constexpr int r_count = decltype(rows)::value;
      packet key[std::size_t{r_count}][std::size_t{n}];
      simd::unroll<r_count>([&](auto r) HEED_INLINE_LAMBDA {
        simd::unroll<n>([&](auto p) HEED_INLINE_LAMBDA {
          key[r][p] = simd::load<A>(k[j + r] + f + p * lanes);
        });
      });
      // Rows below `Late` were written before token i, row `Late` may be its own.
      const auto meet_token = [&](auto late, index i) HEED_INLINE_LAMBDA {
        constexpr int old = decltype(late)::value;
        constexpr int met = old < r_count ? old + 1 : r_count;
        packet sums[std::size_t{Count}][std::size_t{met}];
        simd::unroll<n>([&](auto p) HEED_INLINE_LAMBDA {
          const packet d = simd::load<A>(decay[i] + f + p * lanes);
          simd::unroll<met>([&](auto r) HEED_INLINE_LAMBDA {
            const packet raw = key[r][p];
            if constexpr (decltype(r)::value < old) key[r][p] = simd::mul(raw, d);
            simd::unroll<Count>([&](auto c) HEED_INLINE_LAMBDA {
              const packet x = simd::load<A>(meet[c].x[i] + f + p * lanes);
              const packet y = Before && decltype(c)::value == 0 ? raw : key[r][p];
              sums[c][r] =
                  decltype(p)::value == 0 ? simd::mul(x, y) : simd::fmadd(x, y, sums[c][r]);
            });
          });
        });
        simd::unroll<Count>([&](auto c) HEED_INLINE_LAMBDA {
          simd::unroll<met>([&](auto r) HEED_INLINE_LAMBDA {
            A* const at = part(c, i, j + r);
            simd::store(at, done == 0 ? sums[c][r] : simd::add(sums[c][r], simd::load<A>(at)));
          });
        });
      };
      simd::unroll<r_count>([&](auto r) HEED_INLINE_LAMBDA { meet_token(r, j + r); });
      for (index i = j + r_count; i < tokens; ++i) {
        meet_token(std::integral_constant<int, r_count>{}, i);
      }
      simd::unroll<r_count>([&](auto r) HEED_INLINE_LAMBDA {
        simd::unroll<n>(
            [&](auto p) HEED_INLINE_LAMBDA { simd::store(to[j + r] + f + p * lanes, key[r][p]); });
      });
    });
    done += n;
  });
  simd::unroll<Count>([&](auto c) HEED_INLINE_LAMBDA {
    for (index i = 0; i < tokens; ++i) {
      for (index j = 0; j <= i; j += lanes) {
        packet x[std::size_t{lanes}];
        simd::unroll<static_cast<int>(lanes)>(
            [&](auto l) HEED_INLINE_LAMBDA { x[l] = simd::load<A>(part(c, i, j) + l * lanes); });
        simd::store(meet[c].w[i] + j, simd::sum_each<A>(x));
      }
    }
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
HEED_NOINLINE void cumulative_decays(const A* step, index tokens, matrix_rows<A> decay) noexcept {
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

/// x_i of each token from those before it in its chunk: a unit lower triangle, block by block.
///
///   u_i = a_i s + sum_{j < i} m_ij x_j + sum_{j < i} n_ij v_j,     n absent: no third term
///   x_i = write(i, u_i packets): what later rows read; stored to x
///
/// Within a register tile the rows follow one another in registers.
template <class A, bool Extra, class F>
HEED_NOINLINE void solve_rows(matrix_rows<const A> a, matrix_rows<const A> s, index features,
                              matrix_rows<const A> m, matrix_rows<const A> n,
                              matrix_rows<const A> v, index tokens, index channels,
                              matrix_rows<A> x, prefetch_stream& stream, F&& write) noexcept {
  constexpr index lanes = simd::lanes<A>;
  for_each_register_tile<A>(tokens, channels, [&](auto rows, index i, auto packets, index c) {
    constexpr int r_count = decltype(rows)::value;
    register_sums<A, r_count, decltype(packets)::value> sums;
    stream.issue();
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
HEED_NOINLINE void output_chunk(matrix_rows<const A> q, matrix_rows<const A> s, index features,
                                matrix_rows<const A> w, matrix_rows<const A> v,
                                matrix_rows<const A> w2, matrix_rows<const A> v2, A factor,
                                index tokens, index channels, matrix_rows<A> out,
                                prefetch_stream& stream) noexcept {
  for_each_register_tile<A>(tokens, channels, [&](auto rows, index i, auto packets, index c) {
    register_sums<A, decltype(rows)::value, decltype(packets)::value> sums;
    stream.issue();
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

/// Rows that decay by less than this factor forget their roundings soon enough.
template <class A>
inline constexpr A adds_up_from = A(0.875);

/// One packet of a state that decays and is written to: s = decay s + x. A decay near 1, where errors
/// would add up, is taken as s + ((decay - 1) s + x), of which only the outer sum loses digits:
/// those go to low. Elsewhere low is cleared.
template <class A>
HEED_INLINE void decay_and_add(A decay, A* s, A* low, const simd::packet<A>& x) noexcept {
  auto total = simd::load<A>(s);
  if (!(decay >= adds_up_from<A>)) {
    simd::store(s, simd::fmadd(simd::broadcast(decay), total, x));
    simd::store(low, simd::zero<A>());
    return;
  }
  auto lost = simd::load<A>(low);
  const auto largest = simd::broadcast((std::numeric_limits<A>::max)());
  const auto finite =
      simd::both(simd::less(simd::abs(total), largest), total);  // an infinity stays
  add_compensated<A>(total, lost, simd::fmadd(simd::broadcast(decay - A(1)), finite, x));
  simd::store(s, total);
  simd::store(low, lost);
}

/// s[f] = decay[f] s[f] + sum_j k[j][f] v[j]; compensated where `low` has data, s's low parts.
template <class A>
HEED_NOINLINE void decay_and_write(matrix_rows<const A> k, matrix_rows<const A> v, const A* decay,
                                   index tokens, index features, index channels, matrix_rows<A> s,
                                   matrix_rows<A> low, prefetch_stream& stream) noexcept {
  for_each_register_tile<A>(features, channels, [&](auto rows, index f, auto packets, index c) {
    register_sums<A, decltype(rows)::value, decltype(packets)::value> sums;
    stream.issue();
    sums.clear();
    sums.add_transposed_product({k.data + f, k.stride}, {v.data + c, v.stride}, tokens);
    sums.each([&](auto r, auto p) HEED_INLINE_LAMBDA {
      A* const at = s[f + r] + c + p * linear_plan<A>::lanes;
      if (low.data == nullptr) {
        simd::store(at,
                    simd::fmadd(simd::broadcast(decay[f + r]), simd::load<A>(at), sums.at[r][p]));
      } else {
        decay_and_add(decay[f + r], at, low[f + r] + c + p * linear_plan<A>::lanes, sums.at[r][p]);
      }
    });
  });
}

}  // namespace heed::inline HEED_TARGET::kernel
