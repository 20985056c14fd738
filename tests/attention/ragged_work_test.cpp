// SPDX-License-Identifier: MIT
// Packed sequences of very different lengths: memory follows the sum of the lengths, and each
// sequence has the bits it has alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "heed/heed.hpp"
#include "support/attention_oracle.hpp"

namespace {

using heed::index;

std::vector<index> starts(const std::vector<index>& lengths) {
  std::vector<index> s{0};
  for (const index n : lengths) s.push_back(s.back() + n);
  return s;
}

/// Element by element, of views that are no one piece of memory.
template <class X, class Y>
bool same(const X& x, const Y& y) {
  const auto a = oracle::widened(x);
  const auto b = oracle::widened(y);
  return a.extents() == b.extents() && std::equal(a.data(), a.data() + a.size(), b.data());
}

// Queries for either kernel and for none, keys of no split, a part of one and several.
TEST(RaggedWork, EachSequenceHasTheBitsItHasAlone) {
  const std::vector<index> queries{1, 0, 40, 2, 1, 150, 0, 3, 0};
  const std::vector<index> keys{16, 5, 40, 4500, 0, 150, 0, 2048, 7};
  const auto cu_seqlens_q = starts(queries);
  const auto cu_seqlens_k = starts(keys);
  const auto q = oracle::random_tensor<float, 3>({4, cu_seqlens_q.back(), 16}, 1);
  const auto k = oracle::random_tensor<float, 3>({2, cu_seqlens_k.back(), 16}, 2);
  const auto v = oracle::random_tensor<float, 3>({2, cu_seqlens_k.back(), 9}, 3);
  const auto check = [&](auto& exec, const auto&... modifiers) {
    heed::tensor<float, 3> out({4, cu_seqlens_q.back(), 9});
    heed::tensor<float, 2> lse({4, cu_seqlens_q.back()});
    heed::ragged_attention_into(exec, heed::into(out, lse), q, k, v, cu_seqlens_q, cu_seqlens_k, {},
                                modifiers...);
    for (std::size_t s = 0; s < queries.size(); ++s) {
      const auto of = [](const auto& t, const std::vector<index>& at, std::size_t n) {
        return heed::as_view(t).slice(1, at[n], at[n + 1]);
      };
      const auto alone = heed::attention_with_lse(of(q, cu_seqlens_q, s), of(k, cu_seqlens_k, s),
                                                  of(v, cu_seqlens_k, s), {}, modifiers...);
      EXPECT_TRUE(same(alone.output, of(out, cu_seqlens_q, s))) << s;
      EXPECT_TRUE(same(alone.log_sum_exp, of(lse, cu_seqlens_q, s))) << s;
    }
  };
  heed::serial_executor serial;
  heed::thread_pool pool(3);
  check(serial);
  check(pool);
  check(pool, heed::window{.left = 30, .right = 2500});
  const heed::block_pattern pattern(
      pool, {.queries = 150, .keys = 4500, .query_block = 32, .key_block = 64},
      heed::window{.left = 70, .right = 900});
  check(pool, heed::blocks(pattern, heed::window{.left = 70, .right = 900}));
}

TEST(RaggedWork, ScratchFollowsTheSumOfLengths) {
  const auto bytes = [](const std::vector<index>& queries, const std::vector<index>& keys) {
    const auto cu_seqlens_q = starts(queries);
    const auto cu_seqlens_k = starts(keys);
    const heed::tensor<float, 3> q({4, cu_seqlens_q.back(), 16});
    const heed::tensor<float, 3> k({2, cu_seqlens_k.back(), 16});
    heed::workspace scratch;
    heed::serial_executor exec;
    (void)heed::ragged_attention(exec, q, k, k, cu_seqlens_q, cu_seqlens_k, {.scratch = &scratch});
    return scratch.size();
  };
  // One token each: many short caches, and a long one.
  std::vector<index> queries(100, 1);
  std::vector<index> keys(100, 16);
  const std::size_t shorts = bytes(queries, keys);
  const std::size_t one = bytes({1}, {30'000});
  queries.push_back(1);
  keys.push_back(30'000);
  EXPECT_LE(bytes(queries, keys), shorts + one);
  // Tiles need a worker's scratch and a number a sequence, whatever the lengths.
  std::vector<index> prompts(100, 20);
  prompts.push_back(3000);
  EXPECT_LE(bytes(prompts, std::vector<index>(101, 20)),
            bytes({20}, {20}) + 101 * sizeof(index) + 64);
}

}  // namespace
