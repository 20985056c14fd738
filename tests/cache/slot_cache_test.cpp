// SPDX-License-Identifier: MIT
// Slots: random operations against vectors of vectors, decode against one contiguous cache a slot.
// Caches with one length: random operations against a vector.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "cache/cache_model.hpp"
#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/parallel.hpp"
#include "heed/score.hpp"
#include "support/attention_oracle.hpp"
#include "support/expect_error.hpp"

namespace {

using cache_model::sequence;
using cache_model::tokens;
using heed::index;
using support::expect_error;

RC_GTEST_PROP(SlotCache, HoldsWhatVectorsOfVectorsHold, ()) {
  const cache_model::geometry g;
  const index slots = *rc::gen::inRange<index>(1, 5);
  const index capacity = *rc::gen::inRange<index>(1, 20);
  heed::slot_cache<float> cache({.batch = slots,
                                 .kv_heads = g.kv_heads,
                                 .capacity = capacity,
                                 .head_dim = g.head_dim,
                                 .value_dim = g.value_dim});
  std::vector<sequence> model(static_cast<std::size_t>(slots));
  int next = 1;
  const auto extend = [&](sequence& s, index count) {
    for (index i = 0; i < count; ++i) s.push_back(next++);
  };
  for (int step = 0; step < 30; ++step) {
    const auto s = *rc::gen::inRange<std::size_t>(0, model.size());
    const index room = capacity - static_cast<index>(model[s].size());
    switch (*rc::gen::inRange(0, 4)) {
      case 0: {
        const index count = *rc::gen::inRange<index>(0, 8);
        const tokens t(g, next, count);
        RC_ASSERT(cache.try_append(static_cast<index>(s), t.k, t.v) == (count <= room));
        if (count <= room) extend(model[s], count);
        break;
      }
      case 1: {
        std::vector<index> starts{0};
        bool fits = true;
        for (const sequence& m : model) {
          const index count = *rc::gen::inRange<index>(0, 4);
          fits = fits && count <= capacity - static_cast<index>(m.size());
          starts.push_back(starts.back() + count);
        }
        const tokens t(g, next, starts.back());
        RC_ASSERT(cache.try_append(t.k, t.v, starts) == fits);
        for (std::size_t i = 0; fits && i < model.size(); ++i) {
          extend(model[i], starts[i + 1] - starts[i]);
        }
        break;
      }
      case 2: {
        const auto kept = *rc::gen::inRange<std::size_t>(0, model[s].size() + 1);
        cache.truncate(static_cast<index>(s), static_cast<index>(kept));
        model[s].resize(kept);
        break;
      }
      default:
        cache.clear(static_cast<index>(s));
        model[s].clear();
    }
    RC_ASSERT(cache_model::difference(cache, model) == "");
  }
}

// A prefill chunk in one slot, single tokens in others, nothing in one: the bits of a contiguous
// cache that holds the sequence alone.
/// Random appends and truncations of a cache with one length, beside a vector; `same(cache, token, j)`
/// says whether row j is the token's.
template <class Cache, class Same>
void check_in_step(Cache cache, const cache_model::geometry& g, const Same& same) {
  sequence model;
  int next = 1;
  for (int step = 0; step < 15; ++step) {
    if (*rc::gen::inRange(0, 3) == 0) {
      const auto kept = *rc::gen::inRange<index>(0, static_cast<index>(model.size()) + 2);
      try {
        cache.truncate(kept);
        model.resize(static_cast<std::size_t>(kept));
      } catch (const heed::shape_error&) {
        RC_ASSERT(kept > static_cast<index>(model.size()));
      }
    } else {
      const auto count = *rc::gen::inRange<index>(0, 8);
      const tokens t(g, next, count);
      const bool fits = count <= cache.capacity() - static_cast<index>(model.size());
      RC_ASSERT(cache.try_append(t.k, t.v) == fits);
      for (index i = 0; fits && i < count; ++i) model.push_back(next++);
    }
    RC_ASSERT(cache.length() == static_cast<index>(model.size()));
    for (index j = 0; j < cache.length(); ++j) {
      RC_ASSERT(same(cache, model[static_cast<std::size_t>(j)], j));
    }
  }
}

RC_GTEST_PROP(CachesInStep, HoldWhatAVectorHolds, ()) {
  const cache_model::geometry g;
  const heed::cache_extents e{.kv_heads = g.kv_heads,
                              .capacity = *rc::gen::inRange<index>(1, 25),
                              .head_dim = g.head_dim,
                              .value_dim = g.value_dim};
  check_in_step(heed::contiguous_cache<float>(e), g, [&](const auto& cache, int token, index j) {
    bool same = true;
    for (index h = 0; h < g.kv_heads; ++h) {
      for (index c = 0; c < g.head_dim; ++c) {
        same = same && cache.keys(0, h, j).data[c] == cache_model::key(token, h, c);
      }
      for (index c = 0; c < g.value_dim; ++c) {
        same = same && cache.values(0, h, j).data[c] == cache_model::value(token, h, c);
      }
    }
    return same;
  });
  // Codes: what a row by itself becomes.
  check_in_step(heed::int8_cache(e), g, [&](const auto& cache, int token, index j) {
    bool same = true;
    for (index h = 0; h < g.kv_heads; ++h) {
      float row[4];
      float wide[4];
      float got[4];
      std::uint8_t codes[4];
      for (index c = 0; c < g.head_dim; ++c) row[c] = cache_model::key(token, h, c);
      heed::widen_codes<8>(codes, heed::quantise_row<8>(row, g.head_dim, codes), g.head_dim, wide);
      cache.widen_keys(0, h, {j, j + 1}, got);
      same = same && std::equal(got, got + g.head_dim, wide);
      for (index c = 0; c < g.value_dim; ++c) row[c] = cache_model::value(token, h, c);
      heed::widen_codes<8>(codes, heed::quantise_row<8>(row, g.value_dim, codes), g.value_dim,
                           wide);
      cache.widen_values(0, h, {j, j + 1}, got);
      same = same && std::equal(got, got + g.value_dim, wide);
    }
    return same;
  });
  const cache_model::geometry one{.kv_heads = 1};
  const heed::latent_extents l{
      .capacity = e.capacity, .latent_dim = one.head_dim, .rope_dim = one.value_dim};
  check_in_step(heed::latent_cache<float>(l), one, [&](const auto& cache, int token, index j) {
    const float* const row = cache.keys(0, 0, j).data;
    bool same = row == cache.values(0, 0, j).data;
    for (index c = 0; c < one.head_dim; ++c) {
      same = same && row[c] == cache_model::key(token, 0, c);
    }
    for (index c = 0; c < one.value_dim; ++c) {
      same = same && row[one.head_dim + c] == cache_model::value(token, 0, c);
    }
    return same;
  });
}

TEST(SlotCache, RaggedDecodeIsContiguousDecodeBitForBit) {
  const std::vector<index> before{0, 130, 7, 600, 40};
  const std::vector<index> fresh{37, 1, 0, 1, 3};
  std::vector<index> starts{0};
  for (const index n : fresh) starts.push_back(starts.back() + n);
  heed::slot_cache<float> cache(
      {.batch = 5, .kv_heads = 2, .capacity = 640, .head_dim = 24, .value_dim = 20});
  const auto q = oracle::random_tensor<float, 3>({4, starts.back(), 24}, 1);
  const auto k = oracle::random_tensor<float, 3>({2, starts.back(), 24}, 2);
  const auto v = oracle::random_tensor<float, 3>({2, starts.back(), 20}, 3);
  std::vector<heed::tensor<float, 3>> past_k;
  std::vector<heed::tensor<float, 3>> past_v;
  for (std::size_t s = 0; s < before.size(); ++s) {
    past_k.push_back(
        oracle::random_tensor<float, 3>({2, before[s], 24}, 10 + static_cast<unsigned>(s)));
    past_v.push_back(
        oracle::random_tensor<float, 3>({2, before[s], 20}, 20 + static_cast<unsigned>(s)));
    cache.append(static_cast<index>(s), past_k.back(), past_v.back());
  }
  heed::tensor<float, 3> out({4, starts.back(), 20});
  heed::thread_pool pool(2);
  heed::ragged_decode_into(pool, out, q, k, v, cache, starts, {}, heed::causal());
  for (std::size_t s = 0; s < before.size(); ++s) {
    if (fresh[s] == 0) continue;
    const auto part = [&](const auto& t) {
      return heed::as_view(t).slice(1, starts[s], starts[s + 1]);
    };
    heed::contiguous_cache<float> alone(
        {.kv_heads = 2, .capacity = 640, .head_dim = 24, .value_dim = 20});
    alone.append(past_k[s], past_v[s]);
    heed::tensor<float, 3> want({4, fresh[s], 20});
    heed::decode_into(want, part(q), part(k), part(v), alone, {}, heed::causal());
    oracle::each_index({1, 4, fresh[s], 20}, [&](index, index h, index i, index c) {
      ASSERT_EQ(out(h, starts[s] + i, c), want(h, i, c)) << "sequence " << s;
    });
    EXPECT_EQ(cache.length(static_cast<index>(s)), before[s] + fresh[s]);
  }
}

TEST(SlotCache, AFailedDecodeTakesBackWhatItAppended) {
  heed::slot_cache<float> cache({.batch = 2, .kv_heads = 1, .capacity = 4, .head_dim = 3});
  const auto k = oracle::random_tensor<float, 3>({1, 4, 3}, 1);
  cache.append(0, k, k);
  const std::vector<index> starts{0, 0, 2};
  const auto two = oracle::random_tensor<float, 3>({1, 2, 3}, 1);
  heed::tensor<float, 3> wrong({1, 2, 5});
  EXPECT_THROW(heed::ragged_decode_into(wrong, two, two, two, cache, starts), heed::shape_error);
  EXPECT_EQ(cache.length(0), 4);
  EXPECT_EQ(cache.length(1), 0);
  heed::tensor<float, 3> out({1, 2, 3});
  const std::vector<index> full{0, 1, 2};
  expect_error<heed::capacity_error>("slot 0 holds 4 of 4 tokens, cannot append 1", [&] {
    heed::ragged_decode_into(out, two, two, two, cache, full);
  });
  EXPECT_EQ(cache.length(1), 0);
  const std::vector<index> short_starts{0, 2};
  expect_error<heed::shape_error>("starts has entries 2, the cache's batch + 1 has 3", [&] {
    heed::ragged_decode_into(out, two, two, two, cache, short_starts);
  });
  const std::vector<index> decreasing{0, 3, 2};
  expect_error<heed::shape_error>("starts decreases from 3 to 2",
                                  [&] { cache.append(two, two, decreasing); });
  expect_error<heed::shape_error>("sequence is 2, the cache has 2", [&] { cache.clear(2); });
  expect_error<heed::shape_error>("truncate to 5 tokens, the sequence holds 4",
                                  [&] { cache.truncate(0, 5); });
}

}  // namespace
