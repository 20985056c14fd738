// SPDX-License-Identifier: MIT
// What an operation costs, and the roofline that makes a time of a cost.
//
//   work      = { floating point operations, bytes moved to and from memory, extra memory }
//   seconds   = max(operations / peak, bytes / bandwidth)
//
// A multiply-add is two operations. Only matrix products are counted: exponentials, feature maps
// and normalisers are a fraction 1/D of them. Extra memory is the largest amount held at once
// besides inputs, weights and output. Counts are doubles: exact below 2^53, about 9e15, and never
// overflowing beyond it.
//
// The roofline is a bound: no implementation of the same operations beats it, provided that the
// bytes are moved at all (a working set that stays in cache between calls moves none).
// Source: Williams, Waterman and Patterson, Roofline (2009), doi:10.1145/1498765.1498785.
#pragma once

#include <array>
#include <cstddef>

#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET::cost {

struct work {
  double flops = 0;
  double bytes = 0;
  double extra_memory = 0;

  /// One after the other: operations and bytes add up, memory is reused.
  friend constexpr work operator+(const work& a, const work& b) noexcept {
    return {a.flops + b.flops, a.bytes + b.bytes,
            a.extra_memory > b.extra_memory ? a.extra_memory : b.extra_memory};
  }
  constexpr work& operator+=(const work& other) noexcept { return *this = *this + other; }

  /// `times` repetitions, one after the other.
  friend constexpr work operator*(double times, const work& a) noexcept {
    return {times * a.flops, times * a.bytes, a.extra_memory};
  }
  friend constexpr bool operator==(const work&, const work&) = default;

  /// Operations per byte. Infinite where nothing is moved.
  [[nodiscard]] constexpr double intensity() const noexcept { return flops / bytes; }
};

enum class bound { compute, memory };

/// A machine, or one core of it: what it can do, measured or from a data sheet.
struct roofline {
  double flops_per_second = 0;
  double bytes_per_second = 0;

  [[nodiscard]] constexpr double compute_seconds(const work& w) const noexcept {
    return w.flops / flops_per_second;
  }
  [[nodiscard]] constexpr double memory_seconds(const work& w) const noexcept {
    return w.bytes / bytes_per_second;
  }

  /// Arithmetic and traffic overlap perfectly.
  [[nodiscard]] constexpr double seconds(const work& w) const noexcept {
    const double c = compute_seconds(w);
    const double m = memory_seconds(w);
    return c > m ? c : m;
  }

  /// Stages that cannot overlap, because each needs the whole result of the one before.
  template <std::size_t Stages>
  [[nodiscard]] constexpr double seconds(const std::array<work, Stages>& stages) const noexcept {
    double total = 0;
    for (const work& w : stages) total += seconds(w);
    return total;
  }

  /// What limits the operation. A tie is compute.
  [[nodiscard]] constexpr bound limited_by(const work& w) const noexcept {
    return memory_seconds(w) > compute_seconds(w) ? bound::memory : bound::compute;
  }

  /// The intensity, in operations per byte, above which arithmetic is the limit.
  [[nodiscard]] constexpr double ridge() const noexcept {
    return flops_per_second / bytes_per_second;
  }
};

}  // namespace heed::inline HEED_TARGET::cost
