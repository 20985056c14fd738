// SPDX-License-Identifier: MIT
// Rounding to a narrower scalar that never crosses the number: what a bound needs.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/tensor/scalar.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// The next number of a 16-bit scalar towards +inf (Sign 1) or -inf (Sign -1): of one that is not
/// there yet, and no NaN.
template <int Sign, class To>
[[nodiscard]] inline To next_number(To x) noexcept {
  static_assert(sizeof(To) == sizeof(std::uint16_t));
  std::uint16_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const bool negative = (bits & 0x8000U) != 0;
  if ((bits & 0x7fffU) == 0) {
    bits = Sign > 0 ? 0x0001U : 0x8001U;
  } else {
    bits = static_cast<std::uint16_t>(negative == (Sign > 0) ? bits - 1U : bits + 1U);
  }
  std::memcpy(static_cast<void*>(&x), &bits, sizeof bits);
  return x;
}

}  // namespace detail

/// The least To that is x or above; x is no NaN.
template <class To, class A>
[[nodiscard]] To rounded_up(A x) noexcept {
  const To y = static_cast<To>(x);
  if constexpr (!std::is_same_v<To, A>) {
    if (static_cast<A>(y) < x) return detail::next_number<1>(y);
  }
  return y;
}

/// The largest To that is x or below; x is no NaN.
template <class To, class A>
[[nodiscard]] To rounded_down(A x) noexcept {
  const To y = static_cast<To>(x);
  if constexpr (!std::is_same_v<To, A>) {
    if (static_cast<A>(y) > x) return detail::next_number<-1>(y);
  }
  return y;
}

}  // namespace heed::inline HEED_TARGET
