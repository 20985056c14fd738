// SPDX-License-Identifier: MIT
// Numbers of 8 bits: what a cache stores, never what is computed with. Both accumulate in float.
//
// | type        | sign, exponent, fraction | largest | smallest | infinities | NaN        |
// |-------------|--------------------------|---------|----------|------------|------------|
// | float8_e4m3 | 1, 4 (bias 7), 3         | 448     | 2^-9     | none       | 0x7F, 0xFF |
// | float8_e5m2 | 1, 5 (bias 15), 2        | 57,344  | 2^-16    | 0x7C, 0xFC | the rest   |
//
// A float is rounded to the nearest, ties to even, and saturates: what is too large, infinities
// included, becomes the largest number. `float8_e5m2::with_infinity` rounds as IEEE 754 does, from
// 61,440 on to an infinity. NaN stays NaN. Widening is exact. Relative error at most 2^-4 (e4m3) or
// 2^-3 (e5m2), absolute at most half the smallest below the normal numbers. Micikevicius et al.
// 2022, arXiv 2209.05433, section 3.
#pragma once

#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>

#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// Sign, then the nearest of the numbers with so many bits of fraction, counted from 0 in steps of
/// the code: the code without a largest.
[[nodiscard]] constexpr std::uint32_t float8_magnitude(std::uint32_t bits, int fraction,
                                                       int bias) noexcept {
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  const int exponent = static_cast<int>(magnitude >> 23U) - 127;
  // Below the smallest normal number the step stays the same: fewer bits of fraction are kept.
  const int lowest = 1 - bias;
  const int dropped = 23 - fraction + (exponent < lowest ? lowest - exponent : 0);
  if (dropped > 24) return 0;  // below half the smallest number
  const std::uint32_t significand =
      (magnitude >> 23U) == 0 ? 0 : (magnitude & 0x7FFFFFU) | 0x800000U;
  const std::uint32_t half = std::uint32_t{1} << static_cast<unsigned>(dropped - 1);
  const std::uint32_t kept = significand >> static_cast<unsigned>(dropped);
  const std::uint32_t rest = significand & (2 * half - 1);
  const std::uint32_t up = rest > half || (rest == half && (kept & 1U) != 0) ? 1 : 0;
  // With its leading 1 the significand adds one to the exponent above it.
  const int above = exponent < lowest ? 0 : exponent - lowest;
  return (static_cast<std::uint32_t>(above) << static_cast<unsigned>(fraction)) + kept + up;
}

/// 2^e for a normal float.
[[nodiscard]] constexpr float power_of_two(int e) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(e + 127) << 23U);
}

/// The value of a code that is neither an infinity nor NaN.
[[nodiscard]] constexpr float float8_value(std::uint32_t code, int fraction, int bias) noexcept {
  const std::uint32_t magnitude = code & 0x7FU;
  const auto exponent = static_cast<int>(magnitude >> static_cast<unsigned>(fraction));
  const std::uint32_t leading = std::uint32_t{1} << static_cast<unsigned>(fraction);
  const std::uint32_t low = magnitude & (leading - 1);
  const auto significand = static_cast<float>(exponent > 0 ? low + leading : low);
  const float x = significand * power_of_two((exponent > 0 ? exponent : 1) - bias - fraction);
  return (code & 0x80U) != 0 ? -x : x;
}

}  // namespace detail

/// The finite kind.
class float8_e4m3 {
 public:
  constexpr float8_e4m3() noexcept = default;
  explicit constexpr float8_e4m3(float x) noexcept : code_(encode(x)) {}
  template <class X>
    requires(!std::same_as<X, float> && !std::same_as<X, float8_e4m3>)
  explicit constexpr float8_e4m3(const X& x) noexcept : float8_e4m3(static_cast<float>(x)) {}
  [[nodiscard]] static constexpr float8_e4m3 from_code(std::uint8_t code) noexcept {
    float8_e4m3 x;
    x.code_ = code;
    return x;
  }
  [[nodiscard]] constexpr std::uint8_t code() const noexcept { return code_; }

  template <std::floating_point F>
  explicit constexpr operator F() const noexcept {
    if ((code_ & 0x7FU) == 0x7FU) return std::numeric_limits<F>::quiet_NaN();
    return detail::float8_value(code_, 3, 7);
  }

 private:
  [[nodiscard]] static constexpr std::uint8_t encode(float x) noexcept {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    const auto sign = static_cast<std::uint8_t>((bits >> 24U) & 0x80U);
    if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<std::uint8_t>(sign | 0x7FU);
    const std::uint32_t m = detail::float8_magnitude(bits, 3, 7);
    return static_cast<std::uint8_t>(sign | (m < 0x7EU ? m : 0x7EU));
  }
  std::uint8_t code_ = 0;
};

/// The kind that is a half cut short.
class float8_e5m2 {
 public:
  constexpr float8_e5m2() noexcept = default;
  explicit constexpr float8_e5m2(float x) noexcept : code_(encode(x, 0x7BU)) {}
  template <class X>
    requires(!std::same_as<X, float> && !std::same_as<X, float8_e5m2>)
  explicit constexpr float8_e5m2(const X& x) noexcept : float8_e5m2(static_cast<float>(x)) {}
  [[nodiscard]] static constexpr float8_e5m2 from_code(std::uint8_t code) noexcept {
    float8_e5m2 x;
    x.code_ = code;
    return x;
  }
  /// Rounded as IEEE 754 rounds: from 61,440 on to an infinity.
  [[nodiscard]] static constexpr float8_e5m2 with_infinity(float x) noexcept {
    return from_code(encode(x, 0x7CU));
  }
  [[nodiscard]] constexpr std::uint8_t code() const noexcept { return code_; }

  template <std::floating_point F>
  explicit constexpr operator F() const noexcept {
    const std::uint8_t m = code_ & 0x7FU;
    if (m > 0x7CU) return std::numeric_limits<F>::quiet_NaN();
    if (m == 0x7CU) {
      constexpr F infinity = std::numeric_limits<F>::infinity();
      return code_ == m ? infinity : -infinity;
    }
    return detail::float8_value(code_, 2, 15);
  }

 private:
  [[nodiscard]] static constexpr std::uint8_t encode(float x, std::uint32_t largest) noexcept {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    const auto sign = static_cast<std::uint8_t>((bits >> 24U) & 0x80U);
    if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<std::uint8_t>(sign | 0x7FU);
    const std::uint32_t m = detail::float8_magnitude(bits, 2, 15);
    return static_cast<std::uint8_t>(sign | (m < largest ? m : largest));
  }
  std::uint8_t code_ = 0;
};

}  // namespace heed::inline HEED_TARGET
