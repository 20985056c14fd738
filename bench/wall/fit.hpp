// SPDX-License-Identifier: MIT
// Power laws through measured points: exponents, crossovers, extrapolation.
//
//   log y = log c + a log n, least squares over the larger half of the sizes
//
// The larger half, because constant costs (a first tile, a call) fade with n and would flatten the
// exponent that the method tends to.
#pragma once

#include <cmath>
#include <cstddef>
#include <optional>
#include <vector>

#include "heed/core.hpp"

namespace wall {

struct sample {
  double n = 0;
  double y = 0;
};

/// y = coefficient n^exponent
struct power_law {
  double coefficient = 0;
  double exponent = 0;

  [[nodiscard]] double at(double n) const { return coefficient * std::pow(n, exponent); }
  /// The n at which y is reached; empty for a law that does not grow (exponent below 0.05).
  [[nodiscard]] std::optional<double> reaches(double y) const {
    if (exponent < 0.05) return std::nullopt;
    return std::pow(y / coefficient, 1 / exponent);
  }
};

/// Needs two samples at least, of positive n and y, in ascending n.
[[nodiscard]] inline std::optional<power_law> fit_upper_half(const std::vector<sample>& all) {
  if (all.size() < 2) return std::nullopt;
  const std::size_t half = (all.size() + 1) / 2;
  const std::size_t used = half < 2 ? 2 : half;
  double x_mean = 0;
  double y_mean = 0;
  for (std::size_t i = all.size() - used; i < all.size(); ++i) {
    if (!(all[i].n > 0) || !(all[i].y > 0)) return std::nullopt;
    x_mean += std::log(all[i].n) / static_cast<double>(used);
    y_mean += std::log(all[i].y) / static_cast<double>(used);
  }
  double xx = 0;
  double xy = 0;
  for (std::size_t i = all.size() - used; i < all.size(); ++i) {
    const double x = std::log(all[i].n) - x_mean;
    xx += x * x;
    xy += x * (std::log(all[i].y) - y_mean);
  }
  const double exponent = xy / xx;
  return power_law{std::exp(y_mean - exponent * x_mean), exponent};
}

/// Where `slow` comes to lie above `fast`.
struct crossing {
  enum class kind { measured, extrapolated, from_the_start, never } how = kind::never;
  double n = 0;
};

/// Between two measured sizes when there is a change of sign between them, straight in log-log;
/// beyond the last one by the fitted laws.
[[nodiscard]] inline crossing find_crossing(const std::vector<sample>& slow,
                                            const std::vector<sample>& fast) {
  const std::size_t count = slow.size() < fast.size() ? slow.size() : fast.size();
  if (count == 0) return {};
  const auto gap = [&](std::size_t i) { return std::log(slow[i].y / fast[i].y); };
  // The last change of sign: noise at small n does not count.
  std::size_t first_above = count;
  while (first_above > 0 && gap(first_above - 1) >= 0) --first_above;
  if (first_above == 0) return {crossing::kind::from_the_start, slow.front().n};
  if (first_above < count) {
    const double below = gap(first_above - 1);
    const double share = -below / (gap(first_above) - below);
    const double x = std::log(slow[first_above - 1].n) +
                     share * std::log(slow[first_above].n / slow[first_above - 1].n);
    return {crossing::kind::measured, std::exp(x)};
  }
  const auto a = fit_upper_half(slow);
  const auto b = fit_upper_half(fast);
  if (!a || !b || a->exponent - b->exponent < 0.2) return {};
  return {crossing::kind::extrapolated,
          std::pow(b->coefficient / a->coefficient, 1 / (a->exponent - b->exponent))};
}

}  // namespace wall
