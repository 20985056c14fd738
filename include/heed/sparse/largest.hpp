// SPDX-License-Identifier: MIT
// Which are the largest of a row of scores.
//
// Of many scores few are large: maxima of some sets of them say first what the count-th largest is
// at the least, and only what reaches that is compared with the best so far.
#pragma once

#include <algorithm>
#include <functional>
#include <limits>

#include "heed/simd/packet.hpp"

namespace heed {

namespace detail {

/// NaNs of x[0 .. n) become -inf; a number that `count` > 0 of x reach at the least is returned:
/// the count-th largest of the maxima of about four sets a choice, -inf where those are too few to
/// tell. Set s holds x[s], x[s + sets], x[s + 2 sets], ...: maxima need no step across lanes, and
/// large scores that stand together fall in different sets.
template <class A>
[[nodiscard]] A reached_by(A* x, index n, index count) noexcept {
  constexpr index w = simd::lanes<A>;
  constexpr index most = 4096;
  constexpr A lowest = -std::numeric_limits<A>::infinity();
  const index sets = std::min({most, n, round_up(4 * count, w)});
  A maxima[std::size_t{most}];
  std::fill_n(maxima, sets, lowest);
  const auto none = simd::broadcast(lowest);
  for (index first = 0; first < n; first += sets) {
    const index size = std::min(sets, n - first);
    index i = 0;
    for (; i + w <= size; i += w) {
      auto s = simd::load(x + first + i);
      s = simd::select(simd::equal(s, s), s, none);
      simd::store(x + first + i, s);
      simd::store(maxima + i, simd::max(simd::load(maxima + i), s));
    }
    for (; i < size; ++i) {
      if (!(x[first + i] == x[first + i])) x[first + i] = lowest;
      maxima[i] = std::max(maxima[i], x[first + i]);
    }
  }
  if (sets < count || (sets < n && sets < 2 * count)) return lowest;
  std::nth_element(maxima, maxima + count - 1, maxima + sets, std::greater<>());
  return maxima[count - 1];
}

}  // namespace detail

/// The indices of the `count` largest of x[0 .. n), largest first, ties to the lower index; NaN
/// counts as -inf. `to` has room for `count`; what is left of it becomes -1. `x` is scratch after.
/// Cost O(n + count log count), O(n log count) for more than 2,048 or against the worst order.
template <class A>
void largest_indices(A* x, index n, index count, index* to) noexcept {
  if (count == 0) return;
  A least = detail::reached_by(x, n, count);
  const auto before = [x](index a, index b) { return x[a] > x[b] || (x[a] == x[b] && a < b); };
  // A heap of the best so far, the worst of them on top.
  index held = 0;
  const auto consider = [&](index i) {
    if (!(x[i] >= least)) return;
    if (held < count) {
      to[held++] = i;
      if (held < count) return;
      std::make_heap(to, to + count, before);
    } else if (before(i, to[0])) {
      std::pop_heap(to, to + count, before);
      to[count - 1] = i;
      std::push_heap(to, to + count, before);
    }
    least = std::max(least, x[to[0]]);
  };
  constexpr index w = simd::lanes<A>;
  index i = 0;
  for (; i + 4 * w <= n; i += 4 * w) {
    const auto top = simd::max(simd::max(simd::load(x + i), simd::load(x + i + w)),
                               simd::max(simd::load(x + i + 2 * w), simd::load(x + i + 3 * w)));
    if (simd::largest(top) < least) continue;
    for (index j = i; j < i + 4 * w; ++j) consider(j);
  }
  for (; i < n; ++i) consider(i);
  std::sort(to, to + held, before);
  std::fill(to + held, to + count, index{-1});
}

}  // namespace heed
