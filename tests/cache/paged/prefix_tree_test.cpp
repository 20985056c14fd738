// SPDX-License-Identifier: MIT
// The prefix tree: random inserts, lookups and evictions against a set of prefixes, the order of
// eviction. And every allocation made to fail once: of an insert, of hybrid memories, of saving and
// loading any cache.
#include "heed/cache/paged/prefix_tree.hpp"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstdlib>
#include <exception>
#include <new>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "heed/cache.hpp"
#include "heed/rotary.hpp"

namespace {

/// Allocations by operator new that succeed before one fails; negative: all succeed.
int allocations_left = -1;

}  // namespace

// Not inlined: g++ would compare the two and warn.
HEED_NOINLINE void* operator new(std::size_t bytes) {
  if (allocations_left == 0) throw std::bad_alloc();
  if (allocations_left > 0) --allocations_left;
  if (void* const p = std::malloc(bytes > 0 ? bytes : 1)) return p;
  throw std::bad_alloc();
}
HEED_NOINLINE void operator delete(void* p) noexcept { std::free(p); }
HEED_NOINLINE void operator delete(void* p, std::size_t) noexcept { std::free(p); }

namespace {

using heed::index;
using heed::page_id;
using ids = std::vector<std::int32_t>;
using cache_type = heed::paged_cache<float>;
using tree_type = heed::prefix_tree<cache_type>;

cache_type make_cache(index sequences, index pages, index page_size) {
  return cache_type({.sequences = sequences,
                     .kv_heads = 1,
                     .pages = pages,
                     .page_size = page_size,
                     .head_dim = 1});
}

/// A token's key is its number, its value the negative.
void append(cache_type& cache, index sequence, const ids& tokens) {
  heed::tensor<float, 3> k({1, static_cast<index>(tokens.size()), 1});
  heed::tensor<float, 3> v(k.extents());
  for (index i = 0; i < k.size(); ++i) {
    k.data()[i] = static_cast<float>(tokens[static_cast<std::size_t>(i)]);
    v.data()[i] = -k.data()[i];
  }
  cache.append(sequence, k, v);
}

bool holds(const cache_type& cache, index sequence, const ids& tokens) {
  if (cache.length(sequence) > static_cast<index>(tokens.size())) return false;
  for (index j = 0; j < cache.length(sequence); ++j) {
    const auto x = static_cast<float>(tokens[static_cast<std::size_t>(j)]);
    if (*cache.keys(sequence, 0, j).data != x || *cache.values(sequence, 0, j).data != -x) {
      return false;
    }
  }
  return true;
}

index longest_known(const std::set<ids>& known, const ids& tokens, index page_size) {
  index n = 0;
  while (n + page_size <= static_cast<index>(tokens.size()) &&
         known.count(ids(tokens.begin(), tokens.begin() + n + page_size)) == 1) {
    n += page_size;
  }
  return n;
}

// Serving as it goes: adopt what is known, append the rest, insert, leave; evict at times.
RC_GTEST_PROP(PrefixTree, KnowsWhatASetOfPrefixesKnows, ()) {
  const index page_size = *rc::gen::element<index>(1, 2, 3);
  const index pages = 40;
  cache_type cache = make_cache(3, pages, page_size);
  tree_type tree(cache);
  std::set<ids> known;
  std::vector<ids> live(3);
  for (int step = 0; step < 40; ++step) {
    const auto s = *rc::gen::inRange<std::size_t>(0, 3);
    const auto s_index = static_cast<index>(s);
    const auto length = *rc::gen::inRange<std::size_t>(0, 12);
    const ids prompt = *rc::gen::container<ids>(length, rc::gen::inRange(1, 3));
    const index expected = longest_known(known, prompt, page_size);
    RC_ASSERT(tree.match(prompt) == expected);
    switch (*rc::gen::inRange(0, 3)) {
      case 0:
      case 1: {
        cache.clear(s_index);
        live[s].clear();
        RC_ASSERT(tree.adopt(prompt, s_index) == expected);
        const ids rest(prompt.begin() + expected, prompt.end());
        const index need = heed::ceil_div(static_cast<index>(rest.size()), page_size);
        (void)tree.evict(need - cache.free_pages());
        for (auto it = known.begin(); it != known.end();) {
          it = tree.match(*it) == static_cast<index>(it->size()) ? std::next(it) : known.erase(it);
        }
        RC_ASSERT(cache.free_pages() >= need);
        append(cache, s_index, rest);
        live[s] = prompt;
        const index before = tree.pages();
        const index fresh = tree.insert(prompt, s_index);
        RC_ASSERT(tree.pages() == before + fresh);
        for (index n = page_size; n <= static_cast<index>(prompt.size()); n += page_size) {
          known.insert(ids(prompt.begin(), prompt.begin() + n));
        }
        break;
      }
      default: {
        const index free = cache.free_pages();
        const index want = *rc::gen::inRange<index>(0, 6);
        std::set<page_id> seen;
        const index freed = tree.evict(want, [&](const heed::evicted_page<std::int32_t>& e) {
          seen.insert(e.page);
          return false;
        });
        RC_ASSERT(freed <= want && freed == static_cast<index>(seen.size()));
        RC_ASSERT(cache.free_pages() == free + freed);
        index lost = 0;
        for (auto it = known.begin(); it != known.end();) {
          const bool kept = tree.match(*it) == static_cast<index>(it->size());
          lost += kept ? 0 : 1;
          it = kept ? std::next(it) : known.erase(it);
        }
        RC_ASSERT(lost == freed);
      }
    }
    tree.validate();
    cache.validate();
    RC_ASSERT(tree.pages() == static_cast<index>(known.size()));
    for (std::size_t i = 0; i < 3; ++i) RC_ASSERT(holds(cache, static_cast<index>(i), live[i]));
  }
  cache.clear();
  RC_ASSERT(cache.pages() - cache.free_pages() == tree.pages());
  tree.clear();
  tree.validate();
  RC_ASSERT(cache.free_pages() == pages);
}

TEST(PrefixTree, EvictsTheLeastRecentlyUsedLeafFirstAndMayBeToldToKeep) {
  cache_type cache = make_cache(1, 10, 2);
  tree_type tree(cache);
  const auto add = [&](const ids& tokens) {
    cache.clear(0);
    const index known = tree.adopt(tokens, 0);
    append(cache, 0, ids(tokens.begin() + known, tokens.end()));
    (void)tree.insert(tokens, 0);
    cache.clear(0);
  };
  add({1, 2, 3, 4, 5, 6});
  add({1, 2, 7, 8});
  add({9, 9});
  EXPECT_EQ(tree.pages(), 5);
  (void)tree.adopt(ids{1, 2, 3, 4, 5, 6}, 0);  // used again, and in use
  std::vector<ids> order;
  const auto note = [&](const heed::evicted_page<std::int32_t>& e) {
    order.emplace_back(e.tokens.begin(), e.tokens.end());
    order.back().push_back(static_cast<int>(e.first_token));
    return e.tokens[0] == 9;
  };
  EXPECT_EQ(tree.evict(10, note), 1);
  EXPECT_EQ(order, (std::vector<ids>{{7, 8, 2}, {9, 9, 0}}));
  cache.clear(0);
  order.clear();
  EXPECT_EQ(tree.evict(2, note), 2);
  EXPECT_EQ(order, (std::vector<ids>{{9, 9, 0}, {5, 6, 4}, {3, 4, 2}}));
  tree.validate();
  EXPECT_EQ(tree.evict(10), 2);
  EXPECT_EQ(tree.pages(), 0);
  EXPECT_EQ(cache.free_pages(), 10);
}

TEST(PrefixTree, WhereMemoryRunsOutNothingChanges) {
  cache_type cache = make_cache(4, 30, 2);
  tree_type tree(cache);
  // A first edge, one that grows, one beside it, one that is split.
  const std::vector<ids> prompts{
      {1, 2, 3, 4, 5, 6, 7, 8}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 9}, {3, 3, 4, 4}, {1, 2, 3, 4, 8, 8}};
  int failures = 0;
  for (std::size_t s = 0; s < prompts.size(); ++s) {
    append(cache, static_cast<index>(s), prompts[s]);
    const index before = tree.match(prompts[s]);
    const index pages = tree.pages();
    for (int n = 0;; ++n) {
      bool failed = false;
      allocations_left = n;
      try {
        (void)tree.insert(prompts[s], static_cast<index>(s));
      } catch (const std::bad_alloc&) {
        failed = true;
      }
      allocations_left = -1;
      tree.validate();
      cache.validate();
      if (!failed) break;
      ++failures;
      EXPECT_EQ(tree.match(prompts[s]), before);
      EXPECT_EQ(tree.pages(), pages);
    }
    EXPECT_EQ(tree.match(prompts[s]), static_cast<index>(prompts[s].size()));
  }
  EXPECT_GE(failures, 8);
  // Without memory what is known is still found, shared, evicted and forgotten.
  cache.clear();
  allocations_left = 0;
  const index known = tree.adopt(prompts[3], 0);
  const index freed = tree.evict(1);
  tree.clear();
  cache.clear();
  allocations_left = -1;
  EXPECT_EQ(known, 6);
  EXPECT_EQ(freed, 1);
  EXPECT_EQ(cache.free_pages(), 30);
}

TEST(PrefixTree, WhatDoesNotFitIsRefused) {
  cache_type cache = make_cache(2, 4, 2);
  tree_type tree(cache);
  append(cache, 0, {1, 2, 3});
  EXPECT_THROW((void)tree.insert(ids{1, 2, 3, 4}, 0), heed::shape_error);
  EXPECT_THROW((void)tree.insert(ids{1}, 2), heed::shape_error);
  EXPECT_EQ(tree.insert(ids{1, 2, 3}, 0), 1);
  EXPECT_THROW((void)tree.adopt(ids{1, 2}, 0), heed::shape_error);
  EXPECT_EQ(tree.adopt(ids{1, 2}, 1), 2);
  EXPECT_EQ(cache.references(cache.page_table(1)[0]), 3);
}

/// Runs `use` with the n-th allocation failing, n = 1, 2, ..., until none fails; `check` after each
/// failure. How many failed.
template <class Use, class Check>
int each_failure(const Use& use, const Check& check) {
  for (int n = 0;; ++n) {
    bool failed = false;
    allocations_left = n;
    try {
      use();
    } catch (const std::exception&) {
      failed = true;
    }
    allocations_left = -1;
    if (!failed) return n;
    check(n);
  }
}

template <class Cache>
std::string saved(const Cache& cache) {
  std::ostringstream to;
  heed::save_cache(to, cache);
  return to.str();
}

/// No append needs memory; a save or a load for want of it leaves the cache as it was.
template <class Cache>
void check_without_memory(Cache cache) {
  const heed::tensor<float, 4> k({cache.batch(), cache.kv_heads(), 5, cache.head_dim()});
  const heed::tensor<float, 4> v({cache.batch(), cache.kv_heads(), 5, cache.value_dim()});
  allocations_left = 0;
  cache.append(k, v);
  cache.append(k, v);
  allocations_left = -1;
  const std::string before = saved(cache);
  std::string file;
  EXPECT_GE(each_failure([&] { file = saved(cache); },
                         [&](int n) { EXPECT_EQ(saved(cache), before) << n; }),
            2);
  EXPECT_EQ(file, before);
  EXPECT_GE(each_failure(
                [&] {
                  std::istringstream from(before);
                  cache = heed::load_cache<Cache>(from);
                },
                [&](int n) { EXPECT_EQ(saved(cache), before) << n; }),
            2);
  EXPECT_EQ(saved(cache), before);
}

TEST(EveryCache, IsAsItWasWhereMemoryRunsOut) {
  constexpr heed::cache_extents e{.batch = 2, .kv_heads = 2, .capacity = 12, .head_dim = 4};
  const heed::paged_extents pages{
      .sequences = 2, .kv_heads = 2, .pages = 20, .page_size = 2, .head_dim = 4};
  check_without_memory(heed::contiguous_cache<float>(e));
  check_without_memory(heed::slot_cache<heed::half>(e));
  check_without_memory(heed::paged_cache<float>(pages));
  check_without_memory(heed::paged_int8_cache(pages));
  check_without_memory(heed::paged_kivi4_cache(pages));
  check_without_memory(heed::int4_cache(e, 2));
  check_without_memory(
      heed::kivi_cache<8>({.batch = 2, .capacity = 12, .head_dim = 4, .group = 4}));
  check_without_memory(
      heed::rolling_cache<float>({.sinks = 1, .window = 6, .head_dim = 4},
                                 heed::rotary_embedding(heed::rotary_layout::interleaved, 4)));
}

TEST(EveryCache, HybridMemoriesAreAsTheyWereWhereMemoryRunsOut) {
  using memory_type = heed::hybrid_memory<heed::contiguous_cache<float>>;
  memory_type memory(3);
  const heed::cache_extents e{.capacity = 12, .head_dim = 4};
  const heed::tensor<float, 4> k({1, 1, 1, 4});
  memory.add_cache(heed::contiguous_cache<float>(e));
  memory.add_state({2, 3});
  std::string before = saved(memory);
  const auto unchanged = [&](int n) { EXPECT_EQ(saved(memory), before) << n; };
  EXPECT_GE(each_failure([&] { memory.add_state({5}); }, unchanged), 1);
  before = saved(memory);
  EXPECT_GE(each_failure([&] { memory.add_cache(heed::contiguous_cache<float>(e)); }, unchanged),
            1);
  // Steps and rollbacks need none.
  allocations_left = 0;
  for (int t = 0; t < 5; ++t) {
    auto step = memory.step(1);
    step.cache(0).append(k, k);
    step.cache(1).append(k, k);
    step.state<1>(1)(0) += 1;
    step.commit();
  }
  memory.rollback(2);
  allocations_left = -1;
  EXPECT_EQ(memory.state<1>(1)(0), 3);
  before = saved(memory);
  EXPECT_GE(each_failure([&] { (void)memory.fork(); }, unchanged), 2);
  EXPECT_GE(each_failure(
                [&] {
                  std::istringstream from(before);
                  memory = heed::load_cache<memory_type>(from);
                },
                unchanged),
            2);
  EXPECT_EQ(saved(memory), before);
}

}  // namespace
