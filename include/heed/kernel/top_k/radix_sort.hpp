// SPDX-License-Identifier: MIT
// Sorts some hundreds of numbers with their keys, largest first: a byte at a time, for comparisons
// of random numbers are not predicted, and a sort by them waits for each.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"

namespace heed::inline HEED_TARGET::kernel {

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

/// The n entries of `from`, whose keys ascend, by ascending order, equals by key: in `from` or in
/// `other`, which is returned. Two bytes, the first in which they differ, leave next to nothing out
/// of place; what is left is inserted, or, if that is much, sorted by comparisons.
template <class A>
[[nodiscard]] const sized_entry<A>* sort_by_size(sized_entry<A>* from, sized_entry<A>* other,
                                                 index n) noexcept {
  if (n < 2) return from;
  auto least = from[0].order;
  auto most = least;
  for (index i = 1; i < n; ++i) {
    least = (std::min)(least, from[i].order);
    most = (std::max)(most, from[i].order);
  }
  const auto width = static_cast<int>(std::bit_width(static_cast<decltype(least)>(most - least)));
  const int dropped = (std::max)(0, width - 16);
  std::array<std::array<std::uint32_t, 257>, 2> at{};
  const auto digit = [&](int byte, const sized_entry<A>& e) {
    return static_cast<std::size_t>(((e.order - least) >> (dropped + 8 * byte)) & 255U);
  };
  for (index i = 0; i < n; ++i) {
    ++at[0][digit(0, from[i]) + 1];
    ++at[1][digit(1, from[i]) + 1];
  }
  for (int byte = 0; byte < 2; ++byte) {
    auto& place = at[static_cast<std::size_t>(byte)];
    for (std::size_t d = 0; d < 256; ++d) place[d + 1] += place[d];
    for (index i = 0; i < n; ++i) other[place[digit(byte, from[i])]++] = from[i];
    std::swap(from, other);
  }
  if (dropped == 0) return from;
  const auto before = [](const sized_entry<A>& a, const sized_entry<A>& b) {
    return a.order < b.order || (a.order == b.order && a.key < b.key);
  };
  index moves = 4 * n;
  for (index i = 1; i < n && moves > 0; ++i) {
    const sized_entry<A> e = from[i];
    index j = i;
    for (; j > 0 && before(e, from[j - 1]); --j) from[j] = from[j - 1];
    from[j] = e;
    moves -= i - j;
  }
  if (moves <= 0) std::sort(from, from + n, before);
  return from;
}

}  // namespace heed::inline HEED_TARGET::kernel
