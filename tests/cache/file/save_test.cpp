// SPDX-License-Identifier: MIT
// Caches saved and restored: the bits they held, and files that are cut, damaged or foreign.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <sstream>
#include <string>
#include <vector>

#include "cache/cache_model.hpp"
#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/rotary.hpp"
#include "heed/score.hpp"
#include "support/attention_oracle.hpp"

namespace {

using cache_model::sequence;
using cache_model::tokens;
using heed::index;

constexpr heed::cache_extents extents{
    .batch = 2, .kv_heads = 2, .capacity = 30, .head_dim = 12, .value_dim = 7};

template <class Cache>
std::string saved(const Cache& cache) {
  std::ostringstream to;
  heed::save_cache(to, cache);
  return to.str();
}
template <class Cache>
Cache restored(const std::string& file) {
  std::istringstream from(file);
  return heed::load_cache<Cache>(from);
}

/// The same file again, the same attention, and both go on alike.
template <class Cache>
void check_round_trip(Cache cache) {
  Cache again = restored<Cache>(saved(cache));
  EXPECT_EQ(saved(again), saved(cache));
  const auto q = oracle::random_tensor<float, 4>({2, 4, 1, cache.head_dim()}, 3);
  EXPECT_TRUE(oracle::same_bits(heed::decode(q, again), heed::decode(q, cache)));
  const auto k = oracle::random_tensor<float, 4>({2, 2, 3, 12}, 4);
  const auto v = oracle::random_tensor<float, 4>({2, 2, 3, 7}, 5);
  cache.append(k, v);
  again.append(k, v);
  EXPECT_TRUE(oracle::same_bits(heed::decode(q, again), heed::decode(q, cache)));
  EXPECT_EQ(saved(again), saved(cache));
}
template <class Cache>
void fill(Cache& cache, index count) {
  cache.append(oracle::random_tensor<float, 4>({2, 2, count, 12}, 1),
               oracle::random_tensor<float, 4>({2, 2, count, 7}, 2));
}

TEST(SaveCache, GivesBackTheBits) {
  heed::contiguous_cache<float> contiguous(extents);
  fill(contiguous, 17);
  check_round_trip(contiguous);
  heed::contiguous_cache<heed::float8_e4m3, heed::half> small(extents);
  fill(small, 17);
  check_round_trip(small);
  heed::slot_cache<heed::bfloat16> slots(extents);
  fill(slots, 9);
  slots.truncate(1, 4);
  check_round_trip(slots);
  heed::int8_cache int8(extents);
  fill(int8, 11);
  check_round_trip(int8);
  heed::int4_cache int4(extents);
  fill(int4, 11);
  check_round_trip(int4);
  const heed::rolling_extents r{
      .batch = 2, .kv_heads = 2, .sinks = 2, .window = 9, .head_dim = 12, .value_dim = 7};
  heed::rolling_cache<float> rolling(r);
  fill(rolling, 25);
  check_round_trip(rolling);
  heed::rolling_cache<float> rotated(r, heed::rotary_embedding(heed::rotary_layout::half_split, 8));
  fill(rotated, 25);
  check_round_trip(rotated);
}

TEST(SaveCache, LatentsToo) {
  heed::latent_cache<float> cache({.batch = 2, .capacity = 9, .latent_dim = 5, .rope_dim = 3});
  cache.append(oracle::random_tensor<float, 3>({2, 6, 5}, 1),
               oracle::random_tensor<float, 3>({2, 6, 3}, 2));
  const auto again = restored<heed::latent_cache<float>>(saved(cache));
  EXPECT_EQ(saved(again), saved(cache));
  EXPECT_EQ(again.latent_dim(), 5);
  EXPECT_EQ(again.length(), 6);
  EXPECT_EQ(again.keys(1, 0, 5).data[7], cache.keys(1, 0, 5).data[7]);
}

// Forks and appends in random order; a restored cache holds the model, shares as many pages, and
// its counts are right.
RC_GTEST_PROP(SaveCache, PagesStaySharedAndCounted, ()) {
  const cache_model::geometry g;
  heed::paged_cache<float> cache({.sequences = 4,
                                  .kv_heads = g.kv_heads,
                                  .pages = 24,
                                  .page_size = *rc::gen::inRange<index>(1, 5),
                                  .head_dim = g.head_dim,
                                  .value_dim = g.value_dim});
  std::vector<sequence> model(4);
  int next = 1;
  for (int i = 0; i < 25; ++i) {
    const auto s = *rc::gen::inRange<index>(0, 4);
    auto& want = model[static_cast<std::size_t>(s)];
    const int what = *rc::gen::inRange(0, 4);
    if (what == 0 && want.empty()) {
      const auto from = *rc::gen::inRange<index>(0, 4);
      if (from != s) {
        cache.fork(from, s);
        want = model[static_cast<std::size_t>(from)];
      }
    } else if (what == 1) {
      const auto kept = *rc::gen::inRange<index>(0, static_cast<index>(want.size()) + 1);
      cache.truncate(s, kept);
      want.resize(static_cast<std::size_t>(kept));
    } else {
      const tokens t(g, next, *rc::gen::inRange<index>(0, 6));
      if (cache.try_append(s, t.k, t.v)) {
        for (index n = 0; n < t.k.extent(1); ++n) want.push_back(next++);
      }
    }
    const index free = cache.free_pages();
    cache = restored<heed::paged_cache<float>>(saved(cache));
    cache.validate();
    RC_ASSERT(cache.free_pages() == free);
    RC_ASSERT(cache_model::difference(cache, model) == "");
  }
}

TEST(SaveCache, OtherFilesAreRefused) {
  using cache = heed::contiguous_cache<float>;
  cache c({.batch = 1, .kv_heads = 2, .capacity = 5, .head_dim = 3});
  c.append(oracle::random_tensor<float, 3>({2, 4, 3}, 1),
           oracle::random_tensor<float, 3>({2, 4, 3}, 2));
  const std::string good = saved(c);
  EXPECT_NO_THROW((void)restored<cache>(good));
  for (std::size_t n = 0; n < good.size(); ++n) {
    EXPECT_THROW((void)restored<cache>(good.substr(0, n)), heed::file_error) << n;
    std::string damaged = good;
    damaged[n] = static_cast<char>(damaged[n] ^ (1 << (n % 8)));
    EXPECT_THROW((void)restored<cache>(damaged), heed::file_error) << n;
  }
  EXPECT_THROW((void)restored<cache>(std::string(5000, 'x')), heed::file_error);
  EXPECT_THROW((void)restored<heed::slot_cache<float>>(good), heed::file_error);
  EXPECT_THROW((void)restored<heed::contiguous_cache<heed::half>>(good), heed::file_error);
  try {
    (void)restored<heed::int8_cache>(good);
  } catch (const heed::file_error& e) {
    EXPECT_STREQ(e.what(), "the file holds a contiguous, not a int8");
  }
  std::ostringstream closed;
  closed.setstate(std::ios::failbit);
  EXPECT_THROW(heed::save_cache(closed, c), heed::file_error);
}

// More than a page of the file, whatever the sizes of its pieces.
TEST(SaveCache, OfManyPages) {
  heed::contiguous_cache<float> c({.batch = 1, .kv_heads = 3, .capacity = 2000, .head_dim = 33});
  c.append(oracle::random_tensor<float, 3>({3, 1777, 33}, 1),
           oracle::random_tensor<float, 3>({3, 1777, 33}, 2));
  const std::string file = saved(c);
  const auto again = restored<heed::contiguous_cache<float>>(file);
  EXPECT_EQ(saved(again), file);
  for (index h = 0; h < 3; ++h) {
    for (index j = 0; j < 1777; ++j) {
      ASSERT_EQ(again.keys(0, h, j).data[32], c.keys(0, h, j).data[32]);
    }
  }
}

}  // namespace
