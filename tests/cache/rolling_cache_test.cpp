// SPDX-License-Identifier: MIT
// Rolling: what is kept of a stream, attention to it with keys rotated by their places, and memory
// that stays bounded.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <vector>

#include "cache/cache_model.hpp"
#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/rotary.hpp"
#include "support/attention_oracle.hpp"

namespace {

using cache_model::sequence;
using cache_model::tokens;
using heed::index;

RC_GTEST_PROP(RollingCache, KeepsTheFirstAndTheNewest, ()) {
  const cache_model::geometry g;
  const index sinks = *rc::gen::inRange<index>(0, 4);
  const index window = *rc::gen::inRange<index>(1, 9);
  heed::rolling_cache<float> cache({.kv_heads = g.kv_heads,
                                    .sinks = sinks,
                                    .window = window,
                                    .head_dim = g.head_dim,
                                    .value_dim = g.value_dim});
  sequence all;
  int next = 1;
  for (int step = 0; step < 20; ++step) {
    if (*rc::gen::inRange(0, 12) == 0) {
      cache.clear();
      all.clear();
    }
    const index count = *rc::gen::inRange<index>(0, 2 * window + sinks);
    const tokens t(g, next, count);
    cache.append(t.k, t.v);
    for (index i = 0; i < count; ++i) all.push_back(next++);
    sequence want;
    const auto size = static_cast<index>(all.size());
    for (index i = 0; i < size; ++i) {
      if (i < sinks || i >= size - window) want.push_back(all[static_cast<std::size_t>(i)]);
    }
    RC_ASSERT(cache_model::difference(cache, {want}) == "");
    RC_ASSERT(cache.seen() == size);
    for (index j = 0; j < cache.length(); ++j) {
      RC_ASSERT(*cache.plain_key(0, 1, j) ==
                cache_model::key(want[static_cast<std::size_t>(j)], 1, 0));
    }
  }
}

// After any number of tokens: attention to the kept keys rotated by 0, 1, 2, ...
TEST(RollingCache, RotatesKeysByTheirPlaces) {
  const heed::rotary_embedding rope(heed::rotary_layout::half_split, 12);
  const index sinks = 3;
  const index window = 70;
  heed::rolling_cache<float> cache(
      {.batch = 2, .kv_heads = 2, .sinks = sinks, .window = window, .head_dim = 16, .value_dim = 8},
      rope);
  const index stream = 400;
  const auto k = oracle::random_tensor<float, 4>({2, 2, stream, 16}, 1);
  const auto v = oracle::random_tensor<float, 4>({2, 2, stream, 8}, 2);
  index at = 0;
  for (const index count : {1, 1, 5, 60, 1, 20, 1, 100, 1, 1, 7}) {
    const auto part = [&](const auto& t) { return heed::as_view(t).slice(2, at, at + count); };
    cache.append(part(k), part(v));
    at += count;
    const index length = std::min(at, sinks + window);
    ASSERT_EQ(cache.length(), length);
    heed::tensor<float, 4> kept_k({2, 2, length, 16});
    heed::tensor<float, 4> kept_v({2, 2, length, 8});
    oracle::each_index({2, 2, length, 16}, [&](index b, index h, index j, index c) {
      const index from = j < sinks ? j : at - length + j;
      kept_k(b, h, j, c) = k(b, h, from, c);
      if (c < 8) kept_v(b, h, j, c) = v(b, h, from, c);
    });
    heed::apply_rotary(kept_k, rope);
    auto q = oracle::random_tensor<float, 4>({2, 4, 1, 16}, static_cast<unsigned>(at));
    heed::apply_rotary(q, rope, length - 1);
    const auto want = oracle::expected(q, kept_k, kept_v, {.offset = length - 1});
    const auto got = heed::decode(q, cache);
    ASSERT_EQ(oracle::difference<float>(got, want.output, want.sizes), "") << at;
  }
}

TEST(RollingCache, WhatDoesNotFitIsRefused) {
  EXPECT_THROW(heed::rolling_cache<float>({.window = 0, .head_dim = 4}), heed::shape_error);
  const heed::rotary_embedding rope(heed::rotary_layout::interleaved, 8);
  EXPECT_THROW(heed::rolling_cache<float>({.window = 3, .head_dim = 4}, rope), heed::shape_error);
  heed::rolling_cache<float> cache({.sinks = 1, .window = 2, .head_dim = 4});
  const auto k = oracle::random_tensor<float, 2>({2, 5}, 1);
  EXPECT_THROW(cache.append(k, k), heed::shape_error);
  EXPECT_EQ(cache.seen(), 0);
}

}  // namespace
