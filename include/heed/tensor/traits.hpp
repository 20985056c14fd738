// SPDX-License-Identifier: MIT
// What counts as a tensor, and the one customisation point that makes a type one.
//
// Specialise `heed::tensor_traits` for your own type, and every function of heed takes it:
//
//   template <>
//   struct heed::tensor_traits<my::image> {
//     static constexpr bool owns_memory = true;      // an rvalue of it would dangle
//     static auto to_view(const my::image& t) { return heed::make_view(t.ptr(), {t.rows(),
//     t.cols()}); } static auto to_view(my::image& t)       { return heed::make_view(t.ptr(),
//     {t.rows(), t.cols()}); }
//     // optional: how heed::attention makes its result; without it the result is a heed::tensor
//     static my::image make(const std::array<heed::index, 2>& extents);
//   };
#pragma once

#include <concepts>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/tensor/view.hpp"

namespace heed::inline HEED_TARGET {

/// The customisation point. See the top of this file.
template <class T>
struct tensor_traits;

namespace detail {
template <class T>
struct is_view : std::false_type {};
template <class T, int R>
struct is_view<view<T, R>> : std::true_type {};
}  // namespace detail

/// A type of which `tensor_traits` makes a view: heed's, Eigen's, mdspan, or the user's own.
template <class T>
concept tensor_like = requires(std::remove_reference_t<T>& t) {
  requires detail::is_view<decltype(tensor_traits<std::remove_cvref_t<T>>::to_view(t))>::value;
};

/// The view type that T, with its constness, adapts to.
template <tensor_like T>
using view_of = decltype(tensor_traits<std::remove_cvref_t<T>>::to_view(
    std::declval<std::remove_reference_t<T>&>()));

/// The scalar of a tensor, without const.
template <tensor_like T>
using scalar_of = std::remove_const_t<typename view_of<T>::scalar>;

/// The number of axes of a tensor type.
template <tensor_like T>
inline constexpr int rank_of = view_of<T>::rank;

/// A tensor whose elements may be written through it.
template <class T>
concept writable_tensor = tensor_like<T> && !std::is_const_v<typename view_of<T>::scalar>;

/// A type whose result `make(extents)` heed may return to the user.
template <class T>
concept makeable_tensor = requires(const typename view_of<T>::extents_type& extents) {
  { tensor_traits<std::remove_cvref_t<T>>::make(extents) } -> std::same_as<std::remove_cvref_t<T>>;
};

/// The view of a tensor. An rvalue that owns its memory is refused: the view would dangle.
template <tensor_like T>
[[nodiscard]] constexpr view_of<T> as_view(T&& t) {
  static_assert(
      std::is_lvalue_reference_v<T> || !tensor_traits<std::remove_cvref_t<T>>::owns_memory,
      "heed: a view of a temporary that owns its memory would dangle; name the tensor first");
  return tensor_traits<std::remove_cvref_t<T>>::to_view(t);
}

template <class T, int R>
struct tensor_traits<view<T, R>> {
  static constexpr bool owns_memory = false;
  static constexpr view<T, R> to_view(const view<T, R>& v) noexcept { return v; }
};

}  // namespace heed::inline HEED_TARGET
