// SPDX-License-Identifier: MIT
// A number and its derivative: what a backward pass calls a score modifier with.
//
//   (x, x')(y, y') = (x y, x y' + x' y),   f(x, x') = (f(x), f'(x) x')
//
// Arithmetic with plain numbers of any type, comparisons of the values, and the functions below,
// which are found by their argument: a modifier writes `using std::tanh; tanh(s)`, or `tanh(s)`
// alone. At a kink (abs, max, min) the derivative is that of one side. Where a function's derivative
// is infinite it is so here too. Wengert 1964, doi 10.1145/355586.364791.
#pragma once

#include <cmath>
#include <type_traits>

#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET {

template <class A>
struct dual {
  A value = A(0);
  A derivative = A(0);

  constexpr dual() noexcept = default;
  /// A constant.
  template <class T>
    requires std::is_arithmetic_v<T>
  constexpr dual(T x) noexcept  // NOLINT(google-explicit-constructor)
      : value(static_cast<A>(x)) {}
  constexpr dual(A x, A dx) noexcept : value(x), derivative(dx) {}

  [[nodiscard]] constexpr dual operator-() const noexcept { return {-value, -derivative}; }
  [[nodiscard]] constexpr dual operator+() const noexcept { return *this; }
  friend constexpr dual operator+(const dual& x, const dual& y) noexcept {
    return {x.value + y.value, x.derivative + y.derivative};
  }
  friend constexpr dual operator-(const dual& x, const dual& y) noexcept {
    return {x.value - y.value, x.derivative - y.derivative};
  }
  friend constexpr dual operator*(const dual& x, const dual& y) noexcept {
    return {x.value * y.value, x.value * y.derivative + x.derivative * y.value};
  }
  friend constexpr dual operator/(const dual& x, const dual& y) noexcept {
    const A ratio = x.value / y.value;
    return {ratio, (x.derivative - ratio * y.derivative) / y.value};
  }
  constexpr dual& operator+=(const dual& y) noexcept { return *this = *this + y; }
  constexpr dual& operator-=(const dual& y) noexcept { return *this = *this - y; }
  constexpr dual& operator*=(const dual& y) noexcept { return *this = *this * y; }
  constexpr dual& operator/=(const dual& y) noexcept { return *this = *this / y; }

  friend constexpr bool operator==(const dual& x, const dual& y) noexcept {
    return x.value == y.value;
  }
  friend constexpr auto operator<=>(const dual& x, const dual& y) noexcept {
    return x.value <=> y.value;
  }

  friend dual exp(const dual& x) noexcept {
    const A e = std::exp(x.value);
    return {e, e * x.derivative};
  }
  friend dual log(const dual& x) noexcept { return {std::log(x.value), x.derivative / x.value}; }
  friend dual log1p(const dual& x) noexcept {
    return {std::log1p(x.value), x.derivative / (A(1) + x.value)};
  }
  friend dual sqrt(const dual& x) noexcept {
    const A root = std::sqrt(x.value);
    return {root, x.derivative / (A(2) * root)};
  }
  friend dual tanh(const dual& x) noexcept {
    const A t = std::tanh(x.value);
    return {t, (A(1) - t * t) * x.derivative};
  }
  friend dual sin(const dual& x) noexcept {
    return {std::sin(x.value), std::cos(x.value) * x.derivative};
  }
  friend dual cos(const dual& x) noexcept {
    return {std::cos(x.value), -std::sin(x.value) * x.derivative};
  }
  friend dual abs(const dual& x) noexcept { return x.value < A(0) ? -x : x; }
  friend dual fabs(const dual& x) noexcept { return abs(x); }
  friend dual(max)(const dual& x, const dual& y) noexcept { return x.value < y.value ? y : x; }
  friend dual(min)(const dual& x, const dual& y) noexcept { return y.value < x.value ? y : x; }
  /// x^n for a constant n.
  template <class N>
    requires std::is_arithmetic_v<N>
  friend dual pow(const dual& x, N n) noexcept {
    const A power = static_cast<A>(n);
    return {std::pow(x.value, power), power * std::pow(x.value, power - A(1)) * x.derivative};
  }
};

}  // namespace heed::inline HEED_TARGET
