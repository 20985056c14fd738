// SPDX-License-Identifier: MIT
// Layouts that other libraries use, brought to batch x heads x tokens x channels by strides alone.
#pragma once

#include "heed/core/target.hpp"
#include "heed/tensor/tensor_like.hpp"

namespace heed::inline HEED_TARGET {

/// Any tensor of rank 2, 3 or 4 as batch x heads x tokens x channels; missing axes have extent 1.
template <class T, int R>
[[nodiscard]] constexpr view<T, 4> as_rank4(const view<T, R>& v) noexcept {
  static_assert(R >= 2 && R <= 4,
                "heed: a tensor of queries, keys or values has rank 2 (tokens x channels), "
                "3 (heads x tokens x channels) or 4 (batch x heads x tokens x channels)");
  typename view<T, 4>::extents_type e{1, 1, 1, 1};
  typename view<T, 4>::extents_type s{0, 0, 0, 0};
  for (int a = 0; a < R; ++a) {
    e[static_cast<std::size_t>(4 - R + a)] = v.extent(a);
    s[static_cast<std::size_t>(4 - R + a)] = v.stride(a);
  }
  return {v.data(), e, s};
}

/// Packed projections, batch x tokens x (heads * channels), as batch x heads x tokens x channels;
/// or tokens x (heads * channels) as heads x tokens x channels. Throws shape_error when the last
/// axis is not a multiple of `heads`.
template <tensor_like T>
  requires(rank_of<T> == 2 || rank_of<T> == 3)
[[nodiscard]] constexpr auto split_heads(T&& t, index heads) {
  const auto v = as_view(std::forward<T>(t));
  constexpr int tokens = rank_of<T> - 2;
  constexpr int packed = rank_of<T> - 1;
  if (heads <= 0 || v.extent(packed) % heads != 0) {
    fail<shape_error>("split_heads: " + std::to_string(v.extent(packed)) +
                      " channels do not divide into " + std::to_string(heads) + " heads");
  }
  const index d = v.extent(packed) / heads;
  const index step = v.stride(packed);
  using scalar = typename view_of<T>::scalar;
  if constexpr (rank_of<T> == 2) {
    return view<scalar, 3>(v.data(), {heads, v.extent(tokens), d},
                           {d * step, v.stride(tokens), step});
  } else {
    return view<scalar, 4>(v.data(), {v.extent(0), heads, v.extent(tokens), d},
                           {v.stride(0), d * step, v.stride(tokens), step});
  }
}

/// Token-major batch x tokens x heads x channels as batch x heads x tokens x channels, or
/// tokens x heads x channels as heads x tokens x channels.
template <tensor_like T>
  requires(rank_of<T> == 3 || rank_of<T> == 4)
[[nodiscard]] constexpr auto heads_first(T&& t) {
  constexpr int axis = rank_of<T> - 3;
  return as_view(std::forward<T>(t)).swap_axes(axis, axis + 1);
}

}  // namespace heed::inline HEED_TARGET
