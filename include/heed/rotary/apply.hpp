// SPDX-License-Identifier: MIT
// Rotates queries or keys by their positions, in place or into another tensor.
//
//   [a', b'] = [a cos - b sin, b cos + a sin]  for every pair (a, b) of the layout; see
//   embedding.hpp
//
//   heed::apply_rotary(q, rope);                              // positions 0, 1, 2, ...
//   heed::apply_rotary(k, rope, cache.length());              // an offset
//   heed::apply_rotary(q, rope, position_ids);                // see positions.hpp
//   heed::apply_rotary(q, heed::rotary_layout::interleaved, cos, sin, position_ids);   // tables
//   heed::apply_rotary_into(out, q, rope);
//
// x, out   tokens x channels, heads x tokens x channels, or batch x heads x tokens x channels; any
//          strides. `out` is x itself or does not overlap it.
// cos, sin positions x r/2 (looked up by position), or batch x tokens x r/2 (already gathered, no
//          positions); r follows from them. Any heed scalar, not necessarily x's.
// Packed projections batch x tokens x (heads * channels) go through `split_heads`.
//
// Scalars: float, double, half, bfloat16. Products and the sum in the accumulator (float, or double
// for double), cosines and sines rounded to it from double, the result rounded once to the scalar:
// error at most 3 eps of the accumulator times hypot(a, b), plus half an ulp of the scalar. NaN and
// infinities stay within their pair. Zero extents do nothing. Cost: 6 FLOPs a pair and head; one
// cosine and sine a pair, token and element of the batch (shared by the heads, and by the batch
// where the positions are; none with tables). One read and one write of x. Allocates nothing. Safe
// to call at the same time on different tensors. Throws shape_error, before anything is written,
// when extents do not fit or a position has no row. Source: Su et al. 2021, arXiv 2104.09864, eq.
// 34; tables and gathering as in ONNX RotaryEmbedding 23.
#pragma once

#include <algorithm>
#include <string>
#include <utility>

#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/rotary/embedding.hpp"
#include "heed/rotary/positions.hpp"
#include "heed/rotary/rotate.hpp"
#include "heed/tensor/layout.hpp"
#include "heed/tensor/scalar.hpp"
#include "heed/tensor/tensor_like.hpp"

namespace heed::inline HEED_TARGET {

/// A tensor that may be rotated: rank 2 to 4 of a heed scalar.
template <class X>
concept rotary_tensor = tensor_like<X> && requires {
  requires attention_scalar<scalar_of<X>>;
  requires rank_of<X> >= 2 && rank_of<X> <= 4;
};

/// A table looked up by position (rank 2) or gathered (rank 3).
template <class C, int Rank>
concept rotary_table = tensor_like<C> && requires {
  requires attention_scalar<scalar_of<C>>;
  requires rank_of<C> == Rank;
};

template <rotary_tensor X, token_positions P = index>
  requires writable_tensor<X>
void apply_rotary(X&& x, const rotary_embedding& rope, const P& positions = P{});

template <rotary_tensor Out, rotary_tensor X, token_positions P = index>
  requires writable_tensor<Out>
void apply_rotary_into(Out&& out, X&& x, const rotary_embedding& rope, const P& positions = P{});

template <rotary_tensor X, rotary_table<2> Cos, rotary_table<2> Sin, token_positions P = index>
  requires writable_tensor<X>
void apply_rotary(X&& x, rotary_layout layout, Cos&& cos, Sin&& sin, const P& positions = P{});

template <rotary_tensor Out, rotary_tensor X, rotary_table<2> Cos, rotary_table<2> Sin,
          token_positions P = index>
  requires writable_tensor<Out>
void apply_rotary_into(Out&& out, X&& x, rotary_layout layout, Cos&& cos, Sin&& sin,
                       const P& positions = P{});

template <rotary_tensor X, rotary_table<3> Cos, rotary_table<3> Sin>
  requires writable_tensor<X>
void apply_rotary(X&& x, rotary_layout layout, Cos&& cos, Sin&& sin);

template <rotary_tensor Out, rotary_tensor X, rotary_table<3> Cos, rotary_table<3> Sin>
  requires writable_tensor<Out>
void apply_rotary_into(Out&& out, X&& x, rotary_layout layout, Cos&& cos, Sin&& sin);

namespace detail {

template <class Out, class X>
[[nodiscard]] auto checked_rotary_output(const Out& out, const X& x) {
  if (out.extents() != x.extents()) {
    fail<shape_error>("out has extents " + format_extents(out.extents()) + ", x has " +
                      format_extents(x.extents()));
  }
  return as_rank4(out);
}

inline void require_rotated_dims(const char* what, index rotated, index head_dim) {
  if (rotated > head_dim) {
    fail<shape_error>("x has head dim " + std::to_string(head_dim) + ", " + what + " rotates " +
                      std::to_string(rotated) + " dims");
  }
}

template <class C, class S>
void require_tables(const C& cos, const S& sin, index head_dim) {
  if (cos.extents() != sin.extents()) {
    fail<shape_error>("sin has extents " + format_extents(sin.extents()) + ", cos has " +
                      format_extents(cos.extents()));
  }
  require_rotated_dims("the cos table", 2 * cos.extent(C::rank - 1), head_dim);
}

/// Throws unless every position has a row in a table.
template <class Positions>
void require_rows(const Positions& position, index batch, index tokens, index rows) {
  for (index b = 0; b < (position.shared() ? std::min<index>(batch, 1) : batch); ++b) {
    for (index n = 0; n < tokens; ++n) {
      const index p = position(b, n);
      if (p < 0 || p >= rows) {
        fail<shape_error>("batch " + std::to_string(b) + ", token " + std::to_string(n) +
                          " is at position " + std::to_string(p) + ", cos has " +
                          std::to_string(rows) + " positions");
      }
    }
  }
}

}  // namespace detail

template <rotary_tensor Out, rotary_tensor X, token_positions P>
  requires writable_tensor<Out>
void apply_rotary_into(Out&& out, X&& x, const rotary_embedding& rope, const P& positions) {
  using T = scalar_of<X>;
  static_assert(std::is_same_v<scalar_of<Out>, T>, "heed: out and x have the same scalar");
  static_assert(rank_of<Out> == rank_of<X>, "heed: out and x have the same rank");
  const auto xv = as_view(std::forward<X>(x));
  const view<T, 4> o = detail::checked_rotary_output(as_view(std::forward<Out>(out)), xv);
  const view<const T, 4> in = as_rank4(xv);
  detail::require_rotated_dims("rotary_embedding", rope.rotated_dims(), in.extent(3));
  const auto position = detail::resolve_positions(positions, in.extent(0), in.extent(2));
  detail::rotate_tokens(o, in, rope.layout(), rope.pairs(),
                        detail::computed_rotation<decltype(position)>{rope, position});
}

template <rotary_tensor Out, rotary_tensor X, rotary_table<2> Cos, rotary_table<2> Sin,
          token_positions P>
  requires writable_tensor<Out>
void apply_rotary_into(Out&& out, X&& x, rotary_layout layout, Cos&& cos, Sin&& sin,
                       const P& positions) {
  using T = scalar_of<X>;
  static_assert(std::is_same_v<scalar_of<Out>, T>, "heed: out and x have the same scalar");
  static_assert(rank_of<Out> == rank_of<X>, "heed: out and x have the same rank");
  const auto xv = as_view(std::forward<X>(x));
  const view<T, 4> o = detail::checked_rotary_output(as_view(std::forward<Out>(out)), xv);
  const view<const T, 4> in = as_rank4(xv);
  const view<const scalar_of<Cos>, 2> c = as_view(std::forward<Cos>(cos));
  const view<const scalar_of<Sin>, 2> s = as_view(std::forward<Sin>(sin));
  detail::require_tables(c, s, in.extent(3));
  const auto position = detail::resolve_positions(positions, in.extent(0), in.extent(2));
  detail::require_rows(position, in.extent(0), in.extent(2), c.extent(0));
  detail::rotate_tokens(
      o, in, layout, c.extent(1),
      detail::table_rotation<scalar_of<Cos>, scalar_of<Sin>, decltype(position)>{c, s, position});
}

template <rotary_tensor Out, rotary_tensor X, rotary_table<3> Cos, rotary_table<3> Sin>
  requires writable_tensor<Out>
void apply_rotary_into(Out&& out, X&& x, rotary_layout layout, Cos&& cos, Sin&& sin) {
  using T = scalar_of<X>;
  static_assert(std::is_same_v<scalar_of<Out>, T>, "heed: out and x have the same scalar");
  static_assert(rank_of<Out> == rank_of<X>, "heed: out and x have the same rank");
  const auto xv = as_view(std::forward<X>(x));
  const view<T, 4> o = detail::checked_rotary_output(as_view(std::forward<Out>(out)), xv);
  const view<const T, 4> in = as_rank4(xv);
  const view<const scalar_of<Cos>, 3> c = as_view(std::forward<Cos>(cos));
  const view<const scalar_of<Sin>, 3> s = as_view(std::forward<Sin>(sin));
  detail::require_tables(c, s, in.extent(3));
  require_equal("cos", "batch", c.extent(0), "x", in.extent(0));
  require_equal("cos", "tokens", c.extent(1), "x", in.extent(2));
  detail::rotate_tokens(o, in, layout, c.extent(2),
                        detail::gathered_rotation<scalar_of<Cos>, scalar_of<Sin>>{c, s});
}

template <rotary_tensor X, token_positions P>
  requires writable_tensor<X>
void apply_rotary(X&& x, const rotary_embedding& rope, const P& positions) {
  const auto v = as_view(std::forward<X>(x));
  apply_rotary_into(v, v, rope, positions);
}

template <rotary_tensor X, rotary_table<2> Cos, rotary_table<2> Sin, token_positions P>
  requires writable_tensor<X>
void apply_rotary(X&& x, rotary_layout layout, Cos&& cos, Sin&& sin, const P& positions) {
  const auto v = as_view(std::forward<X>(x));
  apply_rotary_into(v, v, layout, std::forward<Cos>(cos), std::forward<Sin>(sin), positions);
}

template <rotary_tensor X, rotary_table<3> Cos, rotary_table<3> Sin>
  requires writable_tensor<X>
void apply_rotary(X&& x, rotary_layout layout, Cos&& cos, Sin&& sin) {
  const auto v = as_view(std::forward<X>(x));
  apply_rotary_into(v, v, layout, std::forward<Cos>(cos), std::forward<Sin>(sin));
}

}  // namespace heed::inline HEED_TARGET
