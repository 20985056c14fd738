// SPDX-License-Identifier: MIT
// A row of numbers as codes of 8 or 4 bits with one scale and one zero point.
//
//   x ~ scale (code - zero),   code in 0 .. 2^bits - 1,   scale = (max x - min x) / (2^bits - 1)
//
// The error is at most scale / 2, plus 2^-22 of the largest |x|. A constant row comes back exactly
// (scale |x|, code 1 and zero 0, or code 0 and zero 1); a row of zeros has scale 1 and codes 0. A
// row whose range is below 2^-100 is constant. A row with a NaN is all NaN. Infinities count as the
// largest float. 4-bit codes: byte i holds channel i in its low half, channel i + ceil(n / 2) in
// its high half.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/kernel/code_layout.hpp"
#include "heed/simd/convert.hpp"

namespace heed::inline HEED_TARGET {

struct row_scale {
  float scale = 1;
  float zero = 0;
};

/// Bytes of a row of n codes.
template <int Bits>
[[nodiscard]] constexpr index code_bytes(index n) noexcept {
  static_assert(Bits == 8 || Bits == 4, "heed: codes have 8 or 4 bits");
  return Bits == 8 ? n : ceil_div(n, 2);
}

namespace detail {

template <int Bits>
void store_code(std::uint8_t* row, index n, index c, std::uint8_t code) noexcept {
  if constexpr (Bits == 8) {
    row[c] = code;
  } else {
    const index half = ceil_div(n, 2);
    if (c < half) {
      row[c] = code;  // the low half comes first and clears the high one
    } else {
      row[c - half] = static_cast<std::uint8_t>(row[c - half] | (code << 4U));
    }
  }
}

/// The scale of x[0 .. n); store(c, code) takes each code, in order.
template <int Bits, class Store>
row_scale quantise(const float* x, index n, const Store& store) noexcept {
  constexpr float largest = (std::numeric_limits<float>::max)();
  constexpr float levels = (1 << Bits) - 1;
  float low = n > 0 ? largest : 0;
  float high = n > 0 ? -largest : 0;
  bool nan = false;
  for (index c = 0; c < n; ++c) {
    nan = nan || std::isnan(x[c]);
    low = (std::min)(low, std::clamp(x[c], -largest, largest));
    high = (std::max)(high, std::clamp(x[c], -largest, largest));
  }
  // In double, where the range of the largest floats has room.
  const double range = static_cast<double>(high) - static_cast<double>(low);
  if (nan || !(range >= std::ldexp(1.0, -100))) {
    const bool one = !nan && low > 0;
    for (index c = 0; c < n; ++c) store(c, std::uint8_t{one});
    if (nan) return {std::numeric_limits<float>::quiet_NaN(), 0};
    if (low == 0) return {};
    return {std::abs(low), one ? 0.0F : 1.0F};
  }
  for (index c = 0; c < n; ++c) {
    const double at = (std::clamp(x[c], -largest, largest) - static_cast<double>(low)) * levels;
    const double code = (std::min)(std::nearbyint(at / range), static_cast<double>(levels));
    store(c, static_cast<std::uint8_t>(code));
  }
  return {static_cast<float>(range / levels),
          static_cast<float>(-static_cast<double>(low) * levels / range)};
}

}  // namespace detail

/// The codes of x[0 .. n), and their scale.
template <int Bits>
[[nodiscard]] row_scale quantise_row(const float* x, index n, std::uint8_t* codes) noexcept {
  return detail::quantise<Bits>(
      x, n, [&](index c, std::uint8_t code) { detail::store_code<Bits>(codes, n, c, code); });
}

namespace detail {

/// to[0 .. n) = scale (code - zero), a scale and a zero of all or, where `ByChannel`, of each.
template <bool ByChannel, class Code>
void widen_code_row(const Code* codes, const float* scale, const float* zero, index n,
                    float* to) noexcept {
  const auto at = [](const float* x, index c) {
    return ByChannel ? simd::load(x + c) : simd::broadcast(*x);
  };
  index c = 0;
  for (; c + simd::lanes<float> <= n; c += simd::lanes<float>) {
    const auto code = simd::load_widened<float>(codes + c);
    simd::store(to + c, simd::mul(at(scale, c), simd::sub(code, at(zero, c))));
  }
  for (; c < n; ++c) {
    const index i = ByChannel ? c : 0;
    to[c] = scale[i] * (static_cast<float>(codes[c]) - zero[i]);
  }
}

/// The same of a row of n codes of `Bits`, scales and zeros one a channel or, where not `ByChannel`,
/// `step` apart for each `group` channels, of which 0 are all.
template <int Bits, bool ByChannel>
void widen_codes(const std::uint8_t* codes, const float* scale, const float* zero, index n,
                 float* to, index group = 0, index step = 0) noexcept {
  kernel::each_code_part<Bits>(n, group, [&](const auto& part) noexcept {
    const index at = ByChannel ? part.channel : part.group * step;
    widen_code_row<ByChannel>(part.codes(codes), scale + at, zero + at, part.count,
                              to + part.channel);
  });
}

}  // namespace detail

/// to[0 .. n) = scale (code - zero).
template <int Bits>
void widen_codes(const std::uint8_t* codes, row_scale s, index n, float* to) noexcept {
  detail::widen_codes<Bits, false>(codes, &s.scale, &s.zero, n, to);
}

}  // namespace heed::inline HEED_TARGET
