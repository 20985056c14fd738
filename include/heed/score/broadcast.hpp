// SPDX-License-Identifier: MIT
// Tensors over the scores: additive bias and boolean masks, of rank 1 to 4, broadcast.
//
// A tensor is right-aligned against the scores [batch, heads, queries, keys]; missing leading
// axes and axes of extent 1 repeat. Rows are those of the query tensor, whatever the offset. A
// tensor with fewer keys than the call masks the keys it does not cover.
#pragma once

#include <limits>

#include "heed/core/target.hpp"
#include "heed/score/concepts.hpp"
#include "heed/tensor/tensor_like.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// The right-aligned view: strides of repeated axes are 0.
template <class T>
class score_tensor {
 public:
  template <int R>
  constexpr score_tensor(const char* name, const view<const T, R>& v) noexcept
      : name_(name), data_(v.data()) {
    static_assert(R >= 1 && R <= 4,
                  "heed: a mask or bias has rank 1 to 4, right-aligned against [batch, heads, "
                  "queries, keys]");
    for (int a = 0; a < R; ++a) {
      const auto at = static_cast<std::size_t>(4 - R + a);
      extents_[at] = v.extent(a);
      strides_[at] = v.extent(a) == 1 ? 0 : v.stride(a);
    }
  }

  /// Whether the key is covered at all; only then may `at` read it.
  [[nodiscard]] constexpr bool covers(index key) const noexcept { return key < width(); }
  [[nodiscard]] constexpr const T& at(const position& p) const noexcept {
    return data_[p.batch * strides_[0] + p.head * strides_[1] + p.row * strides_[2] +
                 p.key * strides_[3]];
  }
  /// Keys covered: all, where the last axis repeats.
  [[nodiscard]] constexpr index width() const noexcept {
    return extents_[3] == 1 ? (std::numeric_limits<index>::max)() : extents_[3];
  }
  [[nodiscard]] constexpr coverage covered(const tile& t) const noexcept {
    if (t.keys.end <= width()) return coverage::full;
    return t.keys.begin >= width() ? coverage::empty : coverage::partial;
  }
  [[nodiscard]] constexpr range covered_keys(const tile& t) const noexcept {
    return intersect(t.keys, {t.keys.begin, width()});
  }

  void check(const score_extents& e) const {
    const index call[] = {e.batch, e.heads, e.queries, e.keys};
    bool fits = extents_[3] == 1 || extents_[3] <= call[3];
    for (std::size_t a = 0; a < 3; ++a) fits = fits && (extents_[a] == 1 || extents_[a] == call[a]);
    if (!fits) {
      fail<shape_error>(std::string(name_) + " has extents " + format_extents(extents_) +
                        ", the scores have " + format_extents(call) +
                        " (batch, heads, queries, keys)");
    }
  }

 private:
  const char* name_;
  const T* data_;
  std::array<index, 4> extents_{1, 1, 1, 1};
  std::array<index, 4> strides_{0, 0, 0, 0};
};

template <class T, int R>
constexpr view<const T, R> as_const_view(const view<T, R>& v) noexcept {
  return v;
}

}  // namespace detail

/// score + value. A value of -inf masks the pair, whatever its score.
template <class T>
struct bias_modifier {
  static constexpr stage when = stage::bias;
  detail::score_tensor<T> values;

  template <class A>
  [[nodiscard]] constexpr A operator()(A s, const position& p) const noexcept {
    constexpr A hidden = -std::numeric_limits<A>::infinity();
    if (!values.covers(p.key)) return hidden;
    const A value = static_cast<A>(values.at(p));
    return value == hidden ? hidden : s + value;  // whatever s is: NaN - inf would be seen
  }
  [[nodiscard]] constexpr heed::coverage coverage(const tile& t) const noexcept {
    return values.covered(t);
  }
  [[nodiscard]] constexpr range visible_keys(const tile& t) const noexcept {
    return values.covered_keys(t);
  }
  void check(const score_extents& e) const { values.check(e); }
};

/// `bias(tensor)`: the tensor must outlive the call.
template <tensor_like T>
[[nodiscard]] constexpr auto bias(T&& values) {
  return bias_modifier<scalar_of<T>>{
      {"bias", detail::as_const_view(as_view(std::forward<T>(values)))}};
}

/// Keeps the pairs whose element is true.
template <class T>
struct keep_mask {
  static constexpr stage when = stage::mask;
  detail::score_tensor<T> values;

  [[nodiscard]] constexpr bool operator()(const position& p) const noexcept {
    return values.covers(p.key) && static_cast<bool>(values.at(p));
  }
  [[nodiscard]] constexpr heed::coverage coverage(const tile& t) const noexcept {
    return values.covered(t) == heed::coverage::empty ? heed::coverage::empty
                                                      : heed::coverage::partial;
  }
  [[nodiscard]] constexpr range visible_keys(const tile& t) const noexcept {
    return values.covered_keys(t);
  }
  void check(const score_extents& e) const { values.check(e); }
};

/// `keep(tensor)`: a boolean (or integer) tensor, which must outlive the call.
template <tensor_like T>
[[nodiscard]] constexpr auto keep(T&& values) {
  static_assert(std::is_integral_v<scalar_of<T>>,
                "heed: keep takes a tensor of bool or integers; an additive mask is heed::bias");
  return keep_mask<scalar_of<T>>{{"mask", detail::as_const_view(as_view(std::forward<T>(values)))}};
}

}  // namespace heed::inline HEED_TARGET
