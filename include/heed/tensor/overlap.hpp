// SPDX-License-Identifier: MIT
// Outputs that share memory with an input or with themselves: refused before anything is written.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>

#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/tensor/view.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// Where a view's elements lie: address of the first byte of all, bytes up to the end of the last
/// one, and its axes of more than one element, in bytes.
struct memory_of {
  static constexpr std::size_t most_axes = 8;
  std::uintptr_t begin = 0;
  std::uintptr_t bytes = 0;  // 0: no elements
  std::uintptr_t scalar = 0;
  std::array<std::uintptr_t, most_axes> extent{};
  std::array<std::uintptr_t, most_axes> step{};
  std::size_t axes = 0;

  template <class T, int R>
  explicit memory_of(const view<T, R>& v) noexcept : scalar(sizeof(T)) {
    static_assert(static_cast<std::size_t>(R) <= most_axes);
    if (v.data() == nullptr || v.empty()) return;
    begin = reinterpret_cast<std::uintptr_t>(v.data());
    bytes = scalar;
    for (int a = 0; a < R; ++a) {
      if (v.extent(a) == 1 || v.stride(a) == 0) continue;
      const bool back = v.stride(a) < 0;
      extent[axes] = static_cast<std::uintptr_t>(v.extent(a));
      step[axes] = static_cast<std::uintptr_t>(back ? -v.stride(a) : v.stride(a)) * scalar;
      const std::uintptr_t span = (extent[axes] - 1) * step[axes];
      if (back) begin -= span;
      bytes += span;
      ++axes;
    }
  }
  /// Bytes from the first to the last element where steps of whole periods are left out.
  [[nodiscard]] std::uintptr_t bytes_within(std::uintptr_t period) const noexcept {
    std::uintptr_t n = scalar;
    for (std::size_t a = 0; a < axes; ++a) {
      if (step[a] % period != 0) n += (extent[a] - 1) * step[a];
    }
    return n;
  }
  /// Whether the two lie in different parts of each period: columns or heads of one matrix.
  [[nodiscard]] static bool interleaved(const memory_of& a, const memory_of& b,
                                        std::uintptr_t period) noexcept {
    const std::uintptr_t n = a.bytes_within(period);
    const std::uintptr_t m = b.bytes_within(period);
    if (n + m > period) return false;
    const std::uintptr_t ahead = b.begin >= a.begin
                                     ? (b.begin - a.begin) % period
                                     : (period - (a.begin - b.begin) % period) % period;
    return ahead >= n && ahead + m <= period;
  }
};

}  // namespace detail

/// Whether the two views may have an element in common. Never false where they have; true for none
/// of the usual layouts where they have not: apart from each other, or columns, rows or heads of one
/// matrix that lie interleaved.
template <class T, int R, class U, int S>
[[nodiscard]] bool may_overlap(const view<T, R>& x, const view<U, S>& y) noexcept {
  const detail::memory_of a(x);
  const detail::memory_of b(y);
  if (a.bytes == 0 || b.bytes == 0) return false;
  if (a.begin + a.bytes <= b.begin || b.begin + b.bytes <= a.begin) return false;
  for (const detail::memory_of* m : {&a, &b}) {
    for (std::size_t n = 0; n < m->axes; ++n) {
      if (detail::memory_of::interleaved(a, b, m->step[n])) return false;
    }
  }
  return true;
}

/// Throws shape_error where the output shares memory with the input.
template <class T, int R, class U, int S>
void require_apart(const char* output, const view<T, R>& x, const char* input,
                   const view<U, S>& y) {
  if (may_overlap(x, y)) {
    fail<shape_error>(std::string(output) + " overlaps " + input +
                      " in memory: it would be written while that is read");
  }
}

/// Throws shape_error where elements of the output are one number: a stride of 0.
template <class T, int R>
void require_distinct(const char* output, const view<T, R>& x) {
  if (x.empty()) return;
  for (int a = 0; a < R; ++a) {
    if (x.extent(a) > 1 && x.stride(a) == 0) {
      fail<shape_error>(std::string(output) + " has extents " + format_extents(x.extents()) +
                        " and strides " + format_extents(x.strides()) +
                        ": a stride of 0 writes several results to one number");
    }
  }
}

}  // namespace heed::inline HEED_TARGET
