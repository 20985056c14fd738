// SPDX-License-Identifier: MIT
// The other translation unit, and the test: a definition that is not inline fails to link, one that
// differs between units (static, or in an unnamed namespace) has another address in each.
#include <gtest/gtest.h>

#include "odr.hpp"

TEST(Odr, TwoTranslationUnitsShareEveryDefinition) {
  const odr::identities mine = odr::here();
  const odr::identities theirs = odr::first();
  EXPECT_EQ(mine.error_handler, theirs.error_handler);
  EXPECT_EQ(mine.attention, theirs.attention);
  EXPECT_EQ(*mine.tensor_type, *theirs.tensor_type);
  EXPECT_EQ(mine.result, theirs.result);
}
