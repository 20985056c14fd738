// SPDX-License-Identifier: MIT
// The three matrix products of the linear family, on registers, for a chunk of tokens.
//
//   weights   w[i][j] = sum_f q[i][f] kt[f][j]                                   j up to i
//   outputs   o[i][c] = factor[i] (sum_f q[i][f] s[f][c] + sum_{j <= i} w[i][j] v[j][c])
//   writes    s[f][c] += sum_j k[j][f] v[j][c]
//
// Lanes run along c (or j); the other operand is broadcast. Columns are padded to whole packets,
// their contents there of no meaning. Sums run in the order of their index, in the accumulator
// type; a write sums its chunk from zero before adding it to the state, with a compensated sum where
// the caller keeps the low parts: errors then grow neither with tokens nor with chunks. A pair j > i never meets a multiplication whose result is kept, so that a NaN cannot
// reach an earlier token.
#pragma once

#include <cstddef>
#include <limits>
#include <type_traits>

#include "heed/core/config.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/kernel/prefetch_stream.hpp"
#include "heed/kernel/tiled/microkernel.hpp"
#include "heed/simd/packet.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// Register tiles of these products: `rows` x `packets` sums, a row of operands and a broadcast.
template <class A>
struct linear_plan {
  static constexpr index lanes = simd::lanes<A>;
  static constexpr int rows = simd::vector_registers == 32 ? 8 : 6;
  static constexpr int packets = 2;
};

/// A row-major matrix: row r at data + r * stride.
template <class T>
struct matrix_rows {
  T* data = nullptr;
  index stride = 0;

  [[nodiscard]] constexpr T* operator[](index r) const noexcept { return data + r * stride; }
};

template <class A, int Rows, int Packets>
struct register_sums {
  using packet = simd::packet<A>;
  packet at[std::size_t{Rows}][std::size_t{Packets}];

  HEED_INLINE void clear() noexcept {
    each([&](auto r, auto p) HEED_INLINE_LAMBDA { at[r][p] = simd::zero<A>(); });
  }

  template <class F>
  HEED_INLINE void each(F&& f) noexcept {
    simd::unroll<Rows>([&](auto r) HEED_INLINE_LAMBDA {
      simd::unroll<Packets>([&](auto p) HEED_INLINE_LAMBDA { f(r, p); });
    });
  }

  /// at[r] += a[r][t] b[t] for t in [0, count): a by rows.
  HEED_INLINE void add_product(matrix_rows<const A> a, matrix_rows<const A> b,
                               index count) noexcept {
    const A* row[std::size_t{Rows}];
    simd::unroll<Rows>([&](auto r) HEED_INLINE_LAMBDA { row[r] = a[r]; });
    for (index t = 0; t < count; ++t) {
      add_outer<0>([&](auto r) HEED_INLINE_LAMBDA { return row[r][t]; }, b[t]);
    }
  }

  /// at[r] += a[t][r] b[t] for t in [0, count): a by columns.
  HEED_INLINE void add_transposed_product(matrix_rows<const A> a, matrix_rows<const A> b,
                                          index count) noexcept {
    for (index t = 0; t < count; ++t) {
      const A* column = a[t];
      add_outer<0>([&](auto r) HEED_INLINE_LAMBDA { return column[r]; }, b[t]);
    }
  }

  /// at[r] += a[r][t] b[t] for t <= r.
  HEED_INLINE void add_lower_triangle(matrix_rows<const A> a, matrix_rows<const A> b) noexcept {
    simd::unroll<Rows>([&](auto t) HEED_INLINE_LAMBDA {
      add_outer<decltype(t)::value>([&](auto r) HEED_INLINE_LAMBDA { return a[r][t]; }, b[t]);
    });
  }

  /// at[r] += a[r][t] b[t] for t < r.
  HEED_INLINE void add_below_diagonal(matrix_rows<const A> a, matrix_rows<const A> b) noexcept {
    simd::unroll<Rows - 1>([&](auto t) HEED_INLINE_LAMBDA {
      add_outer<decltype(t)::value + 1>([&](auto r) HEED_INLINE_LAMBDA { return a[r][t]; }, b[t]);
    });
  }

  /// at[r] += x(r) b for rows r >= First.
  template <int First, class X>
  HEED_INLINE void add_outer(X&& x, const A* b) noexcept {
    packet operand[std::size_t{Packets}];
    simd::unroll<Packets>([&](auto p) HEED_INLINE_LAMBDA {
      operand[p] = simd::load_once(b + p * linear_plan<A>::lanes);
    });
    simd::unroll<Rows - First>([&](auto i) HEED_INLINE_LAMBDA {
      constexpr auto r = std::integral_constant<int, First + decltype(i)::value>{};
      const packet factor = simd::broadcast(A(x(r)));
      simd::unroll<Packets>(
          [&](auto p) HEED_INLINE_LAMBDA { at[r][p] = simd::fmadd(factor, operand[p], at[r][p]); });
    });
  }
};

/// f(integral_constant Rows, first row, integral_constant Packets, first column) over a matrix.
template <class A, class F>
HEED_INLINE void for_each_register_tile(index rows, index columns, F&& f) noexcept {
  using plan = linear_plan<A>;
  in_steps<plan::packets>(ceil_div(columns, plan::lanes), [&](auto packets, index p) {
    in_steps<plan::rows>(rows, [&](auto step, index r) { f(step, r, packets, p * plan::lanes); });
  });
}

/// Weights of a chunk of `tokens`, columns up to the row's register tile's end.
template <class A>
HEED_NOINLINE void causal_weights(matrix_rows<const A> q, matrix_rows<const A> kt, index features,
                                  index tokens, matrix_rows<A> w,
                                  prefetch_stream& stream) noexcept {
  using plan = linear_plan<A>;
  in_steps<plan::rows>(tokens, [&](auto rows, index i) {
    constexpr int r_count = decltype(rows)::value;
    in_steps<plan::packets>(ceil_div(i + r_count, plan::lanes), [&](auto packets, index p) {
      register_sums<A, r_count, decltype(packets)::value> sums;
      stream.issue();
      sums.clear();
      sums.add_product({q[i], q.stride}, {kt.data + p * plan::lanes, kt.stride}, features);
      sums.each([&](auto r, auto c) HEED_INLINE_LAMBDA {
        simd::store(w[i + r] + (p + c) * plan::lanes, sums.at[r][c]);
      });
    });
  });
}

/// Outputs of `tokens` rows from the state alone, or, with weights, from their chunk too.
template <class A, bool Causal>
HEED_NOINLINE void output_rows(matrix_rows<const A> q, matrix_rows<const A> s, index features,
                               matrix_rows<const A> w, matrix_rows<const A> v, const A* factor,
                               index tokens, index channels, matrix_rows<A> out,
                               prefetch_stream& stream) noexcept {
  for_each_register_tile<A>(tokens, channels, [&](auto rows, index i, auto packets, index c) {
    register_sums<A, decltype(rows)::value, decltype(packets)::value> sums;
    stream.issue();
    sums.clear();
    sums.add_product({q[i], q.stride}, {s.data + c, s.stride}, features);
    if constexpr (Causal) {
      sums.add_product({w[i], w.stride}, {v.data + c, v.stride}, i);
      sums.add_lower_triangle({w[i] + i, w.stride}, {v[i] + c, v.stride});
    }
    sums.each([&](auto r, auto p) HEED_INLINE_LAMBDA {
      simd::store(out[i + r] + c + p * linear_plan<A>::lanes,
                  simd::mul(sums.at[r][p], simd::broadcast(factor[i + r])));
    });
  });
}

/// total += x, where low carries what the roundings so far have lost (Kahan 1965, "Further remarks
/// on reducing truncation errors"). An infinity or a NaN of the total leaves low at 0.
template <class A>
HEED_INLINE void add_compensated(simd::packet<A>& total, simd::packet<A>& low,
                                 const simd::packet<A>& x) noexcept {
  const auto y = simd::add(x, low);
  const auto sum = simd::add(total, y);
  const auto lost = simd::sub(y, simd::sub(sum, total));
  const auto finite = simd::less(simd::abs(lost), simd::broadcast((std::numeric_limits<A>::max)()));
  low = simd::both(finite, lost);
  total = sum;
}

/// Writes a chunk of `tokens` to the state; compensated where `low` has data, s's low parts.
template <class A>
HEED_NOINLINE void write_rows(matrix_rows<const A> k, matrix_rows<const A> v, index tokens,
                              index features, index channels, matrix_rows<A> s, matrix_rows<A> low,
                              prefetch_stream& stream) noexcept {
  for_each_register_tile<A>(features, channels, [&](auto rows, index f, auto packets, index c) {
    register_sums<A, decltype(rows)::value, decltype(packets)::value> sums;
    stream.issue();
    sums.clear();
    sums.add_transposed_product({k.data + f, k.stride}, {v.data + c, v.stride}, tokens);
    if (low.data == nullptr) {
      sums.each([&](auto r, auto p) HEED_INLINE_LAMBDA {
        A* at = s[f + r] + c + p * linear_plan<A>::lanes;
        simd::store(at, simd::add(simd::load<A>(at), sums.at[r][p]));
      });
      return;
    }
    sums.each([&](auto r, auto p) HEED_INLINE_LAMBDA {
      A* const at = s[f + r] + c + p * linear_plan<A>::lanes;
      A* const low_at = low[f + r] + c + p * linear_plan<A>::lanes;
      auto total = simd::load<A>(at), lost = simd::load<A>(low_at);
      add_compensated<A>(total, lost, sums.at[r][p]);
      simd::store(at, total);
      simd::store(low_at, lost);
    });
  });
}

}  // namespace heed::inline HEED_TARGET::kernel
