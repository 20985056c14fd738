// SPDX-License-Identifier: MIT
// The index type, the position of a score, and the rectangle of scores a kernel works on.
#pragma once

#include <cstddef>

#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET {

/// Every extent, stride and position. Signed: offsets and strides may be negative.
using index = std::ptrdiff_t;
/// The same, for `using heed::index_t` where the C library's function `index` is in the way.
using index_t = index;

/// The position of one score, for score modifiers and masks.
///
/// `query` is the position `p = offset[batch] + row` on the key axis, so that `query - key` is a
/// distance whatever the alignment; `row` is the row of the query tensor. With the default offset
/// of 0 the two are equal.
struct position {
  index batch = 0;
  index head = 0;     ///< query head
  index kv_head = 0;  ///< key/value head that `head` reads
  index query = 0;    ///< position of the query on the key axis: offset + row
  index key = 0;      ///< index of the key
  index row = 0;      ///< row of the query tensor
};

/// A half-open range of indices.
struct range {
  index begin = 0;
  index end = 0;

  [[nodiscard]] constexpr index size() const noexcept { return end > begin ? end - begin : 0; }
  [[nodiscard]] constexpr bool empty() const noexcept { return end <= begin; }
  friend constexpr bool operator==(const range&, const range&) = default;
};

/// What both ranges hold; empty, not reversed, where that is nothing.
[[nodiscard]] constexpr range intersect(range a, range b) noexcept {
  const range r{a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
  return r.empty() ? range{r.begin, r.begin} : r;
}

/// The smallest range that holds both; a where both are empty.
[[nodiscard]] constexpr range hull(range a, range b) noexcept {
  if (b.empty()) return a;
  if (a.empty()) return b;
  return {a.begin < b.begin ? a.begin : b.begin, a.end > b.end ? a.end : b.end};
}

/// A rectangle of scores of one head: consecutive queries against consecutive keys. `queries` are
/// positions (offset included), as in `position::query`; `offset` takes them back to rows.
struct tile {
  index batch = 0;
  index head = 0;
  index kv_head = 0;
  range queries;
  range keys;
  index offset = 0;  ///< position minus row

  [[nodiscard]] constexpr range rows() const noexcept {
    return {queries.begin - offset, queries.end - offset};
  }
};

/// How much of a tile a mask leaves visible. `partial` is always a correct answer.
enum class coverage { empty, partial, full };

/// a / b rounded up, for a >= 0 and b > 0.
[[nodiscard]] constexpr index ceil_div(index a, index b) noexcept {
  return a / b + (a % b > 0 ? 1 : 0);
}
/// The least multiple of b that is not below a.
[[nodiscard]] constexpr index round_up(index a, index b) noexcept { return ceil_div(a, b) * b; }

}  // namespace heed::inline HEED_TARGET
