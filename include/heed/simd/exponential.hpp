// SPDX-License-Identifier: MIT
// Exponentials on packets, for softmax: arguments that are never positive.
//
//   exp_nonpositive(x) = 2^n p(f),  x log2(e) = n + f,  |f| <= 1/2
//
// p is the polynomial of least relative error on [-1/2, 1/2] (Remez), its constant term rounded to
// 1 so that exp(0) is exactly 1: the rescaling of an online softmax whose maximum does not change
// then changes nothing, however often it happens. Degree 5 for float (1.5e-7 before rounding,
// 2.5e-7 after it), degree 11 for double (3e-18, then 2 units in the last place). Where a register
// holds the powers of a fraction of n, n counts sixteenths for float and eighths for double: degree
// 3 (2e-9, 2e-7 after rounding) and degree 7 (5e-18) do. Relative to exp the argument's own
// rounding |x| eps is added, as in any exponential computed from a rounded product; for softmax
// that matters only where the result is small. Positive arguments are as exact up to 80 (700 for
// double); beyond, the result is meaningless.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/simd/packet.hpp"

namespace heed::inline HEED_TARGET::simd {

namespace detail {

template <class A>
struct exp2_constants;

#if defined(EIGEN_VECTORIZE_AVX512)
// One register holds the powers 2^(j/16), or 2^(j/8) in double: |f| is at most 1/32, or 1/16.
template <>
struct exp2_constants<float> {
  static constexpr float round = 786432.0F;  // 1.5 * 2^19: adding it rounds to a sixteenth
  static constexpr float vanishing = -127.0F;
  static constexpr float p[] = {1.0F, 0.69314718266F, 0.24023428801F, 0.05550213649F};
  /// The bits of 2^(j/16), less those that n + j/16 brings along as the low bits of `shifted`.
  static constexpr std::int32_t powers[] = {0x3F800000, 0x3F7DAAC3, 0x3F7B95C2, 0x3F79C3D3,
                                            0x3F7837F0, 0x3F76F532, 0x3F75FED7, 0x3F75583F,
                                            0x3F7504F3, 0x3F7508A4, 0x3F75672A, 0x3F76248C,
                                            0x3F7744FD, 0x3F78CCDF, 0x3F7AC0C7, 0x3F7D257D};
};

template <>
struct exp2_constants<double> {
  static constexpr double round = 844424930131968.0;  // 1.5 * 2^49: adding it rounds to an eighth
  static constexpr double vanishing = -1023.0;
  static constexpr double p[] = {1.0,
                                 0.69314718055994530942,
                                 0.24022650695910932816,
                                 0.055504108664822243509,
                                 0.0096181290899833007826,
                                 0.0013333558132838855753,
                                 0.0001540443381934758133,
                                 0.000015253429586496909374};
  /// The bits of 2^(j/8), less those that n + j/8 brings along as the low bits of `shifted`.
  static constexpr std::int64_t powers[] = {
      0x3FF0000000000000, 0x3FEF72B83C7D517B, 0x3FEF06FE0A31B715, 0x3FEEBFDAD5362A27,
      0x3FEEA09E667F3BCD, 0x3FEEACE5422AA0DB, 0x3FEEE89F995AD3AD, 0x3FEF5818DCFBA487};
};
#else
template <>
struct exp2_constants<float> {
  using bits = std::int32_t;
  static constexpr int mantissa = 23;
  static constexpr float round = 12583039.0F;  // 1.5 * 2^23 + 127: adding it rounds to an integer
  static constexpr float vanishing = -127.0F;  // the exponent field of 2^this is 0
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
  static constexpr double round = 6755399441056767.0;  // 1.5 * 2^52 + 1023
  static constexpr double vanishing = -1023.0;
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
#endif

/// ln 2 in two parts: n times the first is exact for every n in use.
template <class A>
struct ln2_parts;
template <>
struct ln2_parts<float> {
  static constexpr float high = 0.693359375F;  // 355 / 512
  static constexpr float low = -2.12194440054690583e-4F;
};
template <>
struct ln2_parts<double> {
  static constexpr double high = 0.69314718036912381649;  // the upper 33 bits
  static constexpr double low = 1.9082149292705877e-10;
};

/// p 2^n where `shifted` = n + round, whose low bits are the exponent field of 2^n: 0 for n =
/// `vanishing`. A product, not a sum of exponents: whatever bits a NaN carries it stays one.
template <class A, class P>
HEED_INLINE P scale_by_exponent(const P& p, const P& shifted) noexcept {
  using bits = typename exp2_constants<A>::bits;
  constexpr int m = exp2_constants<A>::mantissa;
  P power;
  if constexpr (lanes<A> == 1) {
    std::make_unsigned_t<bits> field;
    std::memcpy(&field, &shifted, sizeof field);
    field <<= m;
    std::memcpy(&power, &field, sizeof power);
  } else {
#if HEED_HAS_EXTENSIONS
    typedef bits vector __attribute__((vector_size(sizeof(P))));
    power = (P)((vector)shifted << m);
#else
    std::make_unsigned_t<bits> fields[sizeof(P) / sizeof(bits)];
    std::memcpy(fields, &shifted, sizeof fields);
    for (auto& field : fields) field <<= m;
    std::memcpy(&power, fields, sizeof fields);
#endif
  }
  return mul(p, power);
}

#if defined(EIGEN_VECTORIZE_AVX512)
/// The same, n a multiple of 1/16, or of 1/8 in double: four low bits of `shifted`, or three,
/// choose the power of the fraction.
template <class A>
HEED_INLINE __m512 scale_by_exponent(const __m512& p, const __m512& shifted) noexcept {
  const __m512i n = _mm512_castps_si512(shifted);
  const __m512i fraction =
      _mm512_permutexvar_epi32(n, _mm512_loadu_si512(exp2_constants<float>::powers));
  return mul(p, _mm512_castsi512_ps(_mm512_add_epi32(fraction, _mm512_slli_epi32(n, 19))));
}
template <class A>
HEED_INLINE __m512d scale_by_exponent(const __m512d& p, const __m512d& shifted) noexcept {
  const __m512i n = _mm512_castpd_si512(shifted);
  const __m512i fraction =
      _mm512_permutexvar_epi64(n, _mm512_loadu_si512(exp2_constants<double>::powers));
  return mul(p, _mm512_castsi512_pd(_mm512_add_epi64(fraction, _mm512_slli_epi64(n, 49))));
}
#endif

/// The larger of x and the bound; a NaN stays.
template <class P>
HEED_INLINE P at_least(const P& x, const P& bound) noexcept {
  return select(less(x, bound), bound, x);
}

// The instruction returns its second operand where either is a NaN.
#if defined(EIGEN_VECTORIZE_AVX512)
HEED_INLINE __m512 at_least(__m512 x, __m512 bound) noexcept { return _mm512_max_ps(bound, x); }
HEED_INLINE __m512d at_least(__m512d x, __m512d bound) noexcept { return _mm512_max_pd(bound, x); }
#elif defined(EIGEN_VECTORIZE_AVX)
HEED_INLINE __m256 at_least(__m256 x, __m256 bound) noexcept { return _mm256_max_ps(bound, x); }
HEED_INLINE __m256d at_least(__m256d x, __m256d bound) noexcept { return _mm256_max_pd(bound, x); }
#endif

/// p(x) 2^n in place of x, for `shifted` = n + round and x in [-1/2, 1/2]: N packets step by step
/// together, for one packet's steps wait for each other, and a core's window is too short to find
/// the next packet's behind them.
template <class A, int N>
HEED_INLINE void finish_exp2(packet<A>* x, const packet<A>* shifted) noexcept {
  using c = exp2_constants<A>;
  constexpr int degree = static_cast<int>(std::size(c::p)) - 1;
  packet<A> p[std::size_t{N}];
  unroll<N>([&](auto i) HEED_INLINE_LAMBDA {
    p[i] = fmadd(broadcast(c::p[degree]), x[i], broadcast(c::p[degree - 1]));
  });
  unroll<degree - 1>([&](auto d) HEED_INLINE_LAMBDA {
    unroll<N>([&](auto i) HEED_INLINE_LAMBDA {
      p[i] = fmadd(p[i], x[i], broadcast(c::p[degree - 2 - d]));
    });
  });
  unroll<N>([&](auto i) HEED_INLINE_LAMBDA { x[i] = scale_by_exponent<A>(p[i], shifted[i]); });
}

}  // namespace detail

/// 2^x for x <= 0, N packets in place; 2^-inf is exactly 0, 2^0 exactly 1; a NaN gives NaN. Where
/// the result is not normal its absolute error is below the smallest normal number.
template <class A, int N>
HEED_INLINE void exp2_nonpositive(packet<A>* x) noexcept {
  using c = detail::exp2_constants<A>;
  packet<A> shifted[std::size_t{N}];
  unroll<N>([&](auto i)
                HEED_INLINE_LAMBDA { x[i] = detail::at_least(x[i], broadcast(c::vanishing)); });
  unroll<N>([&](auto i)
                HEED_INLINE_LAMBDA { shifted[i] = opaque(add(x[i], broadcast(c::round))); });
  // What is left of x after rounding is f.
  unroll<N>([&](auto i) HEED_INLINE_LAMBDA {
    x[i] = sub(x[i], opaque(sub(shifted[i], broadcast(c::round))));
  });
  detail::finish_exp2<A, N>(x, shifted);
}

/// exp(x) for x <= 0, as 2^(x log2 e): exp(-inf) is exactly 0, exp(0) exactly 1; a NaN gives NaN.
/// x log2 e is never rounded: multiply-adds are fused, or n ln 2 is subtracted from x in two parts
/// (Cody, Waite 1980) and what is left, below ln(2) / 2, is multiplied.
template <class A, int N>
HEED_INLINE void exp_nonpositive(packet<A>* x) noexcept {
  using c = detail::exp2_constants<A>;
  constexpr A log2e = A(1.4426950408889634073599246810018921L);
  packet<A> shifted[std::size_t{N}];
  unroll<N>([&](auto i) HEED_INLINE_LAMBDA {
    x[i] = detail::at_least(x[i], broadcast(A(c::vanishing / log2e)));
  });
  unroll<N>([&](auto i) HEED_INLINE_LAMBDA {
    shifted[i] = opaque(fmadd(x[i], broadcast(log2e), broadcast(c::round)));
  });
  if constexpr (fuses_multiply_add) {
    unroll<N>([&](auto i) HEED_INLINE_LAMBDA {
      x[i] = fmadd(x[i], broadcast(log2e), opaque(sub(broadcast(c::round), shifted[i])));
    });
  } else {
    using two = detail::ln2_parts<A>;
    unroll<N>([&](auto i) HEED_INLINE_LAMBDA {
      const packet<A> n = opaque(sub(shifted[i], broadcast(c::round)));
      const packet<A> most = opaque(sub(x[i], mul(n, broadcast(two::high))));
      x[i] = mul(sub(most, mul(n, broadcast(two::low))), broadcast(log2e));
    });
  }
  detail::finish_exp2<A, N>(x, shifted);
}

/// The same for one packet.
template <class A>
HEED_INLINE packet<A> exp_nonpositive(packet<A> x) noexcept {
  exp_nonpositive<A, 1>(&x);
  return x;
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

}  // namespace heed::inline HEED_TARGET::simd
