// SPDX-License-Identifier: MIT
// Exponentials on packets, for softmax: arguments that are never positive.
//
//   exp_nonpositive(x) = 2^n p(f),  x log2(e) = n + f,  |f| <= 1/2
//
// p is the polynomial of least relative error on [-1/2, 1/2] (Remez), its constant term rounded to
// 1 so that exp(0) is exactly 1: the rescaling of an online softmax whose maximum stands still then
// changes nothing, however often it happens. Degree 5 for float (1.5e-7 before rounding, 2.5e-7
// after it), degree 11 for double (3e-18, then 2 units in the last place).
// Relative to exp the argument's own rounding |x| eps is added, as in any exponential computed from
// a rounded product; for softmax that weighs in only where the result is small.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <type_traits>

#include "heed/simd/packet.hpp"

namespace heed::simd {

namespace detail {

template <class A>
struct exp2_constants;

template <>
struct exp2_constants<float> {
  using bits = std::int32_t;
  static constexpr int mantissa = 23;
  static constexpr float round = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float lowest = -126.0F;     // below this the result is not normal
  static constexpr float vanishing = -160.0F;  // 2^this is zero
  static constexpr float p[] = {1.0F,
                                0.6931469670660415684F,
                                0.24022119724158729912F,
                                0.055507132711929147446F,
                                0.0096755413261877934406F,
                                0.0013276472727472581579F};
};

template <>
struct exp2_constants<double> {
  using bits = std::int64_t;
  static constexpr int mantissa = 52;
  static constexpr double round = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double lowest = -1022.0;
  static constexpr double vanishing = -1100.0;
  static constexpr double p[] = {1.0,
                                 0.69314718055994533046,
                                 0.24022650695910156204,
                                 0.055504108664819921544,
                                 0.0096181291075883352218,
                                 0.0013333558146789935436,
                                 0.00015403530462514451054,
                                 0.000015252733489975452922,
                                 1.321543308967195582e-6,
                                 1.0178198027112659334e-7,
                                 7.0741056134994288393e-9,
                                 4.4352818921179420508e-10};
};

/// p 2^n for an integer-valued n >= `lowest`, where `shifted` = n + round: its low bits hold n.
template <class A, class P>
HEED_INLINE P scale_by_exponent(const P& p, const P& shifted) noexcept {
  using bits = typename exp2_constants<A>::bits;
  constexpr int m = exp2_constants<A>::mantissa;
  if constexpr (lanes<A> == 1) {
    bits a;
    bits b;
    std::memcpy(&a, &p, sizeof a);
    std::memcpy(&b, &shifted, sizeof b);
    using wide = std::make_unsigned_t<bits>;
    a = static_cast<bits>(static_cast<wide>(a) + (static_cast<wide>(b) << m));
    P out;
    std::memcpy(&out, &a, sizeof out);
    return out;
  } else {
    typedef bits vector __attribute__((vector_size(sizeof(P))));
    return (P)((vector)p + ((vector)shifted << m));
  }
}

#if defined(__AVX512F__)
// The masked forms: the plain ones read an undefined register by g++ 12's own warning.
HEED_INLINE __m512 scale_by_power(__m512 p, __m512 n) noexcept {
  return _mm512_maskz_scalef_ps(0xFFFF, p, n);
}
HEED_INLINE __m512d scale_by_power(__m512d p, __m512d n) noexcept {
  return _mm512_maskz_scalef_pd(0xFF, p, n);
}
#endif

}  // namespace detail

/// exp(x) for x <= 0; exp(-inf) is exactly 0; a NaN gives NaN. Results below the smallest normal
/// number may be flushed to zero.
template <class A>
HEED_INLINE packet<A> exp_nonpositive(packet<A> x) noexcept {
  using c = detail::exp2_constants<A>;
  constexpr A log2e = A(1.4426950408889634073599246810018921L);
  const packet<A> scaled = mul(x, broadcast(log2e));
#if defined(__AVX512F__)
  constexpr A floor_at = c::vanishing;
#else
  constexpr A floor_at = c::lowest;
#endif
  // The comparison is false for a NaN, which so stays.
  const packet<A> t = select(less(scaled, broadcast(floor_at)), broadcast(floor_at), scaled);
  const packet<A> shifted = add(t, broadcast(c::round));
  const packet<A> n = sub(shifted, broadcast(c::round));
  const packet<A> f = sub(t, n);
  constexpr int degree = static_cast<int>(std::size(c::p)) - 1;
  packet<A> p = broadcast(c::p[degree]);
  for (int i = degree - 1; i >= 0; --i) p = fmadd(p, f, broadcast(c::p[i]));
#if defined(__AVX512F__)
  if constexpr (lanes<A> * static_cast<index>(sizeof(A)) == 64) {
    return detail::scale_by_power(p, n);
  }
#endif
  const packet<A> y = detail::scale_by_exponent<A>(p, shifted);
  return select(less(scaled, broadcast(c::lowest)), zero<A>(), y);
}

/// tanh(x), within a few units in the last place.
template <class A>
HEED_INLINE packet<A> tanh(packet<A> x) noexcept {
  if constexpr (std::is_same_v<A, float> && Eigen::internal::packet_traits<float>::HasTanh) {
    return Eigen::internal::ptanh(x);
  } else {
    A lane[lanes<A>];
    store(lane, x);
    for (A& v : lane) v = std::tanh(v);
    return load<A>(lane);
  }
}

}  // namespace heed::simd
