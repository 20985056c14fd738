// SPDX-License-Identifier: MIT
// Rows of stored scalars to and from the accumulator type.
#pragma once

#include <cstdint>
#include <cstring>

#include "heed/simd/packet.hpp"
#include "heed/tensor/scalar.hpp"

namespace heed::simd {

/// One stored number in the accumulator type, exactly.
template <class A, class T>
HEED_INLINE A widen(const T& x) noexcept {
  return static_cast<A>(x);
}

/// `count` consecutive numbers of `src` widened to `dst`. Exact.
template <class T, class A>
HEED_INLINE void widen_row(const T* src, A* dst, index count) noexcept {
  index c = 0;
  if constexpr (std::is_same_v<T, A>) {
    for (; c + lanes<A> <= count; c += lanes<A>) store(dst + c, load(src + c));
  }
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, half>) {
    for (; c + 16 <= count; c += 16) {
      __m256i bits;
      std::memcpy(&bits, src + c, sizeof bits);
      _mm512_storeu_ps(dst + c, _mm512_cvtph_ps(bits));
    }
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    for (; c + 16 <= count; c += 16) {
      __m256i bits;
      std::memcpy(&bits, src + c, sizeof bits);
      _mm512_storeu_ps(dst + c,
                       _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)));
    }
  }
#elif defined(__AVX2__) && defined(__F16C__)
  if constexpr (std::is_same_v<T, half>) {
    for (; c + 8 <= count; c += 8) {
      __m128i bits;
      std::memcpy(&bits, src + c, sizeof bits);
      _mm256_storeu_ps(dst + c, _mm256_cvtph_ps(bits));
    }
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    for (; c + 8 <= count; c += 8) {
      __m128i bits;
      std::memcpy(&bits, src + c, sizeof bits);
      _mm256_storeu_ps(dst + c,
                       _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)));
    }
  }
#endif
  for (; c < count; ++c) dst[c] = widen<A>(src[c]);
}

}  // namespace heed::simd
