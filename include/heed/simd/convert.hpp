// SPDX-License-Identifier: MIT
// Rows of stored scalars to and from the accumulator type.
#pragma once

#include <concepts>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "heed/core/float8.hpp"
#include "heed/core/target.hpp"
#include "heed/simd/packet.hpp"

namespace heed::inline HEED_TARGET::simd {

/// A byte that holds two numbers of 4 bits, 0 to 15, read as the one in its low half.
struct low_nibble {
  std::uint8_t byte;
  template <std::floating_point F>
  explicit constexpr operator F() const noexcept {
    return static_cast<F>(byte & 15U);
  }
};
/// The same, read as the one in its high half.
struct high_nibble {
  std::uint8_t byte;
  template <std::floating_point F>
  explicit constexpr operator F() const noexcept {
    return static_cast<F>(byte >> 4U);
  }
};

namespace detail {
/// Bytes that are codes: whole numbers, 0 to 255 or 0 to 15.
template <class T>
inline constexpr bool is_code = std::is_same_v<T, std::uint8_t> || std::is_same_v<T, low_nibble> ||
                                std::is_same_v<T, high_nibble>;
}  // namespace detail

#if defined(EIGEN_VECTORIZE_AVX2)
namespace detail {
/// float8_e4m3 codes, one in each 16 bits with its sign in all of the upper ones, as halves 2^8 times
/// too small: the exponents' biases differ by 8, and a half's smallest numbers hold e4m3's. One more
/// than NaN's magnitude, 0x7F, carries into the exponent's highest bit, which is free.
HEED_INLINE __m128i e4m3_to_half(__m128i code) noexcept {
  const __m128i half = _mm_and_si128(_mm_slli_epi16(code, 7), _mm_set1_epi16(short{-0x4080}));
  const __m128i carry = _mm_add_epi16(half, _mm_set1_epi16(0x80));
  return _mm_or_si128(half, _mm_and_si128(carry, _mm_set1_epi16(0x4000)));
}
HEED_INLINE __m256i e4m3_to_half(__m256i code) noexcept {
  const __m256i half =
      _mm256_and_si256(_mm256_slli_epi16(code, 7), _mm256_set1_epi16(short{-0x4080}));
  const __m256i carry = _mm256_add_epi16(half, _mm256_set1_epi16(0x80));
  return _mm256_or_si256(half, _mm256_and_si256(carry, _mm256_set1_epi16(0x4000)));
}
}  // namespace detail
#elif defined(EIGEN_VECTORIZE_NEON) && defined(__aarch64__)
namespace detail {
/// As above.
HEED_INLINE uint16x4_t e4m3_to_half(uint16x4_t code) noexcept {
  const uint16x4_t half = vand_u16(vshl_n_u16(code, 7), vdup_n_u16(0xBF80));
  const uint16x4_t carry = vadd_u16(half, vdup_n_u16(0x80));
  return vorr_u16(half, vand_u16(carry, vdup_n_u16(0x4000)));
}
}  // namespace detail
#endif

/// A packet of consecutive stored numbers, widened. Exact.
template <class A, class T>
HEED_INLINE packet<A> load_widened(const T* p) noexcept {
  [[maybe_unused]] constexpr bool to_float = std::is_same_v<A, float>;
  if constexpr (std::is_same_v<T, A>) {
    return load(p);
#if defined(EIGEN_VECTORIZE_AVX512)
  } else if constexpr (to_float && std::is_same_v<T, Eigen::half>) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  } else if constexpr (to_float && std::is_same_v<T, Eigen::bfloat16>) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  } else if constexpr (to_float && (std::is_same_v<T, float8_e5m2> ||
                                    std::is_same_v<T, float8_e4m3> || detail::is_code<T>)) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    if constexpr (std::is_same_v<T, float8_e5m2>) {
      return _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes), 8));
    } else if constexpr (std::is_same_v<T, float8_e4m3>) {
      return _mm512_mul_ps(_mm512_cvtph_ps(detail::e4m3_to_half(_mm256_cvtepi8_epi16(bytes))),
                           _mm512_set1_ps(256.0F));
    } else {
      __m512i code = _mm512_cvtepu8_epi32(bytes);
      if constexpr (std::is_same_v<T, low_nibble>) {
        code = _mm512_and_si512(code, _mm512_set1_epi32(15));
      } else if constexpr (std::is_same_v<T, high_nibble>) {
        code = _mm512_srli_epi32(code, 4);
      }
      return _mm512_cvtepi32_ps(code);
    }
#elif defined(EIGEN_VECTORIZE_AVX2)
  } else if constexpr (to_float && std::is_same_v<T, Eigen::bfloat16>) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
#if defined(__F16C__)
  } else if constexpr (to_float && std::is_same_v<T, Eigen::half>) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  } else if constexpr (to_float && std::is_same_v<T, float8_e5m2>) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm256_cvtph_ps(_mm_slli_epi16(_mm_cvtepu8_epi16(bytes), 8));
  } else if constexpr (to_float && std::is_same_v<T, float8_e4m3>) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm256_mul_ps(_mm256_cvtph_ps(detail::e4m3_to_half(_mm_cvtepi8_epi16(bytes))),
                         _mm256_set1_ps(256.0F));
#endif
  } else if constexpr (to_float && detail::is_code<T>) {
    __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    if constexpr (std::is_same_v<T, low_nibble>) {
      code = _mm256_and_si256(code, _mm256_set1_epi32(15));
    } else if constexpr (std::is_same_v<T, high_nibble>) {
      code = _mm256_srli_epi32(code, 4);
    }
    return _mm256_cvtepi32_ps(code);
#elif defined(EIGEN_VECTORIZE_SSE2) && !defined(EIGEN_VECTORIZE_AVX)
  } else if constexpr (to_float && detail::is_code<T>) {
    int four = 0;
    std::memcpy(&four, p, sizeof(four));
    const __m128i none = _mm_setzero_si128();
    __m128i code = _mm_unpacklo_epi16(_mm_unpacklo_epi8(_mm_cvtsi32_si128(four), none), none);
    if constexpr (std::is_same_v<T, low_nibble>) {
      code = _mm_and_si128(code, _mm_set1_epi32(15));
    } else if constexpr (std::is_same_v<T, high_nibble>) {
      code = _mm_srli_epi32(code, 4);
    }
    return _mm_cvtepi32_ps(code);
#elif defined(EIGEN_VECTORIZE_NEON) && defined(__aarch64__)
  } else if constexpr (to_float &&
                       (std::is_same_v<T, Eigen::bfloat16> || std::is_same_v<T, Eigen::half>)) {
    uint16x4_t bits;
    std::memcpy(&bits, p, sizeof(bits));
    if constexpr (std::is_same_v<T, Eigen::bfloat16>) {
      return vreinterpretq_f32_u32(vshll_n_u16(bits, 16));
    } else {
      // Every Armv8 has it; Eigen converts in software unless the target has FEAT_FP16.
      return vcvt_f32_f16(vreinterpret_f16_u16(bits));
    }
  } else if constexpr (to_float && (std::is_same_v<T, float8_e5m2> ||
                                    std::is_same_v<T, float8_e4m3> || detail::is_code<T>)) {
    std::uint32_t four = 0;
    std::memcpy(&four, p, sizeof(four));
    const uint8x8_t bytes = vcreate_u8(four);
    if constexpr (std::is_same_v<T, float8_e5m2>) {
      return vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(vshll_n_u8(bytes, 8))));
    } else if constexpr (std::is_same_v<T, float8_e4m3>) {
      const int16x4_t code = vget_low_s16(vmovl_s8(vreinterpret_s8_u8(bytes)));
      return vmulq_n_f32(
          vcvt_f32_f16(vreinterpret_f16_u16(detail::e4m3_to_half(vreinterpret_u16_s16(code)))),
          256.0F);
    } else {
      uint32x4_t code = vmovl_u16(vget_low_u16(vmovl_u8(bytes)));
      if constexpr (std::is_same_v<T, low_nibble>) {
        code = vandq_u32(code, vdupq_n_u32(15));
      } else if constexpr (std::is_same_v<T, high_nibble>) {
        code = vshrq_n_u32(code, 4);
      }
      return vcvtq_f32_u32(code);
    }
#endif
  } else {
    A lane[std::size_t{lanes<A>}];
    for (index i = 0; i < lanes<A>; ++i) lane[i] = static_cast<A>(p[i]);
    return load(lane);
  }
}

/// `count` consecutive numbers of `src` widened to `dst`. Exact.
template <class T, class A>
HEED_INLINE void widen_row(const T* src, A* dst, index count) noexcept {
  index c = 0;
  for (; c + lanes<A> <= count; c += lanes<A>) store(dst + c, load_widened<A>(src + c));
  for (; c < count; ++c) dst[c] = static_cast<A>(src[c]);
}

/// `count` consecutive numbers of `src` rounded to nearest even into `dst`.
template <class A, class T>
HEED_INLINE void narrow_row(const A* src, T* dst, index count) noexcept {
  if constexpr (std::is_same_v<T, A>) {
    widen_row(src, dst, count);
  } else {
    index c = 0;
#if defined(EIGEN_VECTORIZE_AVX512)
    if constexpr (std::is_same_v<A, float> && std::is_same_v<T, Eigen::half>) {
      for (; c + 16 <= count; c += 16) {
        const __m256i bits =
            _mm512_maskz_cvtps_ph(0xFFFF, load(src + c), _MM_FROUND_TO_NEAREST_INT);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + c), bits);
      }
    }
#elif defined(EIGEN_VECTORIZE_NEON) && defined(__aarch64__)
    if constexpr (std::is_same_v<A, float> && std::is_same_v<T, Eigen::half>) {
      for (; c + 4 <= count; c += 4) {
        const float16x4_t rounded = vcvt_f16_f32(load(src + c));
        std::memcpy(static_cast<void*>(dst + c), &rounded, sizeof(rounded));
      }
    }
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    if constexpr (std::is_same_v<A, float> && std::is_same_v<T, Eigen::bfloat16>) {
      for (; c + 4 <= count; c += 4) {
        const bfloat16x4_t rounded = vcvt_bf16_f32(load(src + c));
        std::memcpy(static_cast<void*>(dst + c), &rounded, sizeof(rounded));
      }
    }
#endif
#endif
    for (; c < count; ++c) dst[c] = static_cast<T>(src[c]);
  }
}

}  // namespace heed::inline HEED_TARGET::simd
