// SPDX-License-Identifier: MIT
// What the gradients of the linear family share: their options, and views that they read or write, of
// which some may be absent: then their data is null.
#pragma once

#include <array>
#include <cmath>
#include <span>
#include <string>

#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/core/workspace.hpp"
#include "heed/tensor/view.hpp"

namespace heed::inline HEED_TARGET {

/// What the backward pass of a recurrence, a scan or the convolution takes besides its inputs.
struct gradient_options {
  /// As in the forward pass: states have one batch entry a sequence.
  std::span<const index> sequence_bounds{};
  workspace* scratch = nullptr;  ///< kept by the caller, so that a call allocates nothing
};

namespace detail {

template <class T, int R>
[[nodiscard]] bool has_data(const view<T, R>& x) noexcept {
  return x.data() != nullptr;
}

template <class T, int R, std::size_t N>
void check_extents(const char* name, const view<T, R>& x, const std::array<index, N>& expected) {
  static_assert(static_cast<std::size_t>(R) == N);
  if (x.extents() != expected) {
    fail<shape_error>(std::string(name) + " has extents " + format_extents(x.extents()) +
                      ", the call needs " + format_extents(expected));
  }
}

template <class T, int R, std::size_t N>
void check_extents_if_given(const char* name, const view<T, R>& x,
                            const std::array<index, N>& expected) {
  if (has_data(x)) check_extents(name, x, expected);
}

/// Throws where the gradient of something absent is wanted, or has other extents than it.
template <class T, class D, int R>
void check_gradient_of(const char* d_name, const view<D, R>& d, const char* name,
                       const view<const T, R>& of) {
  if (!has_data(d)) return;
  if (!has_data(of) && d.size() != 0) {
    fail<option_error>(std::string(d_name) + " is wanted, but there is no " + name);
  }
  check_extents(d_name, d, of.extents());
}

/// e^g h, and 0 where the decay is 0, whatever h is.
template <class A>
[[nodiscard]] A decayed(A e, A h) noexcept {
  return e == A(0) ? A(0) : e * h;
}

/// 1 / (1 + e^-s), without overflow.
template <class A>
[[nodiscard]] A sigmoid(A s) noexcept {
  const A e = std::exp(-std::abs(s));
  return s < 0 ? e / (1 + e) : 1 / (1 + e);
}

template <class A, int R>
void clear_sum(const view<A, R>& x) noexcept {
  if (!has_data(x)) return;
  if constexpr (R == 1) {
    for (index i = 0; i < x.extent(0); ++i) x(i) = A(0);
  } else {
    for (index i = 0; i < x.extent(0); ++i) clear_sum(x[i]);
  }
}

}  // namespace detail

}  // namespace heed::inline HEED_TARGET
