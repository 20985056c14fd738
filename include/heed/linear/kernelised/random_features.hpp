// SPDX-License-Identifier: MIT
// Orthogonal Gaussian directions for random features, drawn from a seed.
//
// Rows come in blocks of `dim`: within a block they are orthogonal, the Gram-Schmidt basis of
// Gaussian vectors; each is as long as another Gaussian vector, so that a single row is Gaussian
// again and estimates stay unbiased while their variance falls. A seed gives the same directions on
// every platform, up to rounding.
// Source: Choromanski et al. 2020, arXiv 2009.14794, section 2.4; Yu et al. 2016, arXiv 1610.09072.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "heed/core/errors.hpp"
#include "heed/core/gaussian.hpp"
#include "heed/core/target.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

/// `count` directions of `dim` numbers, redrawn at will.
template <class A>
class random_directions {
 public:
  /// Throws shape_error unless both extents are positive.
  random_directions(index dim, index count, std::uint64_t seed) : turned_({dim, count}) {
    if (dim < 1 || count < 1) {
      fail<shape_error>("random features have head dim " + std::to_string(dim) + " and count " +
                        std::to_string(count) + ", both must be positive");
    }
    redraw(seed);
  }

  /// Other directions of the same extents. What a state holds of the former ones is then void.
  void redraw(std::uint64_t seed) {
    gaussian_source gaussian(seed);
    const index d = dim();
    std::vector<double> basis;
    longest_ = 0;
    for (index f = 0; f < count(); ++f) {
      if (f % d == 0) basis.clear();
      const std::vector<double> unit = orthogonal_unit(gaussian, basis, d);
      basis.insert(basis.end(), unit.begin(), unit.end());
      double square = 0;
      for (index c = 0; c < d; ++c) {
        const double g = gaussian();
        square += g * g;
      }
      longest_ = square > longest_ ? square : longest_;
      for (index c = 0; c < d; ++c) {
        turned_(c, f) = static_cast<A>(std::sqrt(square) * unit[static_cast<std::size_t>(c)]);
      }
    }
  }

  [[nodiscard]] index dim() const noexcept { return turned_.extent(0); }
  [[nodiscard]] index count() const noexcept { return turned_.extent(1); }
  /// [dim, count]: one direction a column.
  [[nodiscard]] const tensor<A, 2>& columns() const noexcept { return turned_; }
  /// The largest squared length.
  [[nodiscard]] double longest_squared() const noexcept { return longest_; }

 private:
  static std::vector<double> orthogonal_unit(gaussian_source& gaussian,
                                             const std::vector<double>& basis, index dim) {
    const auto d = static_cast<std::size_t>(dim);
    std::vector<double> x(d);
    for (double& c : x) c = gaussian();
    // Twice: what is left of the basis after one pass is rounding, after two nothing.
    for (int pass = 0; pass < 2; ++pass) {
      for (std::size_t b = 0; b < basis.size(); b += d) {
        double dot = 0;
        for (std::size_t c = 0; c < d; ++c) dot += basis[b + c] * x[c];
        for (std::size_t c = 0; c < d; ++c) x[c] -= dot * basis[b + c];
      }
    }
    double square = 0;
    for (const double c : x) square += c * c;
    for (double& c : x) c /= std::sqrt(square);
    return x;
  }

  tensor<A, 2> turned_;
  double longest_ = 0;
};

}  // namespace heed::inline HEED_TARGET
