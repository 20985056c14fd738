// SPDX-License-Identifier: MIT
// Pages: random operations against vectors of vectors with every reference counted, exhaustion, and
// decode against contiguous caches.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <set>
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
using heed::page_id;
using support::expect_error;

/// Pages that the sequences and the held pages have between them, by counting.
index pages_in_use(const heed::paged_cache<float>& cache, const std::vector<page_id>& held) {
  std::set<page_id> used(held.begin(), held.end());
  for (index s = 0; s < cache.batch(); ++s) {
    const auto table = cache.page_table(s);
    used.insert(table.begin(), table.end());
  }
  return static_cast<index>(used.size());
}

RC_GTEST_PROP(PagedCache, HoldsWhatVectorsOfVectorsHold, ()) {
  const cache_model::geometry g;
  const index batch = *rc::gen::inRange<index>(1, 6);
  const index page_size = *rc::gen::element<index>(1, 2, 3, 4, 8);
  const index pages = *rc::gen::inRange<index>(1, 24);
  heed::paged_cache<float> cache({.sequences = batch,
                                  .kv_heads = g.kv_heads,
                                  .pages = pages,
                                  .page_size = page_size,
                                  .head_dim = g.head_dim,
                                  .value_dim = g.value_dim});
  std::vector<sequence> model(static_cast<std::size_t>(batch));
  std::vector<page_id> held;
  int next = 1;
  const auto extend = [&](sequence& s, index count) {
    for (index i = 0; i < count; ++i) s.push_back(next++);
  };
  for (int step = 0; step < 40; ++step) {
    const auto s = *rc::gen::inRange<std::size_t>(0, model.size());
    const auto s_index = static_cast<index>(s);
    switch (*rc::gen::inRange(0, 7)) {
      case 0: {
        const index count = *rc::gen::inRange<index>(0, 2 * page_size + 2);
        const tokens t(g, next, count);
        const index free = cache.free_pages();
        if (cache.try_append(s_index, t.k, t.v)) {
          extend(model[s], count);
        } else {
          // Refused only where its pages, and a copy of a shared one, do not fit.
          RC_ASSERT(heed::ceil_div(count, page_size) + 1 > free);
        }
        break;
      }
      case 1: {
        std::vector<index> starts{0};
        for (std::size_t i = 0; i < model.size(); ++i) {
          starts.push_back(starts.back() + *rc::gen::inRange<index>(0, 3));
        }
        const tokens t(g, next, starts.back());
        const heed::paged_cache<float> before(cache);
        if (cache.try_append(t.k, t.v, starts)) {
          for (std::size_t i = 0; i < model.size(); ++i) {
            extend(model[i], starts[i + 1] - starts[i]);
          }
        } else {
          // One after the other they do not fit either: the count of pages was exact.
          heed::paged_cache<float> copy(before);
          bool all = true;
          for (std::size_t i = 0; i < model.size(); ++i) {
            const tokens one(g, next, starts[i + 1] - starts[i]);
            all = all && copy.try_append(static_cast<index>(i), one.k, one.v);
          }
          RC_ASSERT(!all);
          RC_ASSERT(cache.free_pages() == before.free_pages());
        }
        break;
      }
      case 2: {
        const auto to = *rc::gen::inRange<std::size_t>(0, model.size());
        if (to == s) break;
        const index free = cache.free_pages();
        if (!model[to].empty()) {
          RC_ASSERT_THROWS_AS(cache.fork(s_index, static_cast<index>(to)), heed::shape_error);
          break;
        }
        const auto count = *rc::gen::inRange<std::size_t>(0, model[s].size() + 1);
        cache.fork(s_index, static_cast<index>(to), static_cast<index>(count));
        model[to].assign(model[s].begin(), model[s].begin() + static_cast<std::ptrdiff_t>(count));
        RC_ASSERT(cache.free_pages() == free);
        break;
      }
      case 3: {
        const auto kept = *rc::gen::inRange<std::size_t>(0, model[s].size() + 1);
        cache.truncate(s_index, static_cast<index>(kept));
        model[s].resize(kept);
        break;
      }
      case 4:
        for (const page_id p : cache.page_table(s_index)) {
          cache.hold(p);
          held.push_back(p);
        }
        break;
      case 5:
        if (!held.empty()) {
          cache.drop(held.back());
          held.pop_back();
        }
        break;
      default:
        cache.clear(s_index);
        model[s].clear();
    }
    cache.validate();
    RC_ASSERT(cache_model::difference(cache, model) == "");
    RC_ASSERT(cache.pages() - cache.free_pages() == pages_in_use(cache, held));
  }
  for (const page_id p : held) cache.drop(p);
  cache.clear();
  cache.validate();
  RC_ASSERT(cache.free_pages() == pages);
}

TEST(PagedCache, AForkCopiesOnlyThePageItWritesTo) {
  const cache_model::geometry g;
  heed::paged_cache<float> cache({.sequences = 3,
                                  .kv_heads = g.kv_heads,
                                  .pages = 4,
                                  .page_size = 4,
                                  .head_dim = g.head_dim,
                                  .value_dim = g.value_dim});
  const tokens prompt(g, 1, 6);
  cache.append(0, prompt.k, prompt.v);
  cache.fork(0, 1);
  cache.fork(0, 2, 4);
  EXPECT_EQ(cache.free_pages(), 2);
  EXPECT_EQ(cache.references(cache.page_table(0)[0]), 3);
  EXPECT_EQ(cache.references(cache.page_table(0)[1]), 2);
  const tokens one(g, 7, 1);
  cache.append(1, one.k, one.v);
  EXPECT_EQ(cache.free_pages(), 1);
  EXPECT_EQ(
      cache_model::difference(cache, {{1, 2, 3, 4, 5, 6}, {1, 2, 3, 4, 5, 6, 7}, {1, 2, 3, 4}}),
      "");
  // The other has the page alone now and writes in place.
  const tokens another(g, 8, 1);
  cache.append(0, another.k, another.v);
  EXPECT_EQ(cache.free_pages(), 1);
  cache.validate();
  EXPECT_EQ(cache.page_bytes(), 2 * 4 * (3 + 2) * 4);
}

TEST(PagedCache, ExhaustionChangesNothing) {
  const cache_model::geometry g;
  heed::paged_cache<float> cache({.sequences = 2,
                                  .kv_heads = g.kv_heads,
                                  .pages = 3,
                                  .page_size = 2,
                                  .head_dim = g.head_dim,
                                  .value_dim = g.value_dim,
                                  .max_tokens = 5});
  const tokens four(g, 1, 4);
  cache.append(0, four.k, four.v);
  const tokens three(g, 5, 3);
  EXPECT_FALSE(cache.try_append(1, three.k, three.v));
  expect_error<heed::capacity_error>(
      "cache has 1 of 3 pages of 2 tokens free and at most 5 tokens a sequence, cannot append 3",
      [&] { cache.append(1, three.k, three.v); });
  const tokens two(g, 5, 2);
  EXPECT_FALSE(cache.try_append(0, two.k, two.v));  // more than a sequence may have
  EXPECT_EQ(cache_model::difference(cache, {{1, 2, 3, 4}, {}}), "");
  cache.validate();
  const std::vector<page_id> free{2};
  expect_error<heed::shape_error>("page 2 is free, has 0 references",
                                  [&] { cache.adopt(1, free); });
  expect_error<heed::shape_error>("sequence 0 has 4 tokens, needs 0 to share others'",
                                  [&] { cache.fork(1, 0); });
  expect_error<heed::shape_error>("page 0 is dropped, it has 0 holds", [&] { cache.drop(0); });
  expect_error<heed::shape_error>("page is 9, the cache has 3", [&] { cache.hold(9); });
  expect_error<heed::shape_error>("paged_cache has page size 0, needs at least 1", [] {
    heed::paged_cache<float>({.pages = 1, .page_size = 0, .head_dim = 1});
  });
}

/// Decode of a batch in pages of `page_size`, token by token and then a chunk, against contiguous
/// caches: the same bits. Pages are given out one by one, so that no sequence has neighbours.
void check_decode(index page_size, index dim = 24) {
  const std::vector<index> lengths{700, 33, 129};
  heed::paged_cache<float> cache({.sequences = 3,
                                  .kv_heads = 2,
                                  .pages = 3 * heed::ceil_div(800, page_size),
                                  .page_size = page_size,
                                  .head_dim = dim,
                                  .value_dim = dim - 4});
  std::vector<heed::contiguous_cache<float>> alone;
  std::vector<index> left = lengths;
  for (std::size_t s = 0; s < lengths.size(); ++s) {
    alone.emplace_back(
        heed::cache_extents{.kv_heads = 2, .capacity = 800, .head_dim = dim, .value_dim = dim - 4});
  }
  for (unsigned seed = 0; left[0] + left[1] + left[2] > 0; ++seed) {
    for (std::size_t s = 0; s < 3; ++s) {
      const index n = std::min<index>(left[s], 5);
      left[s] -= n;
      const auto k = oracle::random_tensor<float, 3>({2, n, dim}, 3 * seed);
      const auto v = oracle::random_tensor<float, 3>({2, n, dim - 4}, 3 * seed + 1);
      cache.append(static_cast<index>(s), k, v);
      alone[s].append(k, v);
    }
  }
  heed::thread_pool pool(2);
  for (const index count : {1, 2, 3, 40}) {
    const auto q = oracle::random_tensor<float, 4>({3, 4, count, dim}, 1);
    const auto k = oracle::random_tensor<float, 4>({3, 2, count, dim}, 2);
    const auto v = oracle::random_tensor<float, 4>({3, 2, count, dim - 4}, 3);
    heed::tensor<float, 4> out({3, 4, count, dim - 4});
    heed::decode_into(pool, out, q, k, v, cache, {}, heed::causal());
    for (index s = 0; s < 3; ++s) {
      const auto one = [&](const auto& t) { return heed::as_view(t).slice(0, s, s + 1); };
      heed::tensor<float, 4> want({1, 4, count, dim - 4});
      heed::decode_into(want, one(q), one(k), one(v), alone[static_cast<std::size_t>(s)], {},
                        heed::causal());
      oracle::each_index({1, 4, count, dim - 4}, [&](index, index h, index i, index c) {
        ASSERT_EQ(out(s, h, i, c), want(0, h, i, c))
            << "channels " << dim << ", page size " << page_size << ", sequence " << s
            << ", tokens " << count;
      });
    }
  }
}
TEST(PagedCache, DecodeIsContiguousDecodeBitForBit) {
  for (const index page_size : {1, 7, 16, 64, 200}) check_decode(page_size);
  // Rows so wide that pages are read as runs.
  for (const index page_size : {64, 96}) check_decode(page_size, 132);
}

}  // namespace
