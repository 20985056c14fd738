// SPDX-License-Identifier: MIT
// Bounds of pages: true upper bounds, the same however they were learned, and the pages chosen by
// them against a plain loop on numbers whose scores are exact, so that ties are ties.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/parallel.hpp"
#include "heed/sparse.hpp"
#include "support/attention_oracle.hpp"
#include "support/expect_error.hpp"
#include "support/scalars.hpp"

namespace {

using heed::index;
using support::expect_error;

/// Small integers: sums of products are exact in float, and many bounds are equal.
template <class T>
heed::tensor<T, 4> small_integers(const std::array<index, 4>& extents, unsigned seed) {
  heed::tensor<T, 4> t(extents);
  std::mt19937 draw(seed);
  for (index i = 0; i < t.size(); ++i) {
    t.data()[i] = static_cast<T>(static_cast<int>(draw() % 7) - 3);
  }
  return t;
}

template <class T>
heed::view<const T, 4> tokens(const heed::tensor<T, 4>& t, index begin, index end) {
  return heed::as_view(t).slice(2, begin, end);
}

/// "" where the first `length` keys' bounds are what they are, by definition.
template <class T>
std::string wrong_bounds(const heed::page_bounds<T>& bounds, const heed::tensor<T, 4>& k,
                         index length) {
  for (index b = 0; b < k.extent(0); ++b) {
    if (bounds.length(b) != length) return "length " + std::to_string(bounds.length(b));
  }
  std::string text;
  const index pages = heed::ceil_div(length, bounds.page());
  oracle::each_index({k.extent(0), k.extent(1), pages, k.extent(3)},
                     [&](index b, index h, index p, index c) {
                       double low = oracle::infinity;
                       double top = -oracle::infinity;
                       const index end = std::min(length, (p + 1) * bounds.page());
                       for (index j = p * bounds.page(); j < end; ++j) {
                         const auto x = static_cast<double>(k(b, h, j, c));
                         if (x < low) low = x;
                         if (x > top) top = x;
                       }
                       if (static_cast<double>(bounds.minimum(b, h, p, c)) != low ||
                           static_cast<double>(bounds.maximum(b, h, p, c)) != top) {
                         text = "page " + std::to_string(p) + " channel " + std::to_string(c);
                       }
                     });
  return text;
}

template <class T>
class PageBounds : public testing::Test {};
using scalars = test_scalars::some;
TYPED_TEST_SUITE(PageBounds, scalars);

TYPED_TEST(PageBounds, InPiecesAsAtOnce) {
  using T = TypeParam;
  heed::thread_pool pool(3);
  heed::serial_executor serial;
  for (const index d : {1, 8, 19}) {
    for (const index page : {1, 3, 16, 100}) {
      auto k = oracle::random_tensor<T, 4>({2, 3, 83, d}, 1);
      k(1, 2, 7, 0) = static_cast<T>(oracle::not_a_number);
      const heed::cache_extents extents{
          .batch = 2, .kv_heads = 3, .capacity = 83, .head_dim = d, .value_dim = std::nullopt};
      heed::page_bounds<T> pieces(extents, page);
      index length = 0;
      for (const index count : {0, 1, 1, 30, 2, 0, 49}) {
        length += count;
        pieces.update(serial, tokens(k, 0, length));
        EXPECT_EQ(wrong_bounds(pieces, k, length), "") << page << " " << length;
      }
      // Backwards and channel-major: any layout of keys.
      const oracle::laid_out<T> permuted(k, {.order = {0, 1, 3, 2}, .backwards = {0, 0, 1, 0}});
      heed::page_bounds<T> whole(extents, page);
      whole.update(pool, permuted.cview());
      EXPECT_EQ(wrong_bounds(whole, k, 83), "") << page;
      // Cut in the middle of a page, and other tokens written behind the cut.
      whole.update(serial, tokens(k, 0, 40), 40);
      EXPECT_EQ(wrong_bounds(whole, k, 40), "") << page;
      auto other = oracle::random_tensor<T, 4>({2, 3, 83, d}, 9);
      oracle::each_index({2, 3, 40, d}, [&](index b, index h, index j, index c) {
        other(b, h, j, c) = k(b, h, j, c);
      });
      whole.update(pool, other);
      EXPECT_EQ(wrong_bounds(whole, other, 83), "") << page;
    }
  }
}

// A cache whose keys are bounded as they come.
TEST(PageBoundsOfCache, AsOfItsKeys) {
  heed::serial_executor serial;
  const heed::cache_extents extents{
      .batch = 2, .kv_heads = 2, .capacity = 50, .head_dim = 8, .value_dim = std::nullopt};
  heed::contiguous_cache<float> cache(extents);
  heed::page_bounds<float> bounds(extents, 8);
  const auto k = oracle::random_tensor<float, 4>({2, 2, 50, 8}, 1);
  for (index j = 0; j < 50; ++j) {
    cache.append(tokens(k, j, j + 1), tokens(k, j, j + 1));
    bounds.update(serial, cache);
    ASSERT_EQ(wrong_bounds(bounds, k, j + 1), "");
  }
  cache.truncate(21);
  bounds.update(serial, cache, cache.length());
  EXPECT_EQ(wrong_bounds(bounds, k, 21), "");
}

// No key's score is above its page's bound, beyond what rounding does to two sums of D and 2 D
// products of at most |q_c| max |k_c|.
RC_GTEST_PROP(PageBoundsProperty, BoundEveryScore, ()) {
  const index d = *rc::gen::inRange<index>(1, 40);
  const index keys = *rc::gen::inRange<index>(1, 100);
  const index page = *rc::gen::inRange<index>(1, 40);
  const auto seed = *rc::gen::arbitrary<unsigned>();
  heed::serial_executor serial;
  const auto q = oracle::random_tensor<float, 4>({1, 1, 1, d}, seed);
  const auto k = oracle::random_tensor<float, 4>({1, 1, keys, d}, seed + 1, 3.0);
  heed::page_bounds<float> bounds({.capacity = keys, .head_dim = d, .value_dim = std::nullopt},
                                  page);
  bounds.update(serial, k);
  for (index j = 0; j < keys; ++j) {
    double score = 0;
    double bound = 0;
    for (index c = 0; c < d; ++c) {
      const auto x = static_cast<double>(q(0, 0, 0, c));
      score += x * static_cast<double>(k(0, 0, j, c));
      bound += std::max(x * static_cast<double>(bounds.minimum(0, 0, j / page, c)),
                        x * static_cast<double>(bounds.maximum(0, 0, j / page, c)));
    }
    // Both sums in double run over the same signs in the same order: monotone, term by term.
    RC_ASSERT(score <= bound);
  }
}

/// The best by score, ties to the lower index, -1 where there are none left.
std::vector<index> best(const std::vector<double>& scores, index count) {
  std::vector<index> order(scores.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<index>(i);
  std::stable_sort(order.begin(), order.end(), [&](index a, index b) {
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  order.resize(static_cast<std::size_t>(count), -1);
  return order;
}

struct pages_case {
  heed::page_options options;
  index length = 83;
  index queries = 9;
  index page = 4;
};

/// select_pages against its definition; `group` query heads a KV head.
template <class T>
void check_pages(const pages_case& c, index group) {
  heed::thread_pool pool(3);
  heed::serial_executor serial;
  const heed::page_options& o = c.options;
  const auto q = small_integers<T>({2, 2 * group, c.queries, 17}, 1);
  const auto k = small_integers<T>({2, 2, c.length, 17}, 2);
  heed::page_bounds<T> bounds({.batch = 2,
                               .kv_heads = 2,
                               .capacity = c.length + 5,
                               .head_dim = 17,
                               .value_dim = std::nullopt},
                              c.page);
  bounds.update(pool, k);
  const auto got = heed::select_pages(pool, q, bounds, o);
  EXPECT_TRUE(oracle::same_bits(got, heed::select_pages(serial, q, bounds, o)));
  const bool together = o.group != heed::group_choice::each;
  ASSERT_EQ(got.extents(), (oracle::extents4{2, together ? 2 : 2 * group, c.queries, o.count}));
  oracle::each_index({2, got.extent(1), c.queries, 1}, [&](index b, index h, index i, index) {
    const index p = o.offset.value_or(c.length - c.queries) + i;
    const index kv = together ? h : h / group;
    std::vector<double> scores;
    for (index n = 0; n * c.page < c.length && (!o.causal || n * c.page <= p); ++n) {
      double joined = 0;
      for (index g = 0; g < (together ? group : 1); ++g) {
        double bound = 0;
        for (index x = 0; x < 17; ++x) {
          const auto from = static_cast<double>(q(b, together ? h * group + g : h, i, x));
          double low = oracle::infinity;
          double top = -oracle::infinity;
          for (index j = n * c.page; j < std::min(c.length, (n + 1) * c.page); ++j) {
            low = std::min(low, static_cast<double>(k(b, kv, j, x)));
            top = std::max(top, static_cast<double>(k(b, kv, j, x)));
          }
          bound += std::max(from * low, from * top);
        }
        if (g == 0) {
          joined = bound;
        } else {
          joined = o.group == heed::group_choice::sum ? joined + bound : std::max(joined, bound);
        }
      }
      scores.push_back(joined);
    }
    if (o.newest && !scores.empty()) scores.back() = oracle::infinity;
    const auto want = best(scores, o.count);
    for (index n = 0; n < o.count; ++n) {
      EXPECT_EQ(got(b, h, i, n), want[static_cast<std::size_t>(n)]) << b << h << i << n;
    }
  });
}

TYPED_TEST(PageBounds, SelectTheBestPages) {
  using heed::group_choice;
  for (const index count : {0, 1, 6, 40}) {
    for (const bool newest : {false, true}) {
      for (const auto group : {group_choice::each, group_choice::sum, group_choice::largest}) {
        check_pages<TypeParam>({{.count = count, .group = group, .newest = newest, .causal = true}},
                               3);
      }
    }
  }
  check_pages<TypeParam>({{}, 83, 2, 2}, 1);
  check_pages<TypeParam>({{.count = 5, .causal = true, .offset = 0}}, 1);
  check_pages<TypeParam>({{.count = 5, .causal = true, .offset = -3}}, 2);
  check_pages<TypeParam>({{.count = 5, .causal = true, .offset = 80}},
                         8);  // some rows lie behind the last key
  check_pages<TypeParam>({{.count = 5}, 700, 1, 1}, 33);
  check_pages<TypeParam>({{.count = 5}, 0, 2, 4}, 2);
  check_pages<TypeParam>({{.count = 2}, 83, 0, 4}, 2);
}

// Narrower bounds are outside of the keys, by the next number at the most, and the same in pieces.
template <class Bound>
void check_outward() {
  heed::serial_executor serial;
  heed::tensor<float, 4> k({1, 2, 70, 9});
  std::mt19937 draw(3);
  std::normal_distribution<float> normal;
  for (index i = 0; i < k.size(); ++i) {
    // Up to what a 16-bit scalar cannot hold, and down to what it takes for 0.
    const float size[] = {1.0F, 1e-42F, 1e-6F, 7e4F, 3.4e38F, 0.0F};
    k.data()[i] = std::tanh(normal(draw)) * size[draw() % 6];
  }
  const heed::cache_extents extents{
      .kv_heads = 2, .capacity = 70, .head_dim = 9, .value_dim = std::nullopt};
  heed::page_bounds<float> exact(extents, 8);
  heed::page_bounds<float, Bound> whole(extents, 8), pieces(extents, 8);
  exact.update(serial, k);
  whole.update(serial, k);
  for (index length = 1; length <= 70; ++length) pieces.update(serial, tokens(k, 0, length));
  oracle::each_index({1, 2, 9, 9}, [&](index b, index h, index p, index c) {
    const float top = static_cast<float>(whole.maximum(b, h, p, c));
    const float low = static_cast<float>(whole.minimum(b, h, p, c));
    EXPECT_GE(top, exact.maximum(b, h, p, c));
    EXPECT_LE(low, exact.minimum(b, h, p, c));
    EXPECT_EQ(top, static_cast<float>(pieces.maximum(b, h, p, c)));
    EXPECT_EQ(low, static_cast<float>(pieces.minimum(b, h, p, c)));
    // The nearest number below the top, and above the low, is beyond them.
    const Bound nearer_top = heed::detail::next_number<-1>(whole.maximum(b, h, p, c));
    const Bound nearer_low = heed::detail::next_number<1>(whole.minimum(b, h, p, c));
    EXPECT_LT(static_cast<float>(nearer_top), exact.maximum(b, h, p, c)) << top;
    EXPECT_GT(static_cast<float>(nearer_low), exact.minimum(b, h, p, c)) << low;
  });
}

TEST(PageBoundsNarrow, OutwardByTheNextNumberAtMost) {
  check_outward<heed::bfloat16>();
  check_outward<heed::half>();
}

// Where the keys are numbers of the narrower scalar, nothing changes.
TEST(PageBoundsNarrow, ChooseTheSamePages) {
  heed::thread_pool pool(2);
  const auto q = small_integers<float>({2, 6, 3, 17}, 1);
  const auto k = small_integers<float>({2, 2, 500, 17}, 2);
  const heed::cache_extents extents{
      .batch = 2, .kv_heads = 2, .capacity = 500, .head_dim = 17, .value_dim = std::nullopt};
  heed::page_bounds<float> exact(extents, 4);
  heed::page_bounds<float, heed::bfloat16> narrow(extents, 4);
  exact.update(pool, k);
  narrow.update(pool, k);
  EXPECT_TRUE(oracle::same_bits(heed::select_pages(pool, q, narrow, {.count = 30}),
                                heed::select_pages(pool, q, exact, {.count = 30})));
}

// Pages lie side by side in groups: about one of them, and about two.
TYPED_TEST(PageBounds, AnyCountOfPages) {
  constexpr index group = heed::page_bounds<TypeParam>::group;
  for (const index pages : {index{1}, group - 1, group, group + 1, 2 * group - 1, 2 * group + 5}) {
    for (const index count : {3, 20, 200}) {
      check_pages<TypeParam>({{.count = count}, pages, 1, 1}, 3);
      check_pages<TypeParam>({{.count = count, .newest = false}, 2 * pages - 1, 19, 2}, 2);
    }
  }
}

// An infinite bound counts where the query looks for it; of NaNs alone there is none.
TEST(PageBoundsSpecial, InfinitiesAndNaNs) {
  heed::serial_executor serial;
  constexpr float infinity = std::numeric_limits<float>::infinity();
  heed::tensor<float, 4> k({1, 1, 8, 2});
  for (index j = 0; j < 8; ++j) {
    k(0, 0, j, 0) = static_cast<float>(j);
    k(0, 0, j, 1) = 1;
  }
  k(0, 0, 2, 1) = infinity;                              // page 1: 2, 3
  k(0, 0, 6, 0) = k(0, 0, 7, 0) = oracle::not_a_number;  // page 3: 6, 7
  heed::page_bounds<float> bounds({.capacity = 8, .head_dim = 2, .value_dim = std::nullopt}, 2);
  bounds.update(serial, k);
  heed::tensor<float, 4> q({1, 1, 4, 2});
  const float queries[4][2] = {{1, 1}, {1, -1}, {1, 0}, {-1, 0}};
  const index want[4][4] = {{1, 2, 0, 3}, {2, 1, 0, 3}, {2, 1, 0, 3}, {0, 1, 2, 3}};
  for (index i = 0; i < 4; ++i) {
    for (index c = 0; c < 2; ++c) q(0, 0, i, c) = queries[i][c];
  }
  const auto got =
      heed::select_pages(serial, q, bounds, {.count = 4, .newest = false, .causal = false});
  for (index i = 0; i < 4; ++i) {
    for (index n = 0; n < 4; ++n) EXPECT_EQ(got(0, 0, i, n), want[i][n]) << i << n;
  }
}

TEST(PageBoundsLayouts, QueriesOfAnyLayout) {
  heed::serial_executor serial;
  const auto q = small_integers<float>({2, 4, 11, 9}, 1);
  const auto k = small_integers<float>({2, 2, 40, 9}, 2);
  heed::page_bounds<float> bounds(
      {.batch = 2, .kv_heads = 2, .capacity = 40, .head_dim = 9, .value_dim = std::nullopt}, 4);
  bounds.update(serial, k);
  const oracle::laid_out<float> permuted(
      q, {.order = {3, 1, 0, 2}, .gap = {0, 3, 0, 1}, .backwards = {1, 0, 1, 1}});
  EXPECT_TRUE(oracle::same_bits(heed::select_pages(serial, permuted.cview(), bounds, {.count = 4}),
                                heed::select_pages(serial, q, bounds, {.count = 4})));
}

// One token after another: bounds learn it, pages are chosen, attention reads those alone.
TEST(PageBoundsDecode, AttendsToTheChosenPagesOfACache) {
  heed::serial_executor serial;
  heed::thread_pool pool(3);
  const heed::cache_extents extents{
      .batch = 2, .kv_heads = 2, .capacity = 120, .head_dim = 16, .value_dim = std::nullopt};
  heed::contiguous_cache<float> cache(extents);
  heed::page_bounds<float> bounds(extents, 8);
  const auto q = oracle::random_tensor<float, 4>({2, 6, 120, 16}, 1);
  const auto k = oracle::random_tensor<float, 4>({2, 2, 120, 16}, 2);
  const auto v = oracle::random_tensor<float, 4>({2, 2, 120, 16}, 3);
  index length = 70;
  cache.append(tokens(k, 0, length), tokens(v, 0, length));
  for (const index count : {1, 1, 1, 4, 1, 9, 1, 1}) {
    const auto newest = tokens(q, length, length + count);
    cache.append(tokens(k, length, length + count), tokens(v, length, length + count));
    length += count;
    bounds.update(serial, cache);
    const auto pages = heed::select_pages(
        serial, newest, bounds, {.count = 4, .group = heed::group_choice::sum, .causal = true});
    heed::tensor<float, 4> out({2, 6, count, 16});
    heed::tensor<float, 3> lse({2, 6, count});
    heed::selected_decode_into(heed::into(out, lse), newest, cache, pages, bounds.page(), {},
                               heed::causal());
    const auto want =
        oracle::expected(newest, tokens(k, 0, length), tokens(v, 0, length),
                         {.offset = length - count}, heed::causal(), [&](const heed::position& p) {
                           for (index c = 0; c < 4; ++c) {
                             if (pages(p.batch, p.kv_head, p.row, c) == p.key / 8) return true;
                           }
                           return false;
                         });
    EXPECT_EQ(oracle::difference<float>(out, want.output, want.sizes), "") << length;
    EXPECT_EQ(oracle::lse_difference<float>(lse, want.log_sum_exp, want.sizes), "") << length;
    // The same through the cache's views, and on threads.
    EXPECT_TRUE(oracle::same_bits(
        out, heed::selected_attention(pool, newest, cache.keys(), cache.values(), pages,
                                      bounds.page(), {.offset = length - count}, heed::causal())));
  }
}

/// Keys and values of sequences that have lengths of their own, a few tokens at a time in memory.
struct ragged_source {
  using key_scalar = float;
  using value_scalar = float;
  const heed::tensor<float, 4>& k;
  const heed::tensor<float, 4>& v;
  std::vector<index> lengths;

  [[nodiscard]] index batch() const { return k.extent(0); }
  [[nodiscard]] index kv_heads() const { return k.extent(1); }
  [[nodiscard]] index head_dim() const { return k.extent(3); }
  [[nodiscard]] index value_dim() const { return v.extent(3); }
  [[nodiscard]] index length(index b) const { return lengths[static_cast<std::size_t>(b)]; }
  [[nodiscard]] heed::row_run<float> keys(index b, index h, index j) const {
    return {&k(b, h, j, 0), k.extent(3), 5 - j % 5};
  }
  [[nodiscard]] heed::row_run<float> values(index b, index h, index j) const {
    return {&v(b, h, j, 0), v.extent(3), 5 - j % 5};
  }
  [[nodiscard]] static index key_channel_stride() { return 1; }
  [[nodiscard]] static index value_channel_stride() { return 1; }
};

TEST(PageBoundsDecode, SequencesOfDifferentLengths) {
  heed::serial_executor serial;
  auto k = oracle::random_tensor<float, 4>({3, 2, 100, 16}, 1);
  const auto v = oracle::random_tensor<float, 4>({3, 2, 100, 8}, 2);
  const auto q = oracle::random_tensor<float, 4>({3, 4, 2, 16}, 3);
  const ragged_source source{k, v, {100, 37, 2}};
  for (index j = 37; j < 100; ++j) k(1, 0, j, 3) = std::numeric_limits<float>::quiet_NaN();
  heed::page_bounds<float> bounds(
      {.batch = 3, .kv_heads = 2, .capacity = 100, .head_dim = 16, .value_dim = std::nullopt}, 8);
  bounds.update(serial, source);
  EXPECT_EQ(bounds.pages(0), 13);
  EXPECT_EQ(bounds.pages(1), 5);
  EXPECT_EQ(bounds.pages(2), 1);
  const auto pages = heed::select_pages(serial, q, bounds, {.count = 3, .causal = true});
  const auto got = heed::selected_decode(serial, q, source, pages, 8, {}, heed::causal());
  // One choice for all batches: page 12 is behind the end of two of them.
  heed::tensor<index, 4> shared({1, 1, 2, 2});
  for (index i = 0; i < 2; ++i) shared(0, 0, i, 0) = 12;
  const auto of_shared = heed::selected_decode(serial, q, source, shared, 8, {}, heed::causal());
  for (index b = 0; b < 3; ++b) {
    const index length = source.length(b);
    const auto batch = [&](const auto& t, index end) {
      return heed::as_view(t).slice(0, b, b + 1).slice(2, 0, end);
    };
    const auto check = [&](const heed::tensor<index, 4>& choice, const auto& result) {
      const auto want =
          oracle::expected(batch(q, 2), batch(k, length), batch(v, length), {.offset = length - 2},
                           heed::causal(), [&](const heed::position& p) {
                             for (index c = 0; c < choice.extent(3); ++c) {
                               const bool all = choice.extent(0) == 1;
                               if (choice(all ? 0 : b, all ? 0 : p.head, p.row, c) == p.key / 8)
                                 return true;
                             }
                             return false;
                           });
      EXPECT_EQ(oracle::difference<float>(batch(result, 2), want.output, want.sizes), "") << b;
    };
    check(pages, got);
    check(shared, of_shared);
  }
}

TEST(PageBoundsErrors, NameTheArgumentAndChangeNothing) {
  heed::serial_executor serial;
  const heed::cache_extents extents{
      .batch = 1, .kv_heads = 2, .capacity = 20, .head_dim = 3, .value_dim = std::nullopt};
  const auto k = oracle::random_tensor<float, 4>({1, 2, 20, 3}, 1);
  heed::page_bounds<float> bounds(extents, 4);
  bounds.update(serial, tokens(k, 0, 10));
  const heed::tensor<float, 4> heads({1, 3, 20, 3});
  const heed::tensor<float, 4> wide({1, 2, 20, 4});
  const heed::tensor<float, 4> longer({1, 2, 21, 3});
  expect_error<heed::shape_error>("keys has heads 3, the bounds has 2",
                                  [&] { bounds.update(serial, heads); });
  expect_error<heed::shape_error>("keys has head dim 4, the bounds has 3",
                                  [&] { bounds.update(serial, wide); });
  expect_error<heed::capacity_error>("the bounds are for 20 tokens, the keys have 21",
                                     [&] { bounds.update(serial, longer); });
  expect_error<heed::shape_error>("first is 10, the bounds know 10 tokens of 9",
                                  [&] { bounds.update(serial, tokens(k, 0, 9)); });
  expect_error<heed::shape_error>("first is 11, the bounds know 10 tokens of 20",
                                  [&] { bounds.update(serial, k, 11); });
  EXPECT_EQ(wrong_bounds(bounds, k, 10), "");
  expect_error<heed::option_error>("page is 0, must be at least 1",
                                   [&] { heed::page_bounds<float>(extents, 0); });
  const heed::tensor<float, 4> q({1, 3, 1, 3});
  expect_error<heed::shape_error>("q has 3 heads, not a multiple of k's 2",
                                  [&] { (void)heed::select_pages(serial, q, bounds); });
}

}  // namespace
