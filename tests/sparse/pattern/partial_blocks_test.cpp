// SPDX-License-Identifier: MIT
// Patterns with partial blocks: never attended to whole without a word, and as fast as their mask.
#include <gtest/gtest.h>

#include <atomic>

#include "heed/heed.hpp"
#include "support/attention_oracle.hpp"

namespace {

using heed::index;
using heed::position;

bool striped(const position& p) { return (p.key / 7 + p.query / 5) % 3 != 0 && p.key <= p.query; }

TEST(PartialBlocks, NeedTheirMask) {
  heed::serial_executor exec;
  const auto q = oracle::random_tensor<float, 4>({1, 2, 150, 8}, 1);
  const heed::pattern_extents e{.queries = 150, .keys = 150, .query_block = 48, .key_block = 32};
  const heed::block_pattern p(exec, e, heed::causal());
  EXPECT_GT(p.partial_blocks(), 0);
  EXPECT_THROW((void)heed::attention(q, q, q, {}, heed::blocks(p)), heed::option_error);
  EXPECT_THROW((void)heed::attention(q, q, q, {}, heed::blocks(p) && heed::causal()),
               heed::option_error);
  const auto one_key = [](const position& at) { return at.key == 3; };
  const heed::block_pattern single(exec, e, one_key);
  const heed::block_pattern either = p | single;
  const heed::block_pattern both = p & single;
  EXPECT_THROW((void)heed::attention(q, q, q, {}, heed::blocks(either)), heed::option_error);
  EXPECT_THROW((void)heed::attention(q, q, q, {}, heed::blocks(both)), heed::option_error);
  EXPECT_THROW((void)heed::attention(q, q, q, {}, heed::blocks(single)), heed::option_error);
  const heed::block_pattern transposed = transpose(p);
  EXPECT_EQ(transposed.partial_blocks(), p.partial_blocks());

  const heed::block_pattern whole = whole_blocks(p);
  EXPECT_EQ(whole.partial_blocks(), 0);
  EXPECT_EQ(whole.visible_blocks(), p.visible_blocks());
  const auto of_blocks = [&](const position& at) {
    return p.at(0, 0, at.query / 48, at.key / 32) != heed::coverage::empty;
  };
  const auto want = oracle::expected(q, q, q, {}, of_blocks);
  const auto got = heed::attention(q, q, q, {}, heed::blocks(whole));
  EXPECT_EQ(oracle::difference<float>(got, want.output, want.sizes), "");
}

// Blocks that end inside a kernel's tiles, beside them and at them; rows cut or not.
TEST(PartialBlocks, WithTheirMaskAreTheMask) {
  heed::serial_executor exec;
  const auto q = oracle::random_tensor<float, 4>({1, 2, 150, 8}, 1);
  const auto want = oracle::expected(q, q, q, {}, striped);
  for (const index query_block : {5, 16, 48, 64, 200}) {
    for (const index key_block : {3, 16, 40, 128}) {
      const heed::block_pattern p(
          exec, {.queries = 150, .keys = 150, .query_block = query_block, .key_block = key_block},
          striped);
      const auto got = heed::attention(q, q, q, {}, heed::blocks(p, striped));
      EXPECT_EQ(oracle::difference<float>(got, want.output, want.sizes), "")
          << query_block << " x " << key_block;
      const auto with_others = heed::attention(
          q, q, q, {}, heed::blocks(p, striped) && (heed::causal() || heed::window{.right = -400}));
      EXPECT_EQ(oracle::difference<float>(with_others, want.output, want.sizes), "");
      const auto few = heed::as_view(q).slice(2, 147, 150);
      const auto last = oracle::expected(few, q, q, {.offset = 147}, striped);
      EXPECT_EQ(oracle::difference<float>(
                    heed::attention(few, q, q, {.offset = 147}, heed::blocks(p, striped)),
                    last.output, last.sizes),
                "");
    }
  }
}

/// Causal, and counts the pairs it is called for.
struct counted_causal : heed::causal_mask {
  static inline std::atomic<long> calls = 0;
  bool operator()(const position& p) const noexcept {
    ++calls;
    return heed::causal_mask::operator()(p);
  }
};

// Through the pattern the mask is called for about as many pairs as alone: those at its edge.
TEST(PartialBlocks, CallTheMaskAtItsEdgeAlone) {
  heed::serial_executor exec;
  const index n = 512;
  const auto q = oracle::random_tensor<float, 4>({1, 1, n, 8}, 1);
  const heed::block_pattern p(exec, {.queries = n, .keys = n, .query_block = 48, .key_block = 64},
                              counted_causal());
  counted_causal::calls = 0;
  (void)heed::attention(q, q, q, {}, counted_causal());
  const long alone = counted_causal::calls;
  counted_causal::calls = 0;
  (void)heed::attention(q, q, q, {}, heed::blocks(p, counted_causal()));
  EXPECT_GT(alone, 0);
  EXPECT_LE(counted_causal::calls, alone * 5 / 4);  // rows are cut at other places
}

}  // namespace
