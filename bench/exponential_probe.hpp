// SPDX-License-Identifier: MIT
// How many exponentials a second the library's own packets reach at this moment, on one core.
#pragma once

#include <algorithm>
#include <cstddef>

#include "bench/probes.hpp"
#include "heed/simd.hpp"
#include "heed/simd/exponential.hpp"

namespace probes {

namespace detail {

/// `Count` packets at a time from one array to another, both in the first-level cache: loads and
/// stores go beside the arithmetic, which a register loop's last step back to the argument would
/// not.
template <class T, int Count>
HEED_NOINLINE void exponentials(const T* from, T* to, index count) {
  namespace simd = heed::simd;
  constexpr index width = simd::lanes<T>;
  for (index i = 0; i < count; i += Count * width) {
    simd::packet<T> x[std::size_t{Count}];
    simd::unroll<Count>([&](auto p)
                            HEED_INLINE_LAMBDA { x[p] = simd::load<T>(from + i + p * width); });
    simd::exp_nonpositive<T, Count>(x);
    simd::unroll<Count>([&](auto p) HEED_INLINE_LAMBDA { simd::store(to + i + p * width, x[p]); });
  }
}

template <class T, int Count>
[[nodiscard]] double exponential_rate(double budget) {
  constexpr index count = 24 * heed::simd::lanes<T>;
  static_assert(24 % Count == 0);
  constexpr int rounds = 2000;
  alignas(64) T from[std::size_t{count}];
  alignas(64) T to[std::size_t{count}];
  for (index i = 0; i < count; ++i) from[i] = T(-0.25) * static_cast<T>(i % 37);
  double best = 0;
  const clock::time_point begin = clock::now();
  do {
    const clock::time_point start = clock::now();
    for (int r = 0; r < rounds; ++r) {
      exponentials<T, Count>(from, to, count);
      sink<T> = to[r % count];
    }
    best = std::max(best, static_cast<double>(rounds * count) / seconds_since(start));
  } while (seconds_since(begin) < budget);
  return best;
}

}  // namespace detail

/// exp_nonpositive's exponentials a second, one core, in the best of groups of 4, 6 and 8 packets.
template <class T>
[[nodiscard]] double exponential_rate(double budget = 0.01) {
  return std::max({detail::exponential_rate<T, 4>(budget / 3),
                   detail::exponential_rate<T, 6>(budget / 3),
                   detail::exponential_rate<T, 8>(budget / 3)});
}

}  // namespace probes
