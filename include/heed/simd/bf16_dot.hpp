// SPDX-License-Identifier: MIT
// Dot products of pairs of bfloat16, where the target has them (AVX512-BF16) and they pay.
//
//   dot_pairs(acc, a, b)   acc_i + a_2i b_2i + a_2i+1 b_2i+1
//
// A word holds two bfloat16, the even one in its lower half. Products are exact in float; sums
// round to nearest even; denormal inputs and results count as zero.
//
// Intel's processors with matrix units (AMX) run them at half the rate of float's multiply-adds, AMD's
// at twice that rate. For targets with AMX bfloat16 is widened, so that it is not slower than float.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "heed/core/target.hpp"
#include "heed/simd/packet.hpp"

namespace heed::inline HEED_TARGET::simd {

#if defined(__AVX512BF16__) && defined(EIGEN_VECTORIZE_AVX512) && !defined(__AMX_BF16__)
#define HEED_HAS_BFLOAT16_PAIRS 1

inline constexpr bool has_bfloat16_pairs = true;

using pairs = __m512i;

HEED_INLINE packet<float> dot_pairs(packet<float> acc, pairs a, pairs b) noexcept {
  return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
}
HEED_INLINE pairs load_pairs(const std::uint32_t* p) noexcept { return _mm512_loadu_si512(p); }
HEED_INLINE void store_pairs(std::uint32_t* p, pairs x) noexcept { _mm512_storeu_si512(p, x); }

/// The pair in every word.
HEED_INLINE pairs broadcast_pair(std::uint32_t word) noexcept {
  pairs x = _mm512_set1_epi32(static_cast<int>(word));
#if defined(__clang__) && __clang_major__ < 18
  asm("" : "+v"(x));  // clang 16 fails where the product takes a broadcast as its operand
#endif
  return x;
}
/// The pair at p, which may be unaligned.
HEED_INLINE pairs broadcast_pair(const Eigen::bfloat16* p) noexcept {
  std::uint32_t word;
  std::memcpy(&word, p, sizeof word);
  return broadcast_pair(word);
}

/// Words (even_i, odd_i) of two packets rounded to bfloat16.
HEED_INLINE pairs round_to_pairs(packet<float> even, packet<float> odd) noexcept {
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(odd, even);  // even's lanes, then odd's
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, halves);
}

#else
#define HEED_HAS_BFLOAT16_PAIRS 0

inline constexpr bool has_bfloat16_pairs = false;

#endif

/// The word of two numbers rounded to bfloat16, to nearest even; a NaN stays one. It has no branch, so
/// that loops of it run in packets.
HEED_INLINE std::uint32_t round_to_word(float even, float odd) noexcept {
  const auto rounded = [](float x) HEED_INLINE_LAMBDA {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    const bool nan = (bits & 0x7FFFFFFFU) > 0x7F800000U;
    return nan ? 0x7FC00000U : bits + 0x7FFFU + ((bits >> 16U) & 1U);
  };
  return (rounded(even) >> 16U) | (rounded(odd) & 0xFFFF0000U);
}

/// Words (even[c], odd[c]) of two rows; a null `odd` counts as zeros.
HEED_INLINE void pair_rows(const Eigen::bfloat16* even, const Eigen::bfloat16* odd,
                           std::uint32_t* words, index count) noexcept {
  index c = 0;
#if defined(EIGEN_VECTORIZE_AVX512)
  const auto widened = [](const Eigen::bfloat16* p) HEED_INLINE_LAMBDA {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  };
  for (; c + 16 <= count; c += 16) {
    const __m512i upper =
        odd == nullptr ? _mm512_setzero_si512() : _mm512_slli_epi32(widened(odd + c), 16);
    _mm512_storeu_si512(words + c, _mm512_or_si512(widened(even + c), upper));
  }
#endif
  for (; c < count; ++c) {
    std::uint16_t low;
    std::uint16_t high = 0;
    std::memcpy(&low, even + c, sizeof low);
    if (odd != nullptr) std::memcpy(&high, odd + c, sizeof high);
    words[c] = static_cast<std::uint32_t>(low) | (static_cast<std::uint32_t>(high) << 16U);
  }
}

}  // namespace heed::inline HEED_TARGET::simd
