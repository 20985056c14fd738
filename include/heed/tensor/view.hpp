// SPDX-License-Identifier: MIT
// A tensor as kernels see it: a pointer, extents and strides. Owns nothing.
//
// Axes from the slowest to the fastest in meaning, not necessarily in memory:
//   rank 2: tokens x channels                          (one head)
//   rank 3: heads x tokens x channels
//   rank 4: batch x heads x tokens x channels
// Strides count elements, may be negative, zero (broadcast) or in any order. Extents may be zero. A
// view of a pointer believes it; one of a span is checked against the memory it is given.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>

#include "heed/core/checked.hpp"
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

  /// Row-major: the last axis is contiguous. Throws shape_error on a negative extent, and where no
  /// memory could hold so many elements.
  constexpr view(T* data, const extents_type& extents)
      : data_(data), extents_(extents), strides_(packed(extents)) {
    (void)checked_size("view", extents, bytes);
  }

  /// Any strides, in elements. Throws shape_error on a negative extent, and where an index cannot
  /// count the elements or no memory reaches from the first to the last.
  constexpr view(T* data, const extents_type& extents, const extents_type& strides)
      : data_(data), extents_(extents), strides_(strides) {
    (void)checked_size("view", extents);
    const reach r = reach_of(extents, strides);
    if (saturating_product(saturating_sum(r.before, r.behind), bytes) >= largest_index - bytes) {
      fail<shape_error>("view of extents " + format_extents(extents) + " and strides " +
                        format_extents(strides) + " reaches further than memory can");
    }
  }

  /// The same over memory of known size, which begins at element 0. Throws shape_error where an
  /// element lies outside it.
  template <class U, std::size_t N>
    requires(std::is_same_v<U, T> || std::is_same_v<const U, T>)
  constexpr view(std::span<U, N> memory, const extents_type& extents)
      : view(memory.data(), extents) {
    require_inside(static_cast<index>(memory.size()));
  }
  template <class U, std::size_t N>
    requires(std::is_same_v<U, T> || std::is_same_v<const U, T>)
  constexpr view(std::span<U, N> memory, const extents_type& extents, const extents_type& strides)
      : view(memory.data(), extents, strides) {
    require_inside(static_cast<index>(memory.size()));
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

  /// Other memory by the same extents and strides, which it is believed to have.
  [[nodiscard]] constexpr view over(T* data) const noexcept {
    view out = *this;
    out.data_ = data;
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
      step = extents[a] > 0 ? saturating_product(step, extents[a]) : 0;
    }
    return s;
  }

 private:
  static constexpr index bytes = static_cast<index>(sizeof(T));

  /// How far the elements lie before and behind element 0.
  struct reach {
    index before = 0;
    index behind = 0;
  };
  [[nodiscard]] static constexpr reach reach_of(const extents_type& extents,
                                                const extents_type& strides) noexcept {
    reach r;
    for (std::size_t a = 0; a < extents.size(); ++a) {
      if (extents[a] == 0) return {};
      // The least index has no opposite.
      const index step = strides[a] >= 0               ? strides[a]
                         : strides[a] < -largest_index ? largest_index
                                                       : -strides[a];
      index& side = strides[a] >= 0 ? r.behind : r.before;
      side = saturating_sum(side, saturating_product(extents[a] - 1, step));
    }
    return r;
  }
  constexpr void require_inside(index elements) const {
    if (empty()) return;
    const reach r = reach_of(extents_, strides_);
    if (r.before > 0 || r.behind >= elements) {
      fail<shape_error>("view of extents " + format_extents(extents_) + " and strides " +
                        format_extents(strides_) + " has elements from " +
                        std::to_string(-r.before) + " to " + std::to_string(r.behind) +
                        ", its memory has " + std::to_string(elements));
    }
  }

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

/// Memory of known size with extents, row-major; a view that reaches outside it is refused.
template <class T, std::size_t N, std::size_t Rank>
[[nodiscard]] constexpr view<T, static_cast<int>(Rank)> make_view(std::span<T, N> memory,
                                                                  const index (&extents)[Rank]) {
  return {memory, std::to_array(extents)};
}
template <class T, std::size_t N, std::size_t Rank>
[[nodiscard]] constexpr view<T, static_cast<int>(Rank)> make_view(std::span<T, N> memory,
                                                                  const index (&extents)[Rank],
                                                                  const index (&strides)[Rank]) {
  return {memory, std::to_array(extents), std::to_array(strides)};
}

/// A raw pointer with extents and strides, in elements.
template <class T, std::size_t Rank>
[[nodiscard]] constexpr view<T, static_cast<int>(Rank)> make_view(T* data,
                                                                  const index (&extents)[Rank],
                                                                  const index (&strides)[Rank]) {
  return {data, std::to_array(extents), std::to_array(strides)};
}

}  // namespace heed::inline HEED_TARGET
