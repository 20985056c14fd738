// SPDX-License-Identifier: MIT
// The scalars that typed tests run with: `all` in the tests that are about reading and writing them,
// `some` in those about masks, modifiers and selections, which see none but the accumulator: one
// scalar of each, one of them narrow. HEED_TEST_FEW_SCALARS, a setting of the build, leaves `some`
// of `all` and the narrow one of `some`, for builds whose compilation is slow (sanitizers).
#pragma once

#include <gtest/gtest.h>

#include "heed/tensor/scalar.hpp"

namespace test_scalars {

#ifdef HEED_TEST_FEW_SCALARS
using all = testing::Types<double, heed::bfloat16>;
using some = testing::Types<heed::bfloat16>;
#else
using all = testing::Types<float, double, heed::half, heed::bfloat16>;
using some = testing::Types<double, heed::bfloat16>;
#endif

}  // namespace test_scalars
