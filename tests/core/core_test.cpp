// SPDX-License-Identifier: MIT
// Tests of the core floor: ranges, tiles, errors and their messages, workspace and arena.
#include "heed/core.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

namespace {

using heed::index;
using heed::range;

// Everything a kernel needs of an index at compile time is answered at compile time.
static_assert(std::is_signed_v<index>);
static_assert(heed::ceil_div(0, 4) == 0 && heed::ceil_div(1, 4) == 1 && heed::ceil_div(4, 4) == 1 &&
              heed::ceil_div(5, 4) == 2);
static_assert(heed::round_up(0, 16) == 0 && heed::round_up(1, 16) == 16 &&
              heed::round_up(16, 16) == 16 && heed::round_up(17, 16) == 32);
static_assert(range{2, 5}.size() == 3 && range{5, 2}.size() == 0 && range{3, 3}.empty());
static_assert(heed::tile{.queries = {5, 9}, .keys = {0, 4}, .offset = 3}.rows() == range{2, 6});
static_assert(heed::tile{.queries = {-4, 0}, .keys = {0, 4}, .offset = -4}.rows() == range{0, 4});
static_assert(std::is_base_of_v<std::invalid_argument, heed::shape_error>);
static_assert(std::is_base_of_v<std::invalid_argument, heed::option_error>);
static_assert(std::is_base_of_v<std::length_error, heed::capacity_error>);

bool contains(range r, index i) { return r.begin <= i && i < r.end; }

TEST(Range, IntersectAndHullAgreeWithSetsOfIntegers) {
  constexpr index lo = -3;
  constexpr index hi = 4;
  for (index a = lo; a <= hi; ++a) {
    for (index b = lo; b <= hi; ++b) {
      for (index c = lo; c <= hi; ++c) {
        for (index d = lo; d <= hi; ++d) {
          const range x{a, b};
          const range y{c, d};
          const range both = heed::intersect(x, y);
          const range around = heed::hull(x, y);
          index members = 0;
          index least = hi;
          index most = lo - 1;
          for (index i = lo; i < hi; ++i) {
            ASSERT_EQ(contains(both, i), contains(x, i) && contains(y, i));
            if (contains(x, i) || contains(y, i)) {
              ++members;
              least = std::min(least, i);
              most = std::max(most, i);
            }
          }
          ASSERT_GE(both.end, both.begin);
          if (members == 0) {
            ASSERT_TRUE(around.empty());
          } else {
            ASSERT_EQ(around, (range{least, most + 1}));
          }
        }
      }
    }
  }
}

TEST(Errors, ExtentsAreWrittenInBrackets) {
  EXPECT_EQ(heed::format_extents(std::array<index, 3>{2, 0, 128}), "[2, 0, 128]");
  EXPECT_EQ(heed::format_extents(std::vector<index>{}), "[]");
  EXPECT_EQ(heed::format_extents(std::array<index, 1>{-1}), "[-1]");
}

TEST(Errors, RequireEqualNamesBothArgumentsAndExtents) {
  EXPECT_NO_THROW(heed::require_equal("k", "head dim", 64, "q", 64));
  try {
    heed::require_equal("k", "head dim", 64, "q", 128);
    FAIL() << "no exception";
  } catch (const heed::shape_error& error) {
    EXPECT_STREQ(error.what(), "k has head dim 64, q has 128");
  }
}

TEST(Errors, FailThrowsTheTypeAndTheMessage) {
  EXPECT_THROW(heed::fail<heed::capacity_error>("full"), std::length_error);
  try {
    heed::fail<heed::option_error>("dropout probability is 1.5, must be in [0, 1)");
    FAIL() << "no exception";
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(), "dropout probability is 1.5, must be in [0, 1)");
  }
}

void another_handler(const char*) { std::abort(); }

TEST(Errors, HandlerIsReplaceableAndThePreviousOneComesBack) {
  const heed::error_handler_type original = heed::set_error_handler(&another_handler);
  ASSERT_NE(original, nullptr);
  EXPECT_EQ(heed::set_error_handler(original), &another_handler);
}

bool on_cache_line(const void* p) {
  return reinterpret_cast<std::uintptr_t>(p) % heed::cache_line == 0;
}

TEST(Workspace, GrowsNeverShrinksAndStandsOnACacheLine) {
  heed::workspace scratch;
  EXPECT_EQ(scratch.size(), 0U);
  EXPECT_EQ(scratch.reserve(0), nullptr);
  std::byte* const first = scratch.reserve(100);
  ASSERT_NE(first, nullptr);
  EXPECT_TRUE(on_cache_line(first));
  EXPECT_EQ(scratch.size(), 100U);
  EXPECT_EQ(scratch.reserve(40), first);
  EXPECT_EQ(scratch.size(), 100U);
  std::byte* const grown = scratch.reserve(5000);
  EXPECT_TRUE(on_cache_line(grown));
  EXPECT_EQ(scratch.size(), 5000U);
  for (std::size_t i = 0; i < 5000; ++i) grown[i] = std::byte{1};  // for the address sanitizer
  EXPECT_EQ(heed::workspace(77).size(), 77U);
}

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define CORE_TEST_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CORE_TEST_SANITIZED 1
#endif

#if !defined(CORE_TEST_SANITIZED)
TEST(Workspace, IsUnchangedWhenMemoryRunsOut) {
  heed::workspace scratch(64);
  std::byte* const before = scratch.reserve(64);
  before[63] = std::byte{42};
  EXPECT_THROW((void)scratch.reserve(std::numeric_limits<std::size_t>::max() / 4), std::bad_alloc);
  EXPECT_EQ(scratch.size(), 64U);
  EXPECT_EQ(scratch.reserve(64), before);
  EXPECT_EQ(before[63], std::byte{42});
}
#endif

TEST(Carver, MeasuresWhatItThenCarves) {
  const auto allocate = [](heed::arena& c) {
    return std::array<const void*, 4>{c.allocate<float>(3), c.allocate<double>(0),
                                      c.allocate<char>(65), c.allocate<double>(8)};
  };
  heed::arena measure;
  for (const void* p : allocate(measure)) EXPECT_EQ(p, nullptr);
  EXPECT_EQ(measure.used(), 64U + 0U + 128U + 64U);

  heed::workspace scratch;
  std::byte* const block = scratch.reserve(measure.used());
  heed::arena real(block);
  const auto pieces = allocate(real);
  EXPECT_EQ(real.used(), measure.used());
  EXPECT_EQ(pieces[0], block);
  EXPECT_EQ(pieces[1], block + 64);
  EXPECT_EQ(pieces[2], block + 64);
  EXPECT_EQ(pieces[3], block + 192);
  for (const void* p : pieces) EXPECT_TRUE(on_cache_line(p));
}

TEST(Carver, TreatsANegativeCountAsNothing) {
  heed::arena measure;
  (void)measure.allocate<float>(-5);
  EXPECT_EQ(measure.used(), 0U);
}

}  // namespace
