// SPDX-License-Identifier: MIT
// Codes of 8 and 4 bits: the stated error of a row, rows that are constant, tiny, huge or hold a
// NaN, and attention with the bits of a contiguous cache of the widened rows.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/score.hpp"
#include "support/attention_oracle.hpp"

namespace {

using heed::index;
constexpr float largest = std::numeric_limits<float>::max();

template <int Bits>
std::vector<float> through(const std::vector<float>& x, heed::row_scale* scale = nullptr) {
  const auto n = static_cast<index>(x.size());
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(heed::code_bytes<Bits>(n)));
  const heed::row_scale s = heed::quantise_row<Bits>(x.data(), n, codes.data());
  if (scale != nullptr) *scale = s;
  std::vector<float> back(x.size());
  heed::widen_codes<Bits>(codes.data(), s, n, back.data());
  return back;
}

template <int Bits>
void check_error(const std::vector<float>& x) {
  heed::row_scale s;
  const auto back = through<Bits>(x, &s);
  double most = 0;
  double low = x[0];
  double high = x[0];
  for (const float e : x) {
    most = std::max(most, std::abs(static_cast<double>(e)));
    low = std::min<double>(low, e);
    high = std::max<double>(high, e);
  }
  const double step = (high - low) / ((1 << Bits) - 1);
  for (std::size_t c = 0; c < x.size(); ++c) {
    RC_ASSERT(std::abs(static_cast<double>(back[c]) - x[c]) <=
              step / 2 + std::ldexp(most, -22) + std::ldexp(1.0, -100));
  }
}

RC_GTEST_PROP(QuantisedRow, ErrsAtMostHalfAStep, ()) {
  const auto n = *rc::gen::inRange<std::size_t>(1, 150);
  const auto seed = *rc::gen::arbitrary<unsigned>();
  const double size = std::ldexp(1.0, *rc::gen::inRange(-120, 100));
  const double shift = size * *rc::gen::element(0.0, 1.0, -50.0, 1e6);
  const auto t = oracle::random_tensor<float, 1>({static_cast<index>(n)}, seed, size);
  std::vector<float> x(t.data(), t.data() + n);
  for (float& e : x) e = static_cast<float>(e + shift);
  check_error<8>(x);
  check_error<4>(x);
}

TEST(QuantisedRow, OddRowsComeBackAsStated) {
  for (const float x : {3.5F, -0.1F, 1e-40F, largest, -largest}) {
    EXPECT_EQ(through<8>({x, x, x}), (std::vector<float>{x, x, x}));
    EXPECT_EQ(through<4>({x, x, x}), (std::vector<float>{x, x, x}));
  }
  heed::row_scale s;
  EXPECT_EQ(through<8>({0, 0}, &s), (std::vector<float>{0, 0}));
  EXPECT_EQ(s.scale, 1);
  EXPECT_EQ(s.zero, 0);
  for (const float x : through<4>({1, std::nanf(""), 2})) EXPECT_TRUE(std::isnan(x));
  const auto huge = through<8>({-INFINITY, 1, INFINITY});
  EXPECT_NEAR(huge[0] / largest, -1, 1e-6);
  EXPECT_NEAR(huge[2] / largest, 1, 1e-6);
}

template <int Bits>
void check_attention() {
  const index tokens = 700;
  heed::quantised_cache<Bits> cache(
      {.batch = 2, .kv_heads = 2, .capacity = tokens, .head_dim = 24, .value_dim = 19});
  const auto k = oracle::random_tensor<float, 4>({2, 2, tokens, 24}, 1);
  const auto v = oracle::random_tensor<float, 4>({2, 2, tokens, 19}, 2);
  cache.append(heed::as_view(k).slice(2, 0, 300), heed::as_view(v).slice(2, 0, 300));
  cache.append(heed::as_view(k).slice(2, 300, tokens), heed::as_view(v).slice(2, 300, tokens));
  EXPECT_FALSE(cache.try_append(k, v));
  heed::contiguous_cache<float> wide(
      {.batch = 2, .kv_heads = 2, .capacity = tokens, .head_dim = 24, .value_dim = 19});
  heed::tensor<float, 4> wide_k(k.extents());
  heed::tensor<float, 4> wide_v(v.extents());
  for (index b = 0; b < 2; ++b) {
    for (index h = 0; h < 2; ++h) {
      cache.widen_keys(b, h, {0, tokens}, &wide_k(b, h, 0, 0));
      cache.widen_values(b, h, {0, tokens}, &wide_v(b, h, 0, 0));
    }
  }
  const double levels = (1 << Bits) - 1;
  for (index i = 0; i < k.size(); ++i) {
    ASSERT_NEAR(wide_k.data()[i], k.data()[i], 4.5 / levels);  // half of a row's range
  }
  wide.append(wide_k, wide_v);
  for (const index n : {1, 3, 40}) {
    const auto q = oracle::random_tensor<float, 4>({2, 4, n, 24}, 3);
    const auto got = heed::decode(q, cache, {}, heed::causal());
    EXPECT_TRUE(oracle::same_bits(got, heed::decode(q, wide, {}, heed::causal()))) << n;
  }
  cache.truncate(5);
  EXPECT_EQ(cache.length(), 5);
  EXPECT_THROW(cache.truncate(6), heed::shape_error);
  EXPECT_THROW(cache.append(k, v), heed::capacity_error);
}
TEST(QuantisedCache, OfEightBitsIsAttendedToAsItsWidenedRows) { check_attention<8>(); }
TEST(QuantisedCache, OfFourBitsIsAttendedToAsItsWidenedRows) { check_attention<4>(); }

}  // namespace
