// SPDX-License-Identifier: MIT
// Feature maps that make phi(q).phi(k) a polynomial of q.k of second degree.
//
//   taylor_features     1 + s + s^2 / 2,  s = q.k / sqrt(D): exp(s) to second order
//       phi(x) = (1, y, y_i^2 / sqrt 2, y_i y_j for i < j),  y = D^(-1/4) x
//   rebased_features    (a(q).a(k))^2,  a(x) = gamma x + beta channel by channel
//       phi(x) = (a_i^2, sqrt 2 a_i a_j for i < j)
//
// Products of two channels are commutative, so that half of the D^2 that papers write serve: F is
// 1 + D + D (D + 1) / 2 and D (D + 1) / 2. Both kernels are never negative; Taylor's is at least
// 1/2. Errors: a few eps of the products. A NaN channel makes every feature with it a NaN.
// Sources: Arora et al. 2024, arXiv 2402.18668, section 4.1 (based); Aksenov, Balagansky et al.
// 2024, arXiv 2402.10644 (rebased; gamma and beta of q and k alike here: where they differ,
// apply them before and leave both out).
#pragma once

#include <cmath>
#include <cstddef>
#include <span>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// Products of two entries of y to phi from `at` on: y_i^2 times `square`, y_i y_j times `mixed`.
template <class A>
void pair_products(std::span<const A> y, A square, A mixed, std::span<A> phi,
                   std::size_t at) noexcept {
  const std::size_t d = y.size();
  for (std::size_t i = 0; i < d; ++i) {
    const A left = mixed * y[i];
    phi[at++] = square * y[i] * y[i];
    for (std::size_t j = i + 1; j < d; ++j) phi[at + j - i - 1] = left * y[j];
    at += d - i - 1;
  }
}

}  // namespace detail

/// See the top of this file.
struct taylor_features {
  [[nodiscard]] static constexpr index features(index d) noexcept {
    return 1 + d + d * (d + 1) / 2;
  }
  template <class A>
  void operator()(std::span<const A> x, std::span<A> phi) const noexcept {
    const std::size_t d = x.size();
    const A scale = d > 0 ? static_cast<A>(std::pow(static_cast<double>(d), -0.25)) : A(1);
    phi[0] = A(1);
    for (std::size_t i = 0; i < d; ++i) phi[1 + i] = scale * x[i];
    detail::pair_products<A>(phi.subspan(1, d), static_cast<A>(std::sqrt(0.5)), A(1), phi, 1 + d);
  }
};

/// See the top of this file. gamma and beta have one entry a channel, or none (1 and 0); the
/// numbers must outlive the call.
template <class T = float>
struct rebased_features {
  std::span<const T> gamma{};
  std::span<const T> beta{};

  [[nodiscard]] static constexpr index features(index d) noexcept { return d * (d + 1) / 2; }
  template <class A>
  void operator()(std::span<const A> x, std::span<A> phi) const noexcept {
    const auto affine = [&](std::size_t i) noexcept {
      const A scaled = gamma.empty() ? x[i] : x[i] * static_cast<A>(gamma[i]);
      return beta.empty() ? scaled : scaled + static_cast<A>(beta[i]);
    };
    std::size_t at = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const A a = affine(i);
      phi[at++] = a * a;
      for (std::size_t j = i + 1; j < x.size(); ++j) {
        phi[at++] = static_cast<A>(std::sqrt(2.0)) * a * affine(j);
      }
    }
  }
};

}  // namespace heed::inline HEED_TARGET
