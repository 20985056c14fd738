// SPDX-License-Identifier: MIT
// Keys quantised a channel: their bound, tokens kept in full, truncation; attention of many queries
// with the bits of a contiguous cache of the widened rows, and of few as the textbook has it.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/score.hpp"
#include "support/attention_oracle.hpp"

namespace {

using heed::index;

/// The largest error of a widened key beside what its channel's range in its group allows.
template <int Bits>
void check_cache(const heed::kivi_cache<Bits>& cache, const std::vector<heed::tensor<float, 4>>& k,
                 const std::vector<heed::tensor<float, 4>>& v) {
  const auto n = static_cast<index>(k.size());
  RC_ASSERT(cache.length() == n);
  const index group = cache.group();
  const double levels = (1 << Bits) - 1;
  heed::tensor<float, 2> wide_k({n, cache.head_dim()});
  heed::tensor<float, 2> wide_v({n, cache.value_dim()});
  for (index h = 0; h < cache.kv_heads(); ++h) {
    cache.widen_keys(0, h, {0, n}, wide_k.data());
    cache.widen_values(0, h, {0, n}, wide_v.data());
    const auto key = [&](index j, index c) { return k[static_cast<std::size_t>(j)](0, h, 0, c); };
    for (index j = 0; j < n; ++j) {
      for (index c = 0; c < cache.head_dim(); ++c) {
        double low = 1e30;
        double high = -1e30;
        const index first = j / group * group;
        for (index i = first; i < std::min(first + group, n); ++i) {
          low = std::min<double>(low, key(i, c));
          high = std::max<double>(high, key(i, c));
        }
        const double most = std::max(std::abs(low), std::abs(high));
        const double allowed =
            j >= cache.in_codes() ? 0 : (high - low) / levels / 2 + std::ldexp(most, -22);
        RC_ASSERT(std::abs(static_cast<double>(wide_k(j, c)) - key(j, c)) <= allowed);
      }
      for (index c = 0; c < cache.value_dim(); ++c) {
        const float want = v[static_cast<std::size_t>(j)](0, h, 0, c);
        // Values lie within -1 and 1: half a step of a row's range of 2 at the most.
        RC_ASSERT(std::abs(wide_v(j, c) - want) <= (j >= cache.in_codes() ? 0 : 1 / levels + 1e-6));
      }
    }
  }
}

template <int Bits>
void check_random_appends() {
  const heed::kivi_extents e{.kv_heads = 2,
                             .capacity = 50,
                             .head_dim = *rc::gen::inRange<index>(1, 10),
                             .value_dim = 5,
                             .group = *rc::gen::inRange<index>(1, 12)};
  heed::kivi_cache<Bits> cache(e);
  std::vector<heed::tensor<float, 4>> k;
  std::vector<heed::tensor<float, 4>> v;
  unsigned seed = 1;
  for (int step = 0; step < 8; ++step) {
    if (*rc::gen::inRange(0, 4) == 0) {
      // Only among tokens in full, which come back as they were.
      const auto kept = *rc::gen::inRange<index>(cache.in_codes(), cache.length() + 1);
      cache.truncate(kept);
      k.resize(static_cast<std::size_t>(kept));
      v.resize(static_cast<std::size_t>(kept));
    }
    const auto count = *rc::gen::inRange<index>(0, 20);
    heed::tensor<float, 4> nk({1, 2, count, e.head_dim});
    heed::tensor<float, 4> nv({1, 2, count, 5});
    std::vector<heed::tensor<float, 4>> more_k;
    std::vector<heed::tensor<float, 4>> more_v;
    for (index i = 0; i < count; ++i) {
      more_k.push_back(oracle::random_tensor<float, 4>({1, 2, 1, e.head_dim}, ++seed));
      more_v.push_back(oracle::random_tensor<float, 4>({1, 2, 1, 5}, ++seed, 0.1));
      for (index h = 0; h < 2; ++h) {
        more_k.back()(0, h, 0, 0) *= 300;  // an outlier channel
        for (index c = 0; c < e.head_dim; ++c) nk(0, h, i, c) = more_k.back()(0, h, 0, c);
        for (index c = 0; c < 5; ++c) {
          float& x = more_v.back()(0, h, 0, c);
          x = std::clamp(x, -1.0F, 1.0F);
          nv(0, h, i, c) = x;
        }
      }
    }
    if (cache.try_append(nk, nv)) {
      k.insert(k.end(), more_k.begin(), more_k.end());
      v.insert(v.end(), more_v.begin(), more_v.end());
    } else {
      RC_ASSERT(cache.length() + count > 50);
    }
    check_cache(cache, k, v);
  }
}
RC_GTEST_PROP(KiviCache, OfEightBitsKeepsItsBound, ()) { check_random_appends<8>(); }
RC_GTEST_PROP(KiviCache, OfFourBitsKeepsItsBound, ()) { check_random_appends<4>(); }

TEST(KiviCache, IsAttendedToAsItsWidenedRows) {
  const index tokens = 333;
  heed::kivi_cache<4> cache(
      {.batch = 2, .kv_heads = 2, .capacity = 400, .head_dim = 24, .value_dim = 19});
  heed::contiguous_cache<float> wide(
      {.batch = 2, .kv_heads = 2, .capacity = 400, .head_dim = 24, .value_dim = 19});
  const auto k = oracle::random_tensor<float, 4>({2, 2, tokens, 24}, 1);
  const auto v = oracle::random_tensor<float, 4>({2, 2, tokens, 19}, 2);
  cache.append(k, v);
  heed::tensor<float, 4> wide_k(k.extents());
  heed::tensor<float, 4> wide_v(v.extents());
  for (index b = 0; b < 2; ++b) {
    for (index h = 0; h < 2; ++h) {
      cache.widen_keys(b, h, {0, tokens}, &wide_k(b, h, 0, 0));
      cache.widen_values(b, h, {0, tokens}, &wide_v(b, h, 0, 0));
    }
  }
  wide.append(wide_k, wide_v);
  const auto q = oracle::random_tensor<float, 4>({2, 4, 40, 24}, 3);
  EXPECT_TRUE(oracle::same_bits(heed::decode(q, cache, {}, heed::causal()),
                                heed::decode(q, wide, {}, heed::causal())));
  const auto row = oracle::random_tensor<float, 4>({2, 4, 2, 24}, 3);
  const auto mask = heed::causal() && heed::window{.left = 301};
  auto want = oracle::expected(row, wide_k, wide_v, {.offset = tokens - 2}, mask);
  // Codes reach a channel's range from its least number, and sums of them err by that size.
  want.sizes.product *= 1 + 2 * std::sqrt(24.0);
  want.sizes.value *= 3;
  const auto got = heed::decode(row, cache, {}, mask);
  EXPECT_EQ(oracle::difference<float>(got, want.output, want.sizes), "");
  // Into a group of codes: what is left comes from the codes, and is kept in full from then on.
  cache.truncate(70);
  EXPECT_EQ(cache.in_codes(), 64);
  heed::tensor<float, 2> after({70, 24});
  cache.widen_keys(1, 1, {0, 70}, after.data());
  for (index j = 0; j < 70; ++j) {
    for (index c = 0; c < 24; ++c) ASSERT_EQ(after(j, c), wide_k(1, 1, j, c)) << j << ' ' << c;
  }
  EXPECT_THROW(cache.truncate(71), heed::shape_error);
  EXPECT_THROW(cache.append(v, v), heed::shape_error);
  EXPECT_THROW(heed::kivi_cache<8>({.capacity = 3, .head_dim = 2, .group = 0}), heed::shape_error);
  EXPECT_THROW(heed::kivi_cache<8>({.capacity = 3, .group = 2}), heed::shape_error);
}

}  // namespace
