// SPDX-License-Identifier: MIT
// Softplus and silu on packets: a projection becomes a time step, and a gate a factor.
#pragma once

#include <cstddef>
#include <type_traits>

#include "heed/core/config.hpp"
#include "heed/core/target.hpp"
#include "heed/simd/exponential.hpp"
#include "heed/simd/packet.hpp"

namespace heed::inline HEED_TARGET::simd {

/// log(1 + t) for 0 <= t <= 1, relative error below 4 eps; a NaN stays.
///
/// As 2 artanh(s), s = t / (2 + t) <= 1/3, by its series s + s^3/3 + s^5/5 ...: after n terms the
/// rest is below 9^-n / (2 n + 1) of the sum, which 8 terms bring under float's eps, 16 under
/// double's.
template <class A>
HEED_INLINE simd::packet<A> log1p_unit(const simd::packet<A>& t) noexcept {
  constexpr int terms = std::is_same_v<A, float> ? 8 : 16;
  const auto s = simd::div(t, simd::add(t, simd::broadcast(A(2))));
  const auto square = simd::mul(s, s);
  auto sum = simd::broadcast(A(2) / A(2 * terms - 1));
  simd::unroll<terms - 1>([&](auto i) HEED_INLINE_LAMBDA {
    constexpr int n = terms - 2 - decltype(i)::value;
    sum = simd::fmadd(sum, square, simd::broadcast(A(2) / A(2 * n + 1)));
  });
  return simd::mul(sum, s);
}

/// log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)): never overflows; a NaN stays. Relative error
/// below 8 eps, above the smallest normal number.
template <class A>
HEED_INLINE simd::packet<A> softplus(const simd::packet<A>& x) noexcept {
  const auto zero = simd::zero<A>();
  const auto tail = log1p_unit<A>(simd::exp_nonpositive<A>(simd::sub(zero, simd::abs(x))));
  return simd::add(simd::select(simd::less(zero, x), x, zero), tail);
}

/// x / (1 + exp(-x)) of N packets in place, from exp(-|x|) so that nothing overflows; relative
/// error below 6 eps. -inf and NaN give NaN.
template <class A, int N>
HEED_INLINE void silu_in_place(simd::packet<A>* x) noexcept {
  const auto one = simd::broadcast(A(1));
  simd::packet<A> e[std::size_t{N}];
  simd::unroll<N>([&](auto i)
                      HEED_INLINE_LAMBDA { e[i] = simd::sub(simd::zero<A>(), simd::abs(x[i])); });
  simd::exp_nonpositive<A, N>(e);
  simd::unroll<N>([&](auto i) HEED_INLINE_LAMBDA {
    const auto over = simd::select(simd::less(x[i], simd::zero<A>()), e[i], one);
    x[i] = simd::mul(x[i], simd::div(over, simd::add(one, e[i])));
  });
}
template <class A>
[[nodiscard]] HEED_INLINE simd::packet<A> silu(simd::packet<A> x) noexcept {
  silu_in_place<A, 1>(&x);
  return x;
}

}  // namespace heed::inline HEED_TARGET::simd
