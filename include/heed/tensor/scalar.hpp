// SPDX-License-Identifier: MIT
// The scalars heed computes with, and what each accumulates in.
//
// | scalar           | accumulates in |
// |------------------|----------------|
// | float            | float          |
// | double           | double         |
// | Eigen::half      | float          |
// | Eigen::bfloat16  | float          |
// | float8_e4m3      | float          |
// | float8_e5m2      | float          |
#pragma once

#include <type_traits>

#include "heed/core/float8.hpp"
#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET {

using half = Eigen::half;
using bfloat16 = Eigen::bfloat16;

/// Specialise for a further scalar: `type` is what products of it are summed in.
template <class T>
struct accumulator {};
template <>
struct accumulator<float> {
  using type = float;
};
template <>
struct accumulator<double> {
  using type = double;
};
template <>
struct accumulator<half> {
  using type = float;
};
template <>
struct accumulator<bfloat16> {
  using type = float;
};
template <>
struct accumulator<float8_e4m3> {
  using type = float;
};
template <>
struct accumulator<float8_e5m2> {
  using type = float;
};

/// What numbers of type T are summed in: float for half, bfloat16 and float; double for double.
template <class T>
using accumulate_t = typename accumulator<std::remove_cv_t<T>>::type;

/// A scalar that queries, keys and values may have.
template <class T>
concept attention_scalar = requires { typename accumulator<std::remove_cv_t<T>>::type; };

}  // namespace heed::inline HEED_TARGET
