// SPDX-License-Identifier: MIT
// The largest few of many numbers, as ascending indices: what a centroid takes of the tokens.
//
// `largest_indices` (heed/sparse/largest.hpp) orders a handful by size; here hundreds are taken
// of tens of thousands, and their order among themselves does not matter.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "heed/core/workspace.hpp"
#include "heed/simd/packet.hpp"

namespace heed {

namespace detail {

/// Memory of `largest_ascending`.
template <class A>
struct largest_scratch {
  A* values = nullptr;            // [n, whole packets]
  std::int32_t* found = nullptr;  // [n]

  void carve(carver& c, index n) noexcept {
    values = c.take<A>(round_up(n, simd::lanes<A>));
    found = c.take<std::int32_t>(n);
  }
};

/// Lanes where a >= b; none where either is NaN.
template <class P>
HEED_INLINE P not_less(const P& a, const P& b) noexcept {
  return simd::equal(simd::max(a, b), a);
}

/// The places i of x[0 .. n) where x[i] >= bound, ascending; how many.
template <class A>
[[nodiscard]] index at_least(const A* x, index n, A bound, std::int32_t* to) noexcept {
  constexpr index lanes = simd::lanes<A>;
  index found = 0;
  // Few are: most packets need one look.
  for (index first = 0; first < n; first += lanes) {
    const index end = std::min(first + lanes, n);
    if (first + lanes <= n && lanes > 1) {
      if (!simd::any(not_less(simd::load(x + first), simd::broadcast(bound)))) continue;
    }
    for (index i = first; i < end; ++i) {
      to[found] = static_cast<std::int32_t>(i);
      found += x[i] >= bound ? 1 : 0;
    }
  }
  return found;
}

/// How many of v[0 .. n) are at least `bound`; v is -inf up to whole packets.
template <class A>
[[nodiscard]] index count_at_least(const A* v, index n, A bound) noexcept {
  const auto low = simd::broadcast(bound);
  auto count = simd::zero<A>();
  for (index i = 0; i < n; i += simd::lanes<A>) {
    count = simd::add(count, simd::select(not_less(simd::load(v + i), low), simd::broadcast(A(1)),
                                          simd::zero<A>()));
  }
  return static_cast<index>(simd::sum(count));
}

/// A bound that exactly `k` >= 1 of v[0 .. n) are at least, or else the k-th largest of them; v
/// holds no NaN, has room for whole packets, and is reordered. By halving the interval, a pass over
/// the packets each: some fifteen of these are soon done, and mispredict nothing.
template <class A>
[[nodiscard]] A kth_largest(A* v, index n, index k) noexcept {
  constexpr index lanes = simd::lanes<A>;
  const auto [least, most] = std::minmax_element(v, v + n);
  A low = *least;
  A high = *most;
  std::fill(v + n, v + round_up(n, lanes), -std::numeric_limits<A>::infinity());
  // Counts must be exact in A.
  for (int step = 0; step < 40 && n < index{1} << 24U; ++step) {
    const A middle = low + (high - low) / 2;
    if (!(middle > low && middle < high)) break;
    const index count = count_at_least(v, n, middle);
    if (count == k) return middle;
    (count > k ? low : high) = middle;
  }
  std::nth_element(v, v + k - 1, v + n, [](A a, A b) { return a > b; });
  return v[k - 1];
}

/// The indices of the `count` largest of x[0 .. n), ascending, ties to the lower index; NaN counts
/// as -inf. What is left of `to` becomes -1.
///
/// A sample tells a bound that a few more than `count` are above, nearly always; only those are
/// looked at again. Where fewer are, all of them are: the result never depends on the sample.
template <class A>
void largest_ascending(const A* x, index n, index count, index* to,
                       largest_scratch<A>& s) noexcept {
  constexpr index stride = 16;
  const auto value = [x](index i) {
    return x[i] == x[i] ? x[i] : -std::numeric_limits<A>::infinity();
  };
  const index taken = std::min(n, count);
  if (taken <= 0) {
    std::fill(to, to + count, index{-1});
    return;
  }
  index found = 0;
  const index samples = n / stride;
  // Three deviations of the sample's count above the bound, and some.
  const auto expected = static_cast<double>(taken) / static_cast<double>(stride);
  const auto rank = static_cast<index>(expected + 3 * std::sqrt(expected) + 4);
  if (rank < samples) {
    for (index i = 0; i < samples; ++i) s.values[i] = value(i * stride);
    found = at_least(x, n, kth_largest(s.values, samples, rank + 1), s.found);
  }
  if (found < taken) {
    for (found = 0; found < n; ++found) s.found[found] = static_cast<std::int32_t>(found);
  }
  for (index i = 0; i < found; ++i) s.values[i] = value(s.found[i]);
  const A least = kth_largest(s.values, found, taken);
  index ties = taken;  // how many of the least value are taken
  for (index i = 0; i < found; ++i) ties -= value(s.found[i]) > least ? 1 : 0;
  index m = 0;
  for (index i = 0; i < found; ++i) {
    const A v = value(s.found[i]);
    if (v < least || (v == least && ties-- <= 0)) continue;
    to[m++] = s.found[i];
  }
  std::fill(to + m, to + count, index{-1});
}

}  // namespace detail

}  // namespace heed
