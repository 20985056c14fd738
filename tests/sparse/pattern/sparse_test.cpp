// SPDX-License-Identifier: MIT
// The sparse family: every pattern against its formula pair by pair, what it says about tiles, and
// attention under it against the textbook in double with the formula as mask.
#include "heed/sparse.hpp"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "heed/attention.hpp"
#include "heed/parallel.hpp"
#include "support/attention_oracle.hpp"
#include "support/scalars.hpp"

namespace {

using heed::coverage;
using heed::index;
using heed::position;
using heed::range;
using heed::tile;

/// A pattern, and what its source says in words.
struct rule {
  std::string name;
  std::function<bool(const position&)> visible;
};

/// f(mask, rule) for every analytic pattern, with small and odd parameters.
template <class F>
void each_pattern(F&& f) {
  for (const index g : {0, 1, 5, 130}) {
    f(heed::global_tokens{g}, rule{"global_tokens " + std::to_string(g),
                                   [g](const position& p) { return p.key < g || p.query < g; }});
    for (const index w : {0, 3, 130}) {
      f(heed::longformer(w, g),
        rule{"longformer " + std::to_string(w) + ", " + std::to_string(g), [=](const position& p) {
               return std::abs(p.query - p.key) <= w || p.key < g || p.query < g;
             }});
    }
  }
  for (const index d : {1, 2, 7}) {
    for (const index reach : {0, 4, 40}) {
      f(heed::dilated_window{.left = reach, .right = reach / 2, .dilation = d},
        rule{"dilated_window " + std::to_string(reach) + " by " + std::to_string(d),
             [=](const position& p) {
               for (index n = -reach / 2; n <= reach; ++n) {
                 if (p.key == p.query - n * d) return true;
               }
               return false;
             }});
    }
  }
  for (const index l : {1, 3, 16, 128, 130}) {
    f(heed::strided{l}, rule{"strided " + std::to_string(l), [l](const position& p) {
                               return p.key <= p.query &&
                                      (p.query - p.key < l || (p.query - p.key) % l == 0);
                             }});
    for (const index c : {index{0}, index{1}, l / 2, l}) {
      f(heed::fixed_pattern{.stride = l, .summary = c},
        rule{"fixed " + std::to_string(l) + ", " + std::to_string(c), [=](const position& p) {
               const bool own = p.key / l == p.query / l;
               const bool summary = (p.key + c) / l > p.key / l;
               return p.key <= p.query && (own || summary);
             }});
    }
  }
  for (const index n : {0, 1, 100, 300}) {
    f(heed::prefix{n}, rule{"prefix " + std::to_string(n),
                            [n](const position& p) { return p.key <= p.query || p.key < n; }});
  }
  f(heed::log_sparse{}, rule{"log_sparse", [](const position& p) {
                               if (p.key == p.query) return true;
                               for (index n = 1; n < 1 << 20; n *= 2) {
                                 if (p.query - p.key == n) return true;
                               }
                               return false;
                             }});
  static const std::vector<index> verticals{0, 1, 17, 127, 128, 129, 200};
  static const std::vector<index> slashes{0, 1, 2, 40, 128, 150};
  f(heed::vertical_slash(verticals, slashes),
    rule{"vertical_slash", [](const position& p) {
           const auto in = [](const std::vector<index>& list, index x) {
             return std::find(list.begin(), list.end(), x) != list.end();
           };
           return p.key <= p.query && (in(slashes, p.query - p.key) || in(verticals, p.key));
         }});
}

/// What the mask says of a tile must be so: "" or what is not.
template <class M>
std::string check_tile(const M& mask, const std::function<bool(const position&)>& visible,
                       const tile& t) {
  bool any = false;
  bool all = true;
  const range seen = heed::visible_keys_of(mask, t);
  if (!seen.empty() && (seen.begin < t.keys.begin || seen.end > t.keys.end)) {
    return "visible keys outside the tile";
  }
  for (index i = t.queries.begin; i < t.queries.end; ++i) {
    for (index j = t.keys.begin; j < t.keys.end; ++j) {
      const position p{t.batch, t.head, t.kv_head, i, j, i - t.offset};
      if (mask(p) != visible(p)) {
        return "pair " + std::to_string(i) + ", " + std::to_string(j) + " is wrong";
      }
      any = any || mask(p);
      all = all && mask(p);
      if (mask(p) && (j < seen.begin || j >= seen.end)) {
        return "key " + std::to_string(j) + " is visible to " + std::to_string(i) +
               ", but not in the visible keys";
      }
    }
  }
  const coverage c = heed::coverage_of(mask, t);
  if (c == coverage::empty && any) return "said to be empty";
  if (c == coverage::full && !all) return "said to be full";
  return "";
}

RC_GTEST_PROP(SparsePattern, WhatItSaysOfTilesIsSo, ()) {
  const index q = *rc::gen::inRange<index>(0, 400);
  const index k = *rc::gen::inRange<index>(0, 400);
  const index rows = *rc::gen::inRange<index>(1, 60);
  const index keys = *rc::gen::inRange<index>(1, 140);
  each_pattern([&](const auto& unbound, const rule& r) {
    const tile t{0, 0, 0, {q, q + rows}, {k, k + keys}};
    const auto& mask = heed::bind_modifier(unbound, {1, 1, 1, 1000, 1000});
    const std::string wrong = check_tile(mask, r.visible, t);
    if (!wrong.empty()) RC_FAIL(r.name + ": " + wrong);
  });
}

template <class T>
struct arguments {
  heed::tensor<T, 4> q;
  heed::tensor<T, 4> k;
  heed::tensor<T, 4> v;
};
template <class T>
arguments<T> random_arguments(index heads, index kv_heads, index queries, index keys,
                              unsigned seed) {
  return {oracle::random_tensor<T, 4>({2, heads, queries, 19}, seed),
          oracle::random_tensor<T, 4>({2, kv_heads, keys, 19}, seed + 1),
          oracle::random_tensor<T, 4>({2, kv_heads, keys, 21}, seed + 2)};
}

template <class T>
class SparseAttention : public testing::Test {};
using scalars = test_scalars::some;
TYPED_TEST_SUITE(SparseAttention, scalars);

TYPED_TEST(SparseAttention, EveryPatternIsItsFormula) {
  unsigned seed = 1;
  for (const auto& [queries, keys, offset] : std::vector<std::array<index, 3>>{
           {300, 300, 0}, {1, 290, 289}, {57, 300, 243}, {40, 3, 0}}) {
    const auto in = random_arguments<TypeParam>(2, 1, queries, keys, seed++);
    const heed::attention_options options{.offset = offset};
    each_pattern([&](const auto& mask, const rule& r) {
      const auto want = oracle::expected(in.q, in.k, in.v, options,
                                         [&](const position& p) { return r.visible(p); });
      const auto got = heed::attention_with_lse(in.q, in.k, in.v, options, mask);
      EXPECT_EQ(oracle::difference<TypeParam>(got.output, want.output, want.sizes), "") << r.name;
      EXPECT_EQ(oracle::lse_difference<TypeParam>(got.log_sum_exp, want.log_sum_exp, want.sizes),
                "")
          << r.name;
    });
  }
}

/// Random lists of blocks.
std::vector<std::vector<index>> random_lists(const heed::pattern_extents& e, unsigned seed) {
  std::mt19937 draw(seed);
  std::vector<std::vector<index>> lists(static_cast<std::size_t>(e.rows()));
  for (auto& list : lists) {
    for (index k = 0; k < e.key_blocks(); ++k) {
      if (draw() % 3 == 0) list.push_back(k);
    }
    std::shuffle(list.begin(), list.end(), draw);
  }
  return lists;
}

TYPED_TEST(SparseAttention, ListsOfBlocksOfAnySizeAndHeads) {
  unsigned seed = 10;
  for (const index query_block : {1, 16, 50, 64, 128, 500}) {
    for (const index key_block : {1, 40, 128}) {
      for (const index heads : {1, 2, 4}) {
        const index batch = heads == 2 ? 2 : 1;
        const auto in = random_arguments<TypeParam>(4, 2, 260, 270, ++seed);
        const heed::pattern_extents e{batch, heads, 300, 270, query_block, key_block};
        const auto lists = random_lists(e, seed);
        const heed::block_pattern pattern(e, lists);
        const heed::attention_options options{.offset = 30};
        const auto formula = [&](const position& p) {
          const index head = heads == 1 ? 0 : heads == 2 ? p.kv_head : p.head;
          const index row = ((batch == 1 ? 0 : p.batch) * heads + head) * e.query_blocks() +
                            p.query / query_block;
          const auto& list = lists[static_cast<std::size_t>(row)];
          return std::find(list.begin(), list.end(), p.key / key_block) != list.end();
        };
        const auto want = oracle::expected(in.q, in.k, in.v, options, formula);
        const auto got = heed::attention(in.q, in.k, in.v, options, heed::blocks(pattern));
        EXPECT_EQ(oracle::difference<TypeParam>(got, want.output, want.sizes), "")
            << query_block << " x " << key_block << ", heads " << heads;
        const auto causal = oracle::expected(in.q, in.k, in.v, options, [&](const position& p) {
          return formula(p) && p.key <= p.query;
        });
        const auto both =
            heed::attention(in.q, in.k, in.v, options, heed::blocks(pattern) && heed::causal());
        EXPECT_EQ(oracle::difference<TypeParam>(both, causal.output, causal.sizes), "");
      }
    }
  }
}

TYPED_TEST(SparseAttention, ItsOptionsAllApply) {
  const auto in = random_arguments<TypeParam>(4, 2, 200, 200, 5);
  const heed::pattern_extents e{1, 1, 200, 200, 64, 64};
  const heed::block_pattern pattern(e, random_lists(e, 3));
  const std::vector<float> sinks{0.5F, -1.0F, 2.0F, 0.0F};
  const auto bend = [](auto s, const position& p) {
    return s + decltype(s)(0.01) * decltype(s)(p.key % 7);
  };
  EXPECT_EQ(oracle::check(in.q, in.k, in.v, {.scale = 0.3}, heed::blocks(pattern),
                          heed::softcap(5.0), heed::alibi(), heed::sink(sinks), bend),
            "");
}

// The pattern of a mask is the mask: with it inside partial blocks, and its full ones alone.
TEST(BlockPattern, OfAMaskIsTheMask) {
  heed::thread_pool pool(3);
  const auto in = random_arguments<float>(2, 1, 210, 230, 7);
  each_pattern([&](const auto& mask, const rule& r) {
    for (const index block : {1, 13, 128}) {
      const heed::pattern_extents e{1, 1, 210, 230, block, block};
      const heed::block_pattern pattern(pool, e, mask);
      // A mask that says nothing about tiles is evaluated pair by pair: the same pattern.
      const heed::block_pattern exhaustive(
          pool, e, [&](const position& p) noexcept { return r.visible(p); });
      EXPECT_EQ(pattern, exhaustive) << r.name << ", block " << block;
      if (block == 1) continue;
      const auto want = heed::attention(in.q, in.k, in.v, {}, mask);
      const auto got = heed::attention(in.q, in.k, in.v, {}, heed::blocks(pattern, mask));
      const auto sizes = oracle::expected(in.q, in.k, in.v, {}, mask).sizes;
      EXPECT_EQ(oracle::difference<float>(got, oracle::widened(want), sizes), "") << r.name;
    }
  });
}

TEST(BlockPattern, SetOperationsAndTranspose) {
  heed::serial_executor exec;
  const heed::pattern_extents e{2, 3, 100, 130, 16, 32};
  const auto even = [](const position& p) { return (p.query / 24 + p.key / 40 + p.head) % 2 == 0; };
  const heed::block_pattern a(exec, e, even);
  const heed::block_pattern b(e, random_lists(e, 1));
  const heed::block_pattern either = a | b;
  const heed::block_pattern both = a & b;
  const heed::block_pattern transposed = transpose(a);
  index seen = 0;
  for (index n = 0; n < 2; ++n) {
    for (index h = 0; h < 3; ++h) {
      for (index q = 0; q < e.query_blocks(); ++q) {
        for (index k = 0; k < e.key_blocks(); ++k) {
          const coverage x = a.at(n, h, q, k);
          const coverage y = b.at(n, h, q, k);
          seen += x != coverage::empty ? 1 : 0;
          EXPECT_EQ(either.at(n, h, q, k), std::max(x, y));
          EXPECT_EQ(both.at(n, h, q, k), std::min(x, y));
          EXPECT_EQ(transposed.at(n, h, k, q), x);
        }
      }
    }
  }
  EXPECT_EQ(a.visible_blocks(), seen);
  EXPECT_EQ(transpose(transposed), a);
  EXPECT_THROW((void)(a | heed::block_pattern(exec, {1, 3, 100, 130, 16, 32}, even)),
               heed::shape_error);
}

TEST(BlockPattern, StatisticsCountPairs) {
  heed::serial_executor exec;
  const heed::block_pattern p(exec, {1, 2, 100, 70, 32, 32}, heed::causal());
  // Blocks of 32 x 32 on and below the diagonal, cut at 100 queries and 70 keys.
  const double pairs = 32 * 32 + 32 * 64 + 32 * 70 + 4 * 70;
  EXPECT_DOUBLE_EQ(p.visible_pairs(), 2 * pairs);
  EXPECT_DOUBLE_EQ(p.density(), pairs / (100 * 70));
  EXPECT_DOUBLE_EQ(p.flops(8, 16), 2 * 24 * 2 * pairs);
  EXPECT_EQ(heed::block_pattern(exec, {1, 1, 0, 5, 4, 4}, heed::causal()).density(), 0);
}

TEST(BlockPattern, IsSeenAtAGlance) {
  heed::serial_executor exec;
  const heed::block_pattern p(exec, {1, 1, 64, 64, 16, 16}, heed::causal());
  EXPECT_EQ(heed::to_text(p), "+...\n#+..\n##+.\n###+\n");
  EXPECT_EQ(heed::to_text(p, 0, 0, 2), "+.\n#+\n");
  const std::string svg = heed::to_svg(p);
  std::size_t squares = 0;
  for (std::size_t at = 0; (at = svg.find("<rect x", at)) != std::string::npos; ++at) ++squares;
  EXPECT_EQ(squares, 10U);
}

TEST(BlockPattern, RefusesWhatDoesNotFit) {
  const heed::pattern_extents e{1, 1, 100, 100, 50, 50};
  const std::vector<std::vector<index>> short_list(1);
  EXPECT_THROW(heed::block_pattern(e, short_list), heed::shape_error);
  EXPECT_THROW(heed::block_pattern(e, std::vector<std::vector<index>>{{0}, {2}}),
               heed::shape_error);
  EXPECT_THROW(heed::block_pattern({1, 1, 10, 10, 0, 4}, short_list), heed::shape_error);
  const heed::block_pattern p(e, std::vector<std::vector<index>>{{0}, {0, 1}});
  const auto in = random_arguments<float>(2, 1, 10, 101, 1);
  EXPECT_THROW((void)heed::attention(in.q, in.k, in.v, {}, heed::blocks(p)), heed::shape_error);
  const auto wrong_list = [&] {
    static const std::vector<index> unordered{3, 3};
    return heed::attention(in.q, in.k, in.v, {}, heed::vertical_slash(unordered, {}));
  };
  EXPECT_THROW((void)wrong_list(), heed::shape_error);
  EXPECT_THROW((void)heed::attention(in.q, in.k, in.v, {}, heed::strided{0}), heed::option_error);
}

TEST(BigBird, WindowGlobalAndRandomBlocks) {
  const heed::pattern_extents e{1, 2, 128 * 40, 128 * 40};
  const heed::big_bird_options o{.window = 3, .global = 2, .random = 3, .seed = 9};
  const heed::block_pattern p = heed::big_bird(e, o);
  EXPECT_EQ(p, heed::big_bird(e, o));
  EXPECT_FALSE(p == heed::big_bird(e, {.window = 3, .global = 2, .random = 3, .seed = 10}));
  std::vector<int> drawn(40);
  for (index h = 0; h < 2; ++h) {
    for (index q = 0; q < 40; ++q) {
      const auto row = p.row(0, h, q);
      if (q < 2) {
        EXPECT_EQ(row.size(), 40U);
        continue;
      }
      index random = 0;
      for (const auto& b : row) {
        const bool expected = b.key_block < 2 || std::abs(b.key_block - q) <= 1;
        random += expected ? 0 : 1;
        if (!expected) ++drawn[static_cast<std::size_t>(b.key_block)];
      }
      EXPECT_EQ(random, 3) << q;
      for (const index k : {index{0}, index{1}, q - 1, q, std::min<index>(q + 1, 39)}) {
        EXPECT_NE(p.at(0, h, q, k), coverage::empty) << q << ", " << k;
      }
    }
  }
  // 76 rows draw 3 blocks of some 36: about 6 a block; one never drawn would be 1 in 500.
  EXPECT_GE(std::count_if(drawn.begin() + 2, drawn.end(), [](int n) { return n > 0; }), 36);
  const auto back = heed::big_bird({1, 1, 1280, 1280}, {.causal = true, .seed = 1});
  for (const auto& b : back.row(0, 0, 5)) EXPECT_LE(b.key_block, 5);
  EXPECT_THROW((void)heed::big_bird(e, {.window = 2}), heed::option_error);
}

// Threads change no bit, and neither does how the rows are cut.
TEST(ParallelSparse, SameBitsForAnyThreads) {
  const auto in = random_arguments<float>(4, 2, 700, 700, 3);
  const heed::pattern_extents e{1, 4, 700, 700, 128, 128};
  const heed::block_pattern pattern = heed::big_bird(e, {.random = 1, .seed = 4});
  heed::serial_executor serial;
  const auto one = heed::attention(serial, in.q, in.k, in.v, {}, heed::blocks(pattern));
  for (const index threads : {2, 7}) {
    heed::thread_pool pool(threads);
    EXPECT_TRUE(
        oracle::same_bits(one, heed::attention(pool, in.q, in.k, in.v, {}, heed::blocks(pattern))));
    EXPECT_EQ(heed::block_pattern(pool, e, heed::longformer(70, 5)),
              heed::block_pattern(serial, e, heed::longformer(70, 5)));
  }
}

}  // namespace
