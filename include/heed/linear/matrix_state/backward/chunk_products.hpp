// SPDX-License-Identifier: MIT
// Products of a chunk that its gradient needs beside those of kernel/chunk, and decays of its rows.
//
//   product            out = a b
//   add_lower          out_i += sum_{j <= i} w_ij b_j
//   add_lower_transposed  out_j += sum_{i >= j} w_ij b_i       w_ij is 0 for j > i
//   solve_transposed   y_j = y_j + sum_{i > j} m_ij e_i, e_j = f(j, y_j)
//
// Columns are padded to whole packets, their contents there of no meaning. Sums run in the order of
// their index.
#pragma once

#include <cstddef>

#include "heed/core/target.hpp"
#include "heed/kernel/chunk/decayed_gemm.hpp"

namespace heed::inline HEED_TARGET::detail {

template <class A, class Sums>
HEED_INLINE void load_sums(Sums& sums, matrix_rows<A> from, index c) noexcept {
  sums.each([&](auto r, auto p) HEED_INLINE_LAMBDA {
    sums.at[r][p] = simd::load<A>(from[r] + c + p * linear_plan<A>::lanes);
  });
}
template <class A, class Sums>
HEED_INLINE void store_sums(Sums& sums, matrix_rows<A> to, index c) noexcept {
  sums.each([&](auto r, auto p) HEED_INLINE_LAMBDA {
    simd::store(to[r] + c + p * linear_plan<A>::lanes, sums.at[r][p]);
  });
}

/// out = a b, `count` the rows of b.
template <class A>
HEED_NOINLINE void product(matrix_rows<const A> a, matrix_rows<const A> b, index count, index rows,
                           index columns, matrix_rows<A> out) noexcept {
  for_each_register_tile<A>(rows, columns, [&](auto r_count, index i, auto packets, index c) {
    register_sums<A, decltype(r_count)::value, decltype(packets)::value> sums;
    sums.clear();
    sums.add_product({a[i], a.stride}, {b.data + c, b.stride}, count);
    store_sums<A>(sums, {out[i], out.stride}, c);
  });
}

/// out_i += sum of w_ij b_j over j <= i < tokens.
template <class A>
HEED_NOINLINE void add_lower(matrix_rows<const A> w, matrix_rows<const A> b, index tokens,
                             index columns, matrix_rows<A> out) noexcept {
  for_each_register_tile<A>(tokens, columns, [&](auto rows, index i, auto packets, index c) {
    register_sums<A, decltype(rows)::value, decltype(packets)::value> sums;
    load_sums<A>(sums, {out[i], out.stride}, c);
    sums.add_product({w[i], w.stride}, {b.data + c, b.stride}, i);
    sums.add_lower_triangle({w[i] + i, w.stride}, {b[i] + c, b.stride});
    store_sums<A>(sums, {out[i], out.stride}, c);
  });
}

/// out_j += sum of w_ij b_i over j <= i < tokens; w is 0 above its diagonal.
template <class A>
HEED_NOINLINE void add_lower_transposed(matrix_rows<const A> w, matrix_rows<const A> b,
                                        index tokens, index columns, matrix_rows<A> out) noexcept {
  for_each_register_tile<A>(tokens, columns, [&](auto rows, index j, auto packets, index c) {
    register_sums<A, decltype(rows)::value, decltype(packets)::value> sums;
    load_sums<A>(sums, {out[j], out.stride}, c);
    sums.add_transposed_product({w[j] + j, w.stride}, {b[j] + c, b.stride}, tokens - j);
    store_sums<A>(sums, {out[j], out.stride}, c);
  });
}

/// y_j += sum of m_ij e_i over i > j, and e_j = f(j, y_j packet): from the last row, whole packets.
template <class A, class F>
HEED_NOINLINE void solve_transposed(matrix_rows<const A> m, index tokens, index columns,
                                    matrix_rows<A> y, matrix_rows<A> e, F&& f) noexcept {
  constexpr index lanes = simd::lanes<A>;
  in_steps<4>(columns / lanes, [&](auto packets, index p) {
    const index c = p * lanes;
    for (index j = tokens; j-- > 0;) {
      simd::packet<A> sum[std::size_t{decltype(packets)::value}];
      const auto each = [&](auto&& g) HEED_INLINE_LAMBDA {
        simd::unroll<decltype(packets)::value>(
            [&](auto i) HEED_INLINE_LAMBDA { g(sum[i], c + i * lanes); });
      };
      each([&](auto& x, index at) HEED_INLINE_LAMBDA { x = simd::load<A>(y[j] + at); });
      for (index i = tokens; --i > j;) {
        const auto factor = simd::broadcast(m[i][j]);
        each([&](auto& x, index at)
                 HEED_INLINE_LAMBDA { x = simd::fmadd(factor, simd::load<A>(e[i] + at), x); });
      }
      each([&](auto& x, index at) HEED_INLINE_LAMBDA {
        simd::store(y[j] + at, x);
        simd::store(e[j] + at, f(j, x));
      });
    }
  });
}

/// to = x', `rows` of `columns`, both rounded up to whole packets.
template <class A>
HEED_NOINLINE void transpose_rows(matrix_rows<const A> x, index rows, index columns,
                                  matrix_rows<A> to) noexcept {
  constexpr index lanes = simd::lanes<A>;
  for (index i = 0; i < rows; i += lanes) {
    for (index f = 0; f < columns; f += lanes) {
      simd::transpose(x[i] + f, x.stride, to[f] + i, to.stride);
    }
  }
}

/// sum += x y, number by number, whole packets.
template <class A>
HEED_INLINE void add_products(const A* x, const A* y, A* sum, index count) noexcept {
  for (index f = 0; f < count; f += simd::lanes<A>) {
    simd::store(sum + f,
                simd::fmadd(simd::load<A>(x + f), simd::load<A>(y + f), simd::load<A>(sum + f)));
  }
}

/// The decays of a chunk's rows: of one number a token, or of a row of channels.
template <class A>
struct row_decays {
  bool by_channel = false;
  A* number = nullptr;       // [tokens]
  matrix_rows<A> channel{};  // [tokens][Dk]

  /// x_i times the decay of row i, all rows.
  void apply(matrix_rows<A> x, index tokens, index columns) const noexcept {
    for (index i = 0; i < tokens; ++i) {
      if (by_channel) {
        multiply_by(x[i], static_cast<const A*>(channel[i]), columns);
      } else {
        multiply_by(x[i], number[i], columns);
      }
    }
  }
};

/// What one stream of queries x with cotangents e, whose pairs' products are b_ij = e_i.v_j, gives to
/// the gradients where decays differ by channel:
///
///   dx_i += sum_j b_ij P_ij k_j,  dk_j += sum_i b_ij P_ij x_i
///   rect_t += sum_{i >= t > j} b_ij x_i k_j P_ij            the gates of token t, where wanted
///
/// over j <= i. P_ij is multiplied up token by token. At most `Most` tokens. With Before the queries
/// meet the keys before them, and before their own token's decay: P_(i-1)j, j < i.
template <class A, int Most, bool Before = false>
HEED_NOINLINE void decayed_pair_gradients(matrix_rows<const A> b, matrix_rows<const A> x,
                                          matrix_rows<const A> k, matrix_rows<const A> decay,
                                          index tokens, index columns, matrix_rows<A> dx,
                                          matrix_rows<A> dk, matrix_rows<A> rect) noexcept {
  using packet = simd::packet<A>;
  for (index f = 0; f < columns; f += simd::lanes<A>) {
    packet since[std::size_t{Most}];  // P_ij of each j
    for (index i = 0; i < tokens; ++i) {
      const packet d = simd::load<A>(decay[i] + f);
      const packet at = simd::load<A>(x[i] + f);
      packet sum = simd::load<A>(dx[i] + f);
      packet crossing = simd::zero<A>();
      for (index j = 0; j < i; ++j) {
        const auto n = static_cast<std::size_t>(j);
        if constexpr (!Before) since[n] = simd::mul(since[n], d);
        const packet key = simd::mul(since[n], simd::load<A>(k[j] + f));
        const packet weight = simd::broadcast(b[i][j]);
        const packet weighted = simd::mul(weight, at);
        sum = simd::fmadd(weight, key, sum);
        simd::store(dk[j] + f, simd::fmadd(weighted, since[n], simd::load<A>(dk[j] + f)));
        if constexpr (Before) since[n] = simd::mul(since[n], d);
        if (rect.data == nullptr || (Before && j + 1 == i)) continue;
        crossing = simd::fmadd(weighted, key, crossing);
        simd::store(rect[j + 1] + f, simd::add(simd::load<A>(rect[j + 1] + f), crossing));
      }
      since[static_cast<std::size_t>(i)] = simd::broadcast(A(1));
      if constexpr (Before) {
        simd::store(dx[i] + f, sum);
        continue;
      }
      const packet weight = simd::broadcast(b[i][i]);
      simd::store(dx[i] + f, simd::fmadd(weight, simd::load<A>(k[i] + f), sum));
      simd::store(dk[i] + f, simd::fmadd(weight, at, simd::load<A>(dk[i] + f)));
    }
  }
}

}  // namespace heed::inline HEED_TARGET::detail
