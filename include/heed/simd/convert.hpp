// SPDX-License-Identifier: MIT
// Rows of stored scalars to and from the accumulator type.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "heed/simd/packet.hpp"
#include "heed/tensor/scalar.hpp"

namespace heed::simd {

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
  for (; c < count; ++c) dst[c] = static_cast<A>(src[c]);
}

/// `count` consecutive numbers of `src` rounded to nearest even into `dst`.
template <class A, class T>
HEED_INLINE void narrow_row(const A* src, T* dst, index count) noexcept {
  if constexpr (std::is_same_v<T, A>) {
    widen_row(src, dst, count);
  } else {
    index c = 0;
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<T, half>) {
      for (; c + 16 <= count; c += 16) {
        const __m256i bits = _mm512_cvtps_ph(load(src + c), _MM_FROUND_TO_NEAREST_INT);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + c), bits);
      }
    }
#endif
    for (; c < count; ++c) dst[c] = static_cast<T>(src[c]);
  }
}

}  // namespace heed::simd
