// SPDX-License-Identifier: MIT
// Codes of 8 and 4 bits: the stated error of a row, rows that are constant, tiny, huge or hold a
// NaN; attention of many queries with the bits of a contiguous cache of the widened rows, and of few
// as the textbook has it of those rows.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/parallel.hpp"
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

/// The widened rows of a cache.
template <class Cache>
std::pair<heed::tensor<float, 4>, heed::tensor<float, 4>> widened_rows(const Cache& cache) {
  const index n = cache.length(0);
  heed::tensor<float, 4> k({cache.batch(), cache.kv_heads(), n, cache.head_dim()});
  heed::tensor<float, 4> v({cache.batch(), cache.kv_heads(), n, cache.value_dim()});
  for (index b = 0; b < cache.batch(); ++b) {
    for (index h = 0; h < cache.kv_heads(); ++h) {
      cache.widen_keys(b, h, {0, n}, &k(b, h, 0, 0));
      cache.widen_values(b, h, {0, n}, &v(b, h, 0, 0));
    }
  }
  return {k, v};
}

/// A decode of few queries, which reads codes, beside the textbook on the widened rows. Codes reach a
/// row's range from its least number, and sums of them err by that size.
template <class Cache, class... M>
void check_few(const Cache& cache, index n, const M&... modifiers) {
  const auto [k, v] = widened_rows(cache);
  const auto q = oracle::random_tensor<float, 4>({2, 4, n, cache.head_dim()}, 3);
  auto want = oracle::expected(q, k, v, {.offset = cache.length(0) - n}, modifiers...);
  want.sizes.product *= 1 + 2 * std::sqrt(static_cast<double>(cache.head_dim()));
  want.sizes.value *= 3;
  const auto got = heed::decode(q, cache, {}, modifiers...);
  EXPECT_EQ(oracle::difference<float>(got, want.output, want.sizes), "") << n;
  heed::thread_pool pool(3);
  EXPECT_TRUE(oracle::same_bits(got, heed::decode(pool, q, cache, {}, modifiers...)));
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
  const auto [wide_k, wide_v] = widened_rows(cache);
  const double levels = (1 << Bits) - 1;
  for (index i = 0; i < k.size(); ++i) {
    ASSERT_NEAR(wide_k.data()[i], k.data()[i], 4.5 / levels);  // half of a row's range
  }
  wide.append(wide_k, wide_v);
  const auto q = oracle::random_tensor<float, 4>({2, 4, 40, 24}, 3);
  EXPECT_TRUE(oracle::same_bits(heed::decode(q, cache, {}, heed::causal()),
                                heed::decode(q, wide, {}, heed::causal())));
  check_few(cache, 1);
  check_few(cache, 2, heed::causal() && heed::window{.left = 601});
  check_few(cache, 1, heed::causal(), heed::dropout{.probability = 0.3, .seed = 7});
  cache.truncate(5);
  EXPECT_EQ(cache.length(), 5);
  EXPECT_THROW(cache.truncate(6), heed::shape_error);
  EXPECT_THROW(cache.append(k, v), heed::capacity_error);
}
TEST(QuantisedCache, OfEightBitsIsAttendedToAsItsWidenedRows) { check_attention<8>(); }
TEST(QuantisedCache, OfFourBitsIsAttendedToAsItsWidenedRows) { check_attention<4>(); }

/// Each group of channels errs by its own range, in one piece and in pages; pages widen to the same
/// rows, and both are attended to as those are.
template <int Bits>
void check_groups(index group, index page_size) {
  const index tokens = 300;
  heed::quantised_cache<Bits> cache(
      {.batch = 2, .kv_heads = 2, .capacity = tokens, .head_dim = 44, .value_dim = 19}, group);
  heed::paged_cache<heed::quantised_code<Bits>> pages({.sequences = 2,
                                                       .kv_heads = 2,
                                                       .pages = 2 * tokens,
                                                       .page_size = page_size,
                                                       .head_dim = 44,
                                                       .value_dim = 19,
                                                       .group = group});
  auto k = oracle::random_tensor<float, 4>({2, 2, tokens, 44}, 1);
  const auto v = oracle::random_tensor<float, 4>({2, 2, tokens, 19}, 2);
  for (index i = 0; i < k.size(); i += 44) k.data()[i + 3] *= 100;  // the first group's alone
  cache.append(k, v);
  pages.append(k, v);
  const auto [wide_k, wide_v] = widened_rows(cache);
  const auto [page_k, page_v] = widened_rows(pages);
  EXPECT_TRUE(oracle::same_bits(page_k, wide_k));
  EXPECT_TRUE(oracle::same_bits(page_v, wide_v));
  const double levels = (1 << Bits) - 1;
  const auto check_bound = [&](const auto& wide, const auto& x) {
    const index n = x.extent(3);
    for (index i = 0; i < x.size(); ++i) {
      const index first = i / n * n + i % n / group * group;
      const index end = std::min(first + group, i / n * n + n);
      const auto [low, high] = std::minmax_element(x.data() + first, x.data() + end);
      const double step = (static_cast<double>(*high) - *low) / levels;
      const double most = std::max(std::abs(*low), std::abs(*high));
      ASSERT_LE(std::abs(static_cast<double>(wide.data()[i]) - x.data()[i]),
                step / 2 + std::ldexp(most, -22))
          << i;
    }
  };
  check_bound(wide_k, k);
  check_bound(wide_v, v);
  heed::contiguous_cache<float> wide(
      {.batch = 2, .kv_heads = 2, .capacity = tokens, .head_dim = 44, .value_dim = 19});
  wide.append(wide_k, wide_v);
  const auto q = oracle::random_tensor<float, 4>({2, 4, 40, 44}, 3);
  const auto want = heed::decode(q, wide, {}, heed::causal());
  EXPECT_TRUE(oracle::same_bits(heed::decode(q, cache, {}, heed::causal()), want));
  EXPECT_TRUE(oracle::same_bits(heed::decode(q, pages, {}, heed::causal()), want));
  check_few(cache, 1);
  check_few(cache, 3, heed::causal() && heed::window{.left = 201});
  check_few(pages, 1);
  check_few(pages, 2, heed::causal() && heed::window{.left = 201});
}
TEST(QuantisedCache, GroupsOfChannelsHaveScalesOfTheirOwn) {
  check_groups<8>(16, 16);
  check_groups<4>(16, 7);  // the second group has channels in both halves of the bytes
  check_groups<4>(100, 16);
  check_groups<8>(100, 7);
  EXPECT_THROW(heed::int8_cache({.capacity = 2, .head_dim = 2}, 0), heed::shape_error);
  EXPECT_THROW(heed::paged_cache<float>({.head_dim = 2, .group = 1}), heed::shape_error);
}

// Pages of codes are shared, copied on a write and taken back as those of numbers are.
TEST(QuantisedCache, ForksOfPagesOfCodesGoOnAlone) {
  heed::paged_int4_cache cache(
      {.sequences = 3, .kv_heads = 2, .pages = 9, .page_size = 4, .head_dim = 6, .group = 3});
  EXPECT_EQ(cache.page_bytes(), 2 * 4 * 2 * (3 + 16));
  const auto k = oracle::random_tensor<float, 3>({2, 11, 6}, 1);
  const auto rows = [&](index first, index count) {
    return heed::as_view(k).slice(1, first, first + count);
  };
  cache.append(0, rows(0, 6), rows(0, 6));
  cache.fork(0, 1);
  EXPECT_EQ(cache.free_pages(), 7);
  cache.append(1, rows(6, 5), rows(6, 5));
  cache.append(0, rows(2, 1), rows(2, 1));
  cache.append(2, k, k);
  cache.validate();
  EXPECT_EQ(cache.free_pages(), 9 - 3 - 2 - 3 + 1);
  heed::tensor<float, 2> forked({11, 6});
  heed::tensor<float, 2> whole({11, 6});
  heed::tensor<float, 2> first({7, 6});
  for (index h = 0; h < 2; ++h) {
    cache.widen_values(1, h, {0, 11}, forked.data());
    cache.widen_values(2, h, {0, 11}, whole.data());
    cache.widen_keys(0, h, {0, 7}, first.data());
    EXPECT_TRUE(oracle::same_bits(forked, whole));
    for (index c = 0; c < 36; ++c) EXPECT_EQ(first.data()[c], whole.data()[c]);
    for (index c = 0; c < 6; ++c) EXPECT_EQ(first(6, c), whole(2, c));
  }
}

// What a hidden row holds does not matter, what a visible one holds does; rows of the largest
// floats, whose codes times scales have no room, come back as they are.
TEST(QuantisedCache, OddRowsAreAttendedToSafely) {
  heed::int8_cache cache({.batch = 2, .kv_heads = 2, .capacity = 40, .head_dim = 9});
  auto k = oracle::random_tensor<float, 4>({2, 2, 40, 9}, 1);
  auto v = oracle::random_tensor<float, 4>({2, 2, 40, 9}, 2);
  k(0, 1, 3, 2) = std::nanf("");
  v(1, 0, 3, 2) = std::nanf("");
  for (index j = 0; j < 40; ++j) {
    for (index c = 0; c < 9; ++c) v(1, 1, j, c) = c % 2 == 0 ? largest : -largest;
  }
  cache.append(k, v);
  check_few(cache, 1, heed::causal(), heed::window{.left = 30});
  const auto q = oracle::random_tensor<float, 4>({2, 4, 1, 9}, 3);
  const auto out = heed::decode(q, cache);
  EXPECT_TRUE(std::isfinite(out(0, 0, 0, 4)));
  EXPECT_TRUE(std::isnan(out(0, 2, 0, 4)));
  EXPECT_TRUE(std::isnan(out(1, 0, 0, 4)));
  EXPECT_NEAR(out(1, 2, 0, 4) / largest, 1, 1e-5);
  EXPECT_NEAR(out(1, 3, 0, 5) / largest, -1, 1e-5);
}

}  // namespace
