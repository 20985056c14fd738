// SPDX-License-Identifier: MIT
// 8-bit floats: values by definition, the nearest code of every float by search, widening in
// registers, rows of a cache.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/simd/convert.hpp"
#include "heed/tensor.hpp"
#include "support/attention_oracle.hpp"

namespace {

using heed::float8_e4m3;
using heed::float8_e5m2;
using heed::index;

/// (-1)^s 2^(e - bias) (1 + f / 2^bits), or without the 1 and one step up where e is 0.
double by_definition(int code, int bits, int bias) {
  const int exponent = (code & 0x7F) >> bits;
  const double fraction = std::ldexp(code & ((1 << bits) - 1), -bits);
  const double x =
      exponent > 0 ? std::ldexp(1 + fraction, exponent - bias) : std::ldexp(fraction, 1 - bias);
  return code < 128 ? x : -x;
}

template <class F>
struct format;
template <>
struct format<float8_e4m3> {
  static constexpr int bits = 3, bias = 7, largest = 0x7E;
};
template <>
struct format<float8_e5m2> {
  static constexpr int bits = 2, bias = 15, largest = 0x7B;
};

template <class F>
class Float8 : public testing::Test {};
using formats = testing::Types<float8_e4m3, float8_e5m2>;
TYPED_TEST_SUITE(Float8, formats);

TYPED_TEST(Float8, ValuesAreThoseOfTheDefinition) {
  using f = format<TypeParam>;
  for (int code = 0; code < 256; ++code) {
    const TypeParam x = TypeParam::from_code(static_cast<std::uint8_t>(code));
    const auto value = static_cast<float>(x);
    EXPECT_EQ(x.code(), code);
    if ((code & 0x7F) <= f::largest) {
      EXPECT_EQ(value, by_definition(code, f::bits, f::bias));
      EXPECT_EQ(TypeParam(value).code(), code) << value;
    } else if (std::is_same_v<TypeParam, float8_e5m2> && (code & 0x7F) == 0x7C) {
      EXPECT_EQ(value, code < 128 ? INFINITY : -INFINITY);
    } else {
      EXPECT_TRUE(std::isnan(value)) << code;
      EXPECT_TRUE(std::isnan(static_cast<float>(TypeParam(value))));
    }
  }
}

// Every float's top 16 bits, and those plus or minus a little: the nearest of all codes, ties to
// the even one, by search.
TYPED_TEST(Float8, RoundsToTheNearestTiesToEvenAndSaturates) {
  using f = format<TypeParam>;
  for (std::uint32_t top = 0; top < 0x7F80; top += 3) {
    for (const std::uint32_t low : {0U, 1U, 0xFFFFU}) {
      const auto x = std::bit_cast<float>(top << 16U | low);
      // Far beyond the largest code, distances would round to the same double.
      const double within = std::min<double>(x, 2 * by_definition(f::largest, f::bits, f::bias));
      int best = 0;
      for (int code = 1; code <= f::largest; ++code) {
        const double near = std::abs(by_definition(best, f::bits, f::bias) - within);
        const double next = std::abs(by_definition(code, f::bits, f::bias) - within);
        if (next < near || (next == near && code % 2 == 0)) best = code;
      }
      ASSERT_EQ(TypeParam(x).code(), best) << x;
      ASSERT_EQ(TypeParam(-x).code(), best + 128) << x;
    }
  }
  EXPECT_EQ(TypeParam(INFINITY).code(), f::largest);
  EXPECT_EQ(TypeParam(-INFINITY).code(), f::largest + 128);
  EXPECT_EQ(float8_e5m2::with_infinity(61439.0F).code(), 0x7B);
  EXPECT_EQ(float8_e5m2::with_infinity(61440.0F).code(), 0x7C);
}

TYPED_TEST(Float8, RowsWidenToTheSameValues) {
  std::vector<TypeParam> codes;
  for (int c = 0; c < 256 + 7; ++c) {
    codes.push_back(TypeParam::from_code(static_cast<std::uint8_t>(c)));
  }
  std::vector<float> wide(codes.size());
  heed::simd::widen_row(codes.data(), wide.data(), static_cast<index>(codes.size()));
  for (std::size_t c = 0; c < codes.size(); ++c) {
    const auto x = static_cast<float>(codes[c]);
    EXPECT_TRUE(wide[c] == x || (std::isnan(wide[c]) && std::isnan(x))) << c;
    EXPECT_EQ(std::signbit(wide[c]) || std::isnan(x), std::signbit(x) || std::isnan(x)) << c;
  }
}

// Attention to rows of 8 bits is attention to what they hold.
TYPED_TEST(Float8, ACacheOfThemIsAttendedTo) {
  heed::contiguous_cache<TypeParam> cache({.kv_heads = 2, .capacity = 150, .head_dim = 20});
  const auto k = oracle::random_tensor<float, 4>({1, 2, 150, 20}, 1);
  const auto v = oracle::random_tensor<float, 4>({1, 2, 150, 20}, 2);
  cache.append(k, v);
  for (const index n : {1, 40}) {
    const auto q = oracle::random_tensor<float, 4>({1, 4, n, 20}, 3);
    const auto want = oracle::expected(q, cache.keys(), cache.values(), {});
    const auto got = heed::decode(q, cache);
    EXPECT_EQ(oracle::difference<float>(got, want.output, want.sizes), "") << n;
  }
}

}  // namespace
