// SPDX-License-Identifier: MIT
// Exponentials in float less 1, and in parts, for decays next to 1: what rounding to 1 - 1e-6 would
// cost is kept.
//
//   exp(x) - 1 = x r(x)              -1 <= x <= 0: r of degree 5 and least relative error (Remez)
//   exp(x) = (1 + y) power,          y = p(f) - 1, power = 2^n or a root of it; p, n and f as in
//                                    exponential.hpp
//
// x r(x) is off by 1.8e-7 of itself, y by 2.5e-7, rounding included.
#pragma once

#include <cstddef>
#include <iterator>

#include "heed/core/target.hpp"
#include "heed/simd/exponential.hpp"

namespace heed::inline HEED_TARGET::simd {

/// exp(x) - 1 for -1 <= x <= 0, N packets in place; with `Binary` 2^x - 1 for -log2(e) <= x <= 0.
template <int N, bool Binary>
HEED_INLINE void expm1_near_zero(packet<float>* x) noexcept {
  constexpr double r[] = {0.6931471256212602,   0.24022390466843568,   0.055483644502662056,
                          0.009558094469395314, 0.0012518133202802108, 0.00010060853152409998};
  constexpr int degree = static_cast<int>(std::size(r)) - 1;
  const auto coefficient = [&](int power) HEED_INLINE_LAMBDA {
    double c = r[power];
    for (int i = 0; !Binary && i <= power; ++i) c *= 1.4426950408889634;
    return broadcast(static_cast<float>(c));
  };
  packet<float> y[std::size_t{N}];
  unroll<N>([&](auto i) HEED_INLINE_LAMBDA { y[i] = coefficient(degree); });
  unroll<degree>([&](auto d) HEED_INLINE_LAMBDA {
    unroll<N>([&](auto i)
                  HEED_INLINE_LAMBDA { y[i] = fmadd(y[i], x[i], coefficient(degree - 1 - d)); });
  });
  unroll<N>([&](auto i) HEED_INLINE_LAMBDA { x[i] = mul(x[i], y[i]); });
}

/// exp(x), or 2^x with `Binary`: y replaces x. Arguments up to 64; -inf gives power 0, a NaN y is
/// a NaN.
template <int N, bool Binary>
HEED_INLINE void exp_in_parts(packet<float>* x, packet<float>* power) noexcept {
  using c = detail::exp2_constants<float>;
  constexpr float log2e = Binary ? 1.0F : 1.4426950408889634F;
  constexpr int degree = static_cast<int>(std::size(c::p)) - 1;
  packet<float> shifted[std::size_t{N}], y[std::size_t{N}];
  unroll<N>([&](auto i) HEED_INLINE_LAMBDA {
    x[i] = detail::at_least(x[i], broadcast(c::vanishing / log2e));
    shifted[i] = opaque(Binary ? add(x[i], broadcast(c::round))
                               : fmadd(x[i], broadcast(log2e), broadcast(c::round)));
  });
  unroll<N>([&](auto i) HEED_INLINE_LAMBDA {
    const packet<float> n = opaque(sub(shifted[i], broadcast(c::round)));
    if constexpr (Binary) {
      x[i] = sub(x[i], n);
    } else if constexpr (fuses_multiply_add) {
      x[i] = fmadd(x[i], broadcast(log2e), sub(zero<float>(), n));
    } else {
      using two = detail::ln2_parts<float>;
      const packet<float> most = opaque(sub(x[i], mul(n, broadcast(two::high))));
      x[i] = mul(sub(most, mul(n, broadcast(two::low))), broadcast(log2e));
    }
    y[i] = broadcast(c::p[degree]);
  });
  unroll<degree - 1>([&](auto d) HEED_INLINE_LAMBDA {
    unroll<N>([&](auto i) HEED_INLINE_LAMBDA {
      y[i] = fmadd(y[i], x[i], broadcast(c::p[degree - 1 - d]));
    });
  });
  unroll<N>([&](auto i) HEED_INLINE_LAMBDA {
    x[i] = mul(x[i], y[i]);
    power[i] = detail::scale_by_exponent<float>(broadcast(1.0F), shifted[i]);
  });
}

}  // namespace heed::inline HEED_TARGET::simd
