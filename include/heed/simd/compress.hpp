// SPDX-License-Identifier: MIT
// Some lanes of a packet closed up in memory: how a list takes what passes a comparison.
//
// A whole packet may be written at `to`, of which the numbers of the set bits come first, in order.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/simd/packet.hpp"

namespace heed::inline HEED_TARGET::simd {

/// The numbers of `from` whose bit is set.
template <class A>
HEED_INLINE void store_selected(A* to, const A* from, unsigned bits) noexcept {
#if defined(EIGEN_VECTORIZE_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    _mm512_storeu_ps(to, _mm512_maskz_compress_ps(static_cast<__mmask16>(bits), load(from)));
  } else {
    _mm512_storeu_pd(to, _mm512_maskz_compress_pd(static_cast<__mmask8>(bits), load(from)));
  }
#else
  for (; bits != 0; bits &= bits - 1) *to++ = from[std::countr_zero(bits)];
#endif
}

/// The same of as many integers as a packet of A has lanes, plus `addend`.
template <class A>
HEED_INLINE void store_selected(std::int32_t* to, const std::int32_t* from, unsigned bits,
                                std::int32_t addend = 0) noexcept {
#if defined(EIGEN_VECTORIZE_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    const __m512i x =
        _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), _mm512_loadu_si512(from));
    _mm512_storeu_si512(to, _mm512_add_epi32(x, _mm512_set1_epi32(addend)));
    return;
  }
#endif
  for (; bits != 0; bits &= bits - 1) *to++ = from[std::countr_zero(bits)] + addend;
}

}  // namespace heed::inline HEED_TARGET::simd
