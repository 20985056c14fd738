// SPDX-License-Identifier: MIT
// A tensor as kernels see it: a pointer, extents and strides. Owns nothing.
//
// Axes from the slowest to the fastest in meaning, not necessarily in memory:
//   rank 2: tokens x channels                          (one head)
//   rank 3: heads x tokens x channels
//   rank 4: batch x heads x tokens x channels
// Strides count elements, may be negative, zero (broadcast) or in any order. Extents may be zero.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <type_traits>

#include "heed/core/config.hpp"
#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"

namespace heed::inline HEED_TARGET {

template <class T, int Rank>
class view {
  static_assert(Rank >= 1, "a view has at least one axis");

 public:
  using scalar = T;
  static constexpr int rank = Rank;
  using extents_type = std::array<index, static_cast<std::size_t>(Rank)>;

  constexpr view() noexcept = default;

  /// Row-major: the last axis is contiguous. Throws shape_error on a negative extent.
  constexpr view(T* data, const extents_type& extents) : view(data, extents, packed(extents)) {}

  /// Any strides, in elements. Throws shape_error on a negative extent.
  constexpr view(T* data, const extents_type& extents, const extents_type& strides)
      : data_(data), extents_(extents), strides_(strides) {
    for (const index e : extents) {
      if (e < 0) fail<shape_error>("view extents " + format_extents(extents) + " are negative");
    }
  }

  /// A view of mutable data reads as a view of constant data.
  template <class U>
    requires(std::is_same_v<const U, T> && !std::is_const_v<U>)
  constexpr view(const view<U, Rank>& other) noexcept  // NOLINT(google-explicit-constructor)
      : data_(other.data()), extents_(other.extents()), strides_(other.strides()) {}

  [[nodiscard]] constexpr T* data() const noexcept { return data_; }
  [[nodiscard]] constexpr const extents_type& extents() const noexcept { return extents_; }
  [[nodiscard]] constexpr const extents_type& strides() const noexcept { return strides_; }
  [[nodiscard]] constexpr index extent(int axis) const noexcept {
    return extents_[static_cast<std::size_t>(axis)];
  }
  [[nodiscard]] constexpr index stride(int axis) const noexcept {
    return strides_[static_cast<std::size_t>(axis)];
  }
  [[nodiscard]] constexpr index size() const noexcept {
    index n = 1;
    for (const index e : extents_) n *= e;
    return n;
  }
  [[nodiscard]] constexpr bool empty() const noexcept { return size() == 0; }

  template <class... I>
    requires(sizeof...(I) == static_cast<std::size_t>(Rank))
  [[nodiscard]] constexpr T& operator()(I... at) const noexcept {
    index offset = 0;
    int axis = 0;
    ((offset += static_cast<index>(at) * stride(axis++)), ...);
    return data_[offset];
  }

  /// The view with the first axis fixed at `i`.
  [[nodiscard]] constexpr auto operator[](index i) const noexcept
    requires(Rank > 1)
  {
    view<T, Rank - 1> out;
    out.data_ = data_ == nullptr ? nullptr : data_ + i * strides_[0];
    for (std::size_t a = 1; a < static_cast<std::size_t>(Rank); ++a) {
      out.extents_[a - 1] = extents_[a];
      out.strides_[a - 1] = strides_[a];
    }
    return out;
  }

  /// Indices `begin` to `end` of an axis. Throws shape_error when they do not lie inside it.
  [[nodiscard]] constexpr view slice(int axis, index begin, index end) const {
    if (begin < 0 || end < begin || end > extent(axis)) {
      fail<shape_error>("slice [" + std::to_string(begin) + ", " + std::to_string(end) +
                        ") is outside axis " + std::to_string(axis) + " of " +
                        format_extents(extents_));
    }
    view out = *this;
    out.extents_[static_cast<std::size_t>(axis)] = end - begin;
    if (out.size() != 0) out.data_ += begin * stride(axis);
    return out;
  }

  /// Two axes exchanged, by strides alone.
  [[nodiscard]] constexpr view swap_axes(int a, int b) const noexcept {
    view out = *this;
    out.extents_[static_cast<std::size_t>(a)] = extent(b);
    out.extents_[static_cast<std::size_t>(b)] = extent(a);
    out.strides_[static_cast<std::size_t>(a)] = stride(b);
    out.strides_[static_cast<std::size_t>(b)] = stride(a);
    return out;
  }

  /// Strides of a row-major tensor of these extents.
  [[nodiscard]] static constexpr extents_type packed(const extents_type& extents) noexcept {
    extents_type s{};
    index step = 1;
    for (std::size_t a = static_cast<std::size_t>(Rank); a-- > 0;) {
      s[a] = step;
      step *= extents[a];
    }
    return s;
  }

 private:
  template <class, int>
  friend class view;

  T* data_ = nullptr;
  extents_type extents_{};
  extents_type strides_{};
};

/// A raw pointer with extents, row-major: `make_view(ptr, {heads, tokens, channels})`.
template <class T, std::size_t Rank>
[[nodiscard]] constexpr view<T, static_cast<int>(Rank)> make_view(T* data,
                                                                  const index (&extents)[Rank]) {
  return {data, std::to_array(extents)};
}

/// A raw pointer with extents and strides, in elements.
template <class T, std::size_t Rank>
[[nodiscard]] constexpr view<T, static_cast<int>(Rank)> make_view(T* data,
                                                                  const index (&extents)[Rank],
                                                                  const index (&strides)[Rank]) {
  return {data, std::to_array(extents), std::to_array(strides)};
}

}  // namespace heed::inline HEED_TARGET
