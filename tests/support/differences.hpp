// SPDX-License-Identifier: MIT
// Gradients beside central differences, in double.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "heed/tensor.hpp"

namespace support {

/// Central differences of `loss` by every finite number of `x`. They are off by step^2 of third
/// derivatives and by eps / step of the loss: about 1e-9 of losses near 1.
template <int R>
void expect_differences(const char* name, heed::tensor<double, R>& x,
                        const heed::tensor<double, R>& gradient,
                        const std::function<double()>& loss, double near = 2e-7) {
  constexpr double step = 1e-5;
  for (heed::index i = 0; i < x.size(); ++i) {
    const double before = x.data()[i];
    if (std::isinf(before)) continue;
    x.data()[i] = before + step;
    const double up = loss();
    x.data()[i] = before - step;
    const double down = loss();
    x.data()[i] = before;
    const double want = (up - down) / (2 * step);
    EXPECT_NEAR(gradient.data()[i], want, near * (1 + std::abs(want))) << name << " at " << i;
  }
}

/// The sum of products of two tensors' numbers: a loss whose gradient by x is y.
template <class X, class Y>
[[nodiscard]] double dot(const X& x, const Y& y) {
  double sum = 0;
  for (heed::index i = 0; i < x.size(); ++i) sum += x.data()[i] * y.data()[i];
  return sum;
}

}  // namespace support
