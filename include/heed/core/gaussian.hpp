// SPDX-License-Identifier: MIT
// Standard normal numbers from a seed: Box and Muller's (1958) on the raw bits of mt19937_64, which
// the standard fixes, so that they are the same on every platform, up to rounding.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <random>

#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET {

/// Standard normal numbers, the same on every platform.
class gaussian_source {
 public:
  explicit gaussian_source(std::uint64_t seed) : bits_(seed) {}

  [[nodiscard]] double operator()() {
    if (kept_) {
      kept_ = false;
      return next_;
    }
    const double radius = std::sqrt(-2.0 * std::log(uniform()));
    const double angle = 2.0 * std::numbers::pi * uniform();
    next_ = radius * std::sin(angle);
    kept_ = true;
    return radius * std::cos(angle);
  }

 private:
  /// In (0, 1], 53 bits.
  double uniform() { return (static_cast<double>(bits_() >> 11U) + 1.0) * 0x1p-53; }

  std::mt19937_64 bits_;
  double next_ = 0;
  bool kept_ = false;
};

}  // namespace heed::inline HEED_TARGET
