// SPDX-License-Identifier: MIT
// The scalars that typed tests run with: `all`, or `some` where each of them compiles for long.
// HEED_TEST_FEW_SCALARS, a setting of the build, leaves one of each accumulator, one of them
// narrow, and of `some` the narrow one, for builds whose compilation is slow (sanitizers).
#pragma once

#include <gtest/gtest.h>

#include "heed/tensor/scalar.hpp"

namespace test_scalars {

#ifdef HEED_TEST_FEW_SCALARS
using all = testing::Types<double, heed::bfloat16>;
using some = testing::Types<heed::bfloat16>;
#else
using all = testing::Types<float, double, heed::half, heed::bfloat16>;
/// half is read as bfloat16 is, to the same accumulator.
using some = testing::Types<float, double, heed::bfloat16>;
#endif

}  // namespace test_scalars
