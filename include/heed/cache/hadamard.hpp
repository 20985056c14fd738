// SPDX-License-Identifier: MIT
// The Hadamard rotation of head channels, which spreads an outlier channel over all of them before
// rows are quantised.
//
//   x' = H x,  H[i][j] = (-1)^popcount(i & j) / sqrt(n)
//
// of each power-of-two block of the channels: a head dim of 96 is a block of 64 and one of 32. H is
// orthonormal and its own inverse: rotate queries and keys, and scores do not change; rotate values,
// and rotating the output again undoes it. Rotary embeddings come first.
//
// x  tokens x channels, heads x tokens x channels, or batch x heads x tokens x channels; any strides
//
// Sums in the accumulator in log2(n) rounds, the result rounded once to the scalar: error at most
// 2 log2(n) eps |x| of the accumulator for a row x, plus the rounding. A NaN makes its block NaN.
// Cost: n log2(n) additions a row. Allocates nothing; throws shape_error where a row is longer than
// 1,024 channels. Ashkboos et al. 2024, arXiv 2404.00456, section 3.
#pragma once

#include <cmath>
#include <string>

#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/tensor/layout.hpp"
#include "heed/tensor/scalar.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// One row in place, block by block, the largest first.
template <class A>
void hadamard_row(A* x, index channels) noexcept {
  for (index first = 0; first < channels;) {
    index n = 1;
    while (2 * n <= channels - first) n *= 2;
    A* const block = x + first;
    for (index half = 1; half < n; half *= 2) {
      for (index i = 0; i < n; i += 2 * half) {
        for (index j = i; j < i + half; ++j) {
          const A sum = block[j] + block[j + half];
          block[j + half] = block[j] - block[j + half];
          block[j] = sum;
        }
      }
    }
    const A scale = 1 / std::sqrt(static_cast<A>(n));
    for (index i = 0; i < n; ++i) block[i] *= scale;
    first += n;
  }
}

}  // namespace detail

/// Rotates every row of x, in place.
template <tensor_like X>
  requires writable_tensor<X>
void hadamard_rotate(X&& x) {
  using T = scalar_of<X>;
  using A = accumulate_t<T>;
  constexpr index most = 1024;
  const auto v = as_rank4(as_view(std::forward<X>(x)));
  if (v.extent(3) > most) {
    fail<shape_error>("x has channels " + std::to_string(v.extent(3)) +
                      ", hadamard_rotate takes at most " + std::to_string(most));
  }
  A row[std::size_t{most}];
  for (index b = 0; b < v.extent(0); ++b) {
    for (index h = 0; h < v.extent(1); ++h) {
      for (index i = 0; i < v.extent(2); ++i) {
        for (index c = 0; c < v.extent(3); ++c) row[c] = static_cast<A>(v(b, h, i, c));
        detail::hadamard_row(row, v.extent(3));
        for (index c = 0; c < v.extent(3); ++c) v(b, h, i, c) = static_cast<T>(row[c]);
      }
    }
  }
}

}  // namespace heed::inline HEED_TARGET
