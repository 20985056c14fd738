// SPDX-License-Identifier: MIT
// Products of extents and counts that cannot overflow without a word.
//
//   checked_size(what, extents, bytes)   the number of elements; throws where memory cannot hold it
//   saturating_product(a, b, ...)        the product, or the largest index where it does not fit
//
// Extents come from the caller: each of them may fit while their product does not. Whatever sizes
// memory or a loop goes through one of the two before anything is allocated.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>
#include <string>

#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"

namespace heed::inline HEED_TARGET {

/// The largest extent, and what saturating counts stop at.
inline constexpr index largest_index = (std::numeric_limits<index>::max)();

/// The product of numbers that are not negative, or the largest index where it does not fit.
[[nodiscard]] constexpr index saturating_product(index a, index b) noexcept {
  // Few bits need no division.
  // The type of bit_width is the argument's in some libraries, int in others.
  const int bits = static_cast<int>(std::bit_width(static_cast<std::uint64_t>(a))) +
                   static_cast<int>(std::bit_width(static_cast<std::uint64_t>(b)));
  if (bits <= 63) return a * b;
  return b > largest_index / a ? largest_index : a * b;
}
template <class... More>
[[nodiscard]] constexpr index saturating_product(index a, index b, More... more) noexcept {
  return saturating_product(saturating_product(a, b), more...);
}

/// The sum of numbers that are not negative, or the largest index where it does not fit.
[[nodiscard]] constexpr index saturating_sum(index a, index b) noexcept {
  return a > largest_index - b ? largest_index : a + b;
}

/// The option in the accumulator type. Throws option_error where it is no finite number there.
template <class A>
[[nodiscard]] A checked_finite(const char* what, double value) {
  // What is out of A's range is undefined to convert.
  const auto most = static_cast<double>((std::numeric_limits<A>::max)());
  if (!(value >= -most && value <= most)) {
    fail<option_error>(std::string(what) + " is " + std::to_string(value) +
                       ", must be finite in the accumulator type");
  }
  return static_cast<A>(value);
}

/// How many elements `what` of these extents has. Throws shape_error where an extent is negative, or
/// where so many elements of `bytes` bytes are more than an index counts. An extent of 0 counts as 1
/// there, so that the product of any of the extents fits too.
template <class Extents>
constexpr index checked_size(const char* what, const Extents& extents, index bytes = 1) {
  index all = bytes;
  index size = 1;
  for (const index e : extents) {
    if (e < 0) {
      fail<shape_error>(std::string(what) + " extents " + format_extents(extents) +
                        " are negative");
    }
    all = saturating_product(all, e > 0 ? e : 1);
    size = e == 0 ? 0 : saturating_product(size, e);
  }
  if (all == largest_index) {
    fail<shape_error>(std::string(what) + " extents " + format_extents(extents) +
                      " are more elements than memory can hold");
  }
  return size;
}

}  // namespace heed::inline HEED_TARGET
