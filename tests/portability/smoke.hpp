// SPDX-License-Identifier: MIT
// What the parts of the smoke program share: numbers that any machine makes alike, and one line a
// family with its error beside what is allowed.
#pragma once

#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <type_traits>

#include "heed/tensor.hpp"

namespace smoke {

inline bool all_right = true;

void attention_family();
void sparse_family();
void linear_family();

template <class T>
const char* name_of() {
  if constexpr (std::is_same_v<T, float>) return "float";
  if constexpr (std::is_same_v<T, double>) return "double";
  if constexpr (std::is_same_v<T, heed::half>) return "half";
  if constexpr (std::is_same_v<T, heed::bfloat16>) return "bfloat16";
}

/// Uniform in [-1, 1), the same on every machine.
template <class T, int R>
heed::tensor<T, R> numbers(const std::array<heed::index, static_cast<std::size_t>(R)>& extents,
                           unsigned seed) {
  heed::tensor<T, R> x(extents);
  for (heed::index i = 0; i < x.size(); ++i) {
    seed = seed * 1664525U + 1013904223U;
    x.data()[i] = static_cast<T>(static_cast<float>(seed >> 8U) / 8388608.0F - 1.0F);
  }
  return x;
}

inline void report(const char* family, const char* scalar, double error, double allowed) {
  const bool right = error <= allowed;  // not where it is a NaN
  std::printf("%-34s %-9s error %8.1e allowed %8.1e %s\n", family, scalar, error, allowed,
              right ? "ok" : "WRONG");
  all_right = all_right && right;
}

/// The largest difference; a NaN in either is a NaN.
template <class X, class Y>
double difference(const X& x, const Y& y) {
  double worst = x.size() == y.size() ? 0 : std::numeric_limits<double>::infinity();
  for (heed::index i = 0; i < x.size() && i < y.size(); ++i) {
    const double d = std::fabs(static_cast<double>(x.data()[i]) - static_cast<double>(y.data()[i]));
    if (!(d <= worst)) worst = d;
  }
  return worst;
}

/// One rounding of values below 1 to T, and `terms` roundings of sums of them in float or double.
template <class T>
double allowed(double terms) {
  const double sums = std::is_same_v<T, double> ? 2.3e-16 : 1.2e-7;
  const double stored = std::is_same_v<T, heed::bfloat16> ? 8e-3
                        : std::is_same_v<T, heed::half>   ? 1e-3
                                                          : sums;
  return stored + terms * sums;
}

}  // namespace smoke
