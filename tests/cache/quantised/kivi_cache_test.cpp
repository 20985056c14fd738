// SPDX-License-Identifier: MIT
// Keys quantised a channel: their bound, tokens kept in full, truncation; attention of many queries
// with the bits of a contiguous cache of the widened rows, and of few as the textbook has it. In
// pages: the same rows, and random operations against vectors.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "cache/kivi_model.hpp"
#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/score.hpp"
#include "support/attention_oracle.hpp"
#include "support/expect_error.hpp"

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

template <int Bits>
void check_random_operations() {
  kivi_model::world<Bits> world(*rc::gen::element<index>(1, 2, 3, 5), *rc::gen::inRange(1, 24));
  for (int i = 0; i < 40; ++i) {
    const auto what = *rc::gen::inRange(0, 16);
    const auto s = *rc::gen::inRange<index>(0, 4);
    RC_ASSERT(world.step(what, s, *rc::gen::inRange<index>(0, 256)) == "");
    if (i % 8 == 7) RC_ASSERT(world.restored_difference() == "");
  }
}
RC_GTEST_PROP(PagedKiviCache, OfEightBitsHoldsWhatVectorsHold, ()) { check_random_operations<8>(); }
RC_GTEST_PROP(PagedKiviCache, OfFourBitsHoldsWhatVectorsHold, ()) { check_random_operations<4>(); }

template <class Cache>
std::pair<heed::tensor<float, 4>, heed::tensor<float, 4>> widened(const Cache& cache) {
  const index n = cache.length(0);
  heed::tensor<float, 4> k({cache.batch(), cache.kv_heads(), n, cache.head_dim()});
  heed::tensor<float, 4> v({cache.batch(), cache.kv_heads(), n, cache.value_dim()});
  for (index b = 0; b < cache.batch(); ++b) {
    for (index h = 0; h < cache.kv_heads(); ++h) {
      cache.widen_keys(b, h, {0, n}, &k(b, h, 0, 0));
      cache.widen_values(b, h, {0, n}, &v(b, h, 0, 0));
    }
  }
  return {std::move(k), std::move(v)};
}

/// Two sequences in pages beside a cache whose groups are as long: the same rows after appends of
/// any length and truncations, the same attention of many queries, and that of few as the textbook
/// has it.
template <int Bits>
void check_pages(index page_size) {
  const index tokens = 300;
  heed::kivi_cache<Bits> whole({.batch = 2,
                                .kv_heads = 2,
                                .capacity = tokens,
                                .head_dim = 24,
                                .value_dim = 19,
                                .group = page_size});
  heed::paged_cache<heed::kivi_code<Bits>> pages({.sequences = 2,
                                                  .kv_heads = 2,
                                                  .pages = 2 * heed::ceil_div(tokens, page_size),
                                                  .page_size = page_size,
                                                  .head_dim = 24,
                                                  .value_dim = 19});
  const auto append = [&](index count, unsigned seed) {
    auto k = oracle::random_tensor<float, 4>({2, 2, count, 24}, seed);
    for (index i = 5; i < k.size(); i += 24) k.data()[i] *= 100;  // an outlier channel
    const auto v = oracle::random_tensor<float, 4>({2, 2, count, 19}, seed + 1);
    whole.append(k, v);
    pages.append(k, v);
  };
  const auto truncate = [&](index length) {
    whole.truncate(length);
    for (index s = 0; s < 2; ++s) pages.truncate(s, length);
  };
  const auto check_rows = [&] {
    const auto [k, v] = widened(whole);
    const auto [page_k, page_v] = widened(pages);
    EXPECT_TRUE(oracle::same_bits(page_k, k)) << "page size " << page_size;
    EXPECT_TRUE(oracle::same_bits(page_v, v)) << "page size " << page_size;
  };
  append(1, 1);
  append(140, 3);
  check_rows();
  truncate(97);  // into a complete page, but for those of one token or of 256
  check_rows();
  append(50, 5);
  truncate(120);
  append(163, 7);
  check_rows();
  pages.validate();
  const auto [k, v] = widened(whole);
  const auto many = oracle::random_tensor<float, 4>({2, 4, 40, 24}, 9);
  EXPECT_TRUE(oracle::same_bits(heed::decode(many, pages, {}, heed::causal()),
                                heed::decode(many, whole, {}, heed::causal())))
      << "page size " << page_size;
  const auto few = oracle::random_tensor<float, 4>({2, 4, 2, 24}, 9);
  const auto mask = heed::causal() && heed::window{.left = 250};
  auto want = oracle::expected(few, k, v, {.offset = whole.length() - 2}, mask);
  // Codes reach a channel's range from its least number, and sums of them err by that size.
  want.sizes.product *= 1 + 2 * std::sqrt(24.0);
  want.sizes.value *= 3;
  const auto got = heed::decode(few, pages, {}, mask);
  EXPECT_EQ(oracle::difference<float>(got, want.output, want.sizes), "") << page_size;
  if (256 % page_size == 0) {  // with no newest rows, kernels read all codes of a block at once
    truncate(256);
    EXPECT_TRUE(oracle::same_bits(heed::decode(few, pages, {}, heed::causal()),
                                  heed::decode(few, whole, {}, heed::causal())))
        << page_size;
  }
}
TEST(PagedKiviCache, HoldsWhatGroupsOfItsPagesHold) {
  for (const index page_size : {1, 2, 31, 32, 100, 256}) check_pages<4>(page_size);
  for (const index page_size : {7, 64}) check_pages<8>(page_size);
}

// A fork into the middle of a page has its rows from the codes; what either writes then is its own.
TEST(PagedKiviCache, ForksAndTruncationsLeaveSharedPagesAsTheyAre) {
  heed::paged_kivi4_cache cache(
      {.sequences = 3, .kv_heads = 2, .pages = 6, .page_size = 4, .head_dim = 6, .value_dim = 3});
  // Of a page and head 4 keys of 3 bytes and 6 scales, 4 values of 2 bytes and a scale each.
  EXPECT_EQ(cache.page_bytes(), 2 * (4 * 3 + 6 * 8 + 4 * (2 + 8)));
  const auto x = oracle::random_tensor<float, 3>({2, 9, 6}, 1);
  const auto append = [&](index s, index first, index count) {
    const auto k = heed::as_view(x).slice(1, first, first + count);
    return cache.try_append(s, k, k.slice(2, 0, 3));
  };
  const auto keys = [&](index s, index count) {
    heed::tensor<float, 2> k({count, 6});
    cache.widen_keys(s, 1, {0, count}, k.data());
    return k;
  };
  ASSERT_TRUE(append(0, 0, 9));
  const auto before = keys(0, 9);
  cache.fork(0, 1, 6);
  cache.fork(0, 2);
  EXPECT_EQ(cache.free_pages(), 3);
  EXPECT_TRUE(oracle::same_bits(keys(2, 9), before));
  EXPECT_TRUE(oracle::same_bits(keys(1, 6), keys(0, 6)));
  ASSERT_TRUE(append(1, 0, 2));  // completes a page of its own
  cache.truncate(2, 6);
  ASSERT_TRUE(append(2, 3, 1));
  EXPECT_EQ(cache.free_pages(), 1);
  EXPECT_TRUE(oracle::same_bits(keys(0, 9), before));
  EXPECT_NE(cache.page_table(1)[1], cache.page_table(0)[1]);
  for (index c = 0; c < 6; ++c) EXPECT_EQ(keys(2, 7)(6, c), x(1, 3, c));
  // Exhaustion changes nothing, the newest rows included.
  const auto last = keys(2, 7);
  EXPECT_FALSE(append(2, 0, 6));
  EXPECT_TRUE(oracle::same_bits(keys(2, 7), last));
  cache.validate();
  support::expect_error<heed::shape_error>(
      "paged_cache has pages of 257 tokens, needs 1 to 256",
      [] { heed::paged_kivi8_cache({.pages = 1, .page_size = 257, .head_dim = 1}); });
  EXPECT_THROW(heed::paged_kivi8_cache({.pages = 1, .head_dim = 1, .group = 1}), heed::shape_error);
}

}  // namespace
