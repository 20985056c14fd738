// SPDX-License-Identifier: MIT
// How many query-key pairs causal masks and windows leave visible, in closed form.
//
// Query row i stands at p = offset + i; key j is visible iff p - left <= j <= p + right, 0 <= j <
// m. The number of pairs is a difference of two sums of clamped ramps,
//
//   sum_i clamp(offset + i + right + 1, 0, m) - sum_i clamp(offset + i - left, 0, m),
//
// each of which is an arithmetic series between a stretch of zeros and a stretch of m.
#pragma once

#include <optional>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"

namespace heed::inline HEED_TARGET::cost {

namespace detail {
/// ceil(a / b) for any a and b > 0
constexpr index ceil_div_signed(index a, index b) noexcept { return a / b + (a % b > 0 ? 1 : 0); }
constexpr index clamp(index x, index low, index high) noexcept {
  return x < low ? low : (x > high ? high : x);
}
/// sum over 0 <= b < count of clamp(x + b step, 0, m): nothing, then an arithmetic series, then m.
constexpr index ramp_sum(index x, index step, index count, index m) noexcept {
  const index rises = clamp(ceil_div_signed(-x, step), 0, count);
  const index tops = clamp(ceil_div_signed(m - x, step), rises, count);
  const index terms = tops - rises;
  return terms * x + step * (terms * (rises + tops - 1) / 2) + (count - tops) * m;
}
}  // namespace detail

/// Which keys a query sees. An absent limit is no limit; the default sees all keys.
struct band {
  std::optional<index> left{};
  std::optional<index> right{};
  index offset = 0;  ///< position of the first query row; may be negative

  /// The keys visible from query rows `begin` to `end`, all of them together. O(1).
  [[nodiscard]] constexpr range keys(range rows, index m) const noexcept {
    if (rows.empty() || m <= 0) return {};
    const index low = left ? detail::clamp(offset + rows.begin - *left, 0, m) : 0;
    const index high = right ? detail::clamp(offset + rows.end + *right, 0, m) : m;
    // A band of no width (left + right < 0) sees nothing anywhere.
    if (left && right && *left + *right < 0) return {};
    return high > low ? range{low, high} : range{};
  }

  /// Visible pairs among n query rows and m keys. O(1), exact while n m fits an index.
  [[nodiscard]] constexpr index pairs(index n, index m) const noexcept {
    if (n <= 0 || m <= 0) return 0;
    if (left && right && *left + *right < 0) return 0;
    const index upper = right ? detail::ramp_sum(offset + *right + 1, 1, n, m) : n * m;
    const index lower = left ? detail::ramp_sum(offset - *left, 1, n, m) : 0;
    return upper - lower;
  }

  /// Key rows that a kernel reads when it reads, for every `block` query rows, the keys visible
  /// from any of them: the sum of `keys(...).size()` over the blocks. O(1).
  [[nodiscard]] constexpr index key_rows_read(index n, index m, index block) const noexcept {
    if (n <= 0 || m <= 0) return 0;
    if (left && right && *left + *right < 0) return 0;
    const index blocks = ceil_div(n, block);
    const index upper = right ? detail::ramp_sum(offset + block + *right, block, blocks - 1, m) +
                                    detail::clamp(offset + n + *right, 0, m)
                              : blocks * m;
    const index lower = left ? detail::ramp_sum(offset - *left, block, blocks, m) : 0;
    return upper - lower;
  }

  /// Pairs that a kernel computes when it works in tiles of `query_block` x `key_block` aligned to
  /// the first row and the first key, and skips the tiles that the band leaves empty. Counts a
  /// partly visible tile in full. O(n / query_block).
  [[nodiscard]] constexpr index computed_pairs(index n, index m, index query_block,
                                               index key_block) const noexcept {
    index total = 0;
    for (index begin = 0; begin < n; begin += query_block) {
      const index end = begin + query_block < n ? begin + query_block : n;
      const range seen = keys({begin, end}, m);
      if (seen.empty()) continue;
      const index low = seen.begin / key_block * key_block;
      const index up = round_up(seen.end, key_block);
      total += (end - begin) * ((up < m ? up : m) - low);
    }
    return total;
  }
};

/// Key j is visible iff j <= offset + i.
[[nodiscard]] constexpr band causal(index offset = 0) noexcept {
  return {.left = {}, .right = 0, .offset = offset};
}

/// The `width` most recent keys, the query's own position included.
[[nodiscard]] constexpr band causal_window(index width, index offset = 0) noexcept {
  return {.left = width - 1, .right = 0, .offset = offset};
}

}  // namespace heed::inline HEED_TARGET::cost
