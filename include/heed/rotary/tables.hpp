// SPDX-License-Identifier: MIT
// Tables of the cosines and sines of a rotary embedding, positions x pairs.
//
// Computing a cosine and a sine costs some 30 ns; a model that rotates the same positions in every
// layer makes the tables once and passes them to `apply_rotary`.
#pragma once

#include <cmath>
#include <string>

#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/rotary/embedding.hpp"
#include "heed/tensor/scalar.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

template <attention_scalar T>
struct rotary_tables {
  tensor<T, 2> cos;  ///< positions x r/2, magnitude included
  tensor<T, 2> sin;
};

/// Rows for positions 0 .. positions-1, each value computed in double, then rounded to T.
/// Throws shape_error when `positions` is negative.
template <attention_scalar T>
[[nodiscard]] rotary_tables<T> make_rotary_tables(const rotary_embedding& rope, index positions) {
  if (positions < 0) {
    fail<shape_error>("rotary tables have " + std::to_string(positions) +
                      " positions, need at least 0");
  }
  rotary_tables<T> t{tensor<T, 2>({positions, rope.pairs()}),
                     tensor<T, 2>({positions, rope.pairs()})};
  const auto frequencies = rope.frequencies();
  for (index p = 0; p < positions; ++p) {
    for (index i = 0; i < rope.pairs(); ++i) {
      const double angle = static_cast<double>(p) * frequencies[static_cast<std::size_t>(i)];
      t.cos(p, i) = static_cast<T>(rope.magnitude() * std::cos(angle));
      t.sin(p, i) = static_cast<T>(rope.magnitude() * std::sin(angle));
    }
  }
  return t;
}

}  // namespace heed::inline HEED_TARGET
