// SPDX-License-Identifier: MIT
// Sorts some hundreds of numbers with their keys, largest first: a byte at a time, for comparisons
// of random numbers are not predicted, and a sort by them waits for each.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "heed/core/types.hpp"

namespace heed::detail {

/// A number's place in the order, and its key.
template <class A>
struct sized_entry {
  using integer = std::conditional_t<sizeof(A) == 4, std::uint32_t, std::uint64_t>;
  integer order;
  std::int32_t key;

  /// An integer that falls where x, no NaN, rises; -0 is 0.
  [[nodiscard]] static integer falling(A x) noexcept {
    constexpr integer sign = integer{1} << (8 * sizeof(A) - 1);
    const A y = x + A(0);
    integer u;
    std::memcpy(&u, &y, sizeof u);
    return (u & sign) != 0 ? u : ~(u | sign);
  }
};

/// The n entries of `from` by ascending order, equals as they stood: in `from` or in `other`, which
/// is returned.
template <class A>
[[nodiscard]] const sized_entry<A>* sort_by_size(sized_entry<A>* from, sized_entry<A>* other,
                                                 index n) noexcept {
  for (unsigned shift = 0; n > 0 && shift < 8 * sizeof(A); shift += 8) {
    std::array<index, 257> at{};
    const auto digit = [&](index i) {
      return static_cast<std::size_t>((from[i].order >> shift) & 255U);
    };
    for (index i = 0; i < n; ++i) ++at[digit(i) + 1];
    if (at[digit(0) + 1] == n) continue;
    for (std::size_t d = 0; d < 256; ++d) at[d + 1] += at[d];
    for (index i = 0; i < n; ++i) other[at[digit(i)]++] = from[i];
    std::swap(from, other);
  }
  return from;
}

}  // namespace heed::detail
