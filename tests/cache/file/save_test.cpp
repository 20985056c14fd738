// SPDX-License-Identifier: MIT
// Caches saved and restored: the bits they held, and files that are cut, damaged or foreign.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <initializer_list>
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
  heed::int4_cache grouped(extents, 5);
  fill(grouped, 11);
  check_round_trip(grouped);
  // Whole groups, tokens in full beside them, and neither.
  for (const index count : {23, 16, 5, 1}) {
    heed::kivi_cache<4> kivi(
        {.batch = 2, .kv_heads = 2, .capacity = 30, .head_dim = 12, .value_dim = 7, .group = 8});
    fill(kivi, count);
    check_round_trip(kivi);
  }
  heed::paged_int8_cache pages({.sequences = 2,
                                .kv_heads = 2,
                                .pages = 20,
                                .page_size = 3,
                                .head_dim = 12,
                                .value_dim = 7,
                                .group = 4});
  fill(pages, 11);
  check_round_trip(pages);
  // Complete pages, one that two sequences share and one of them has cut, newest rows.
  heed::paged_kivi4_cache kivi_pages(
      {.sequences = 2, .kv_heads = 2, .pages = 20, .page_size = 4, .head_dim = 12, .value_dim = 7});
  kivi_pages.append(0, oracle::random_tensor<float, 3>({2, 11, 12}, 1),
                    oracle::random_tensor<float, 3>({2, 11, 7}, 2));
  kivi_pages.fork(0, 1, 6);
  check_round_trip(kivi_pages);
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

/// A file with right checksums that holds these numbers.
template <class Cache>
std::string forged(std::initializer_list<index> numbers) {
  std::ostringstream to;
  heed::detail::cache_writer w(to, heed::detail::stored_cache<Cache>::kind);
  for (const index n : numbers) w.number(n);
  w.finish();
  return to.str();
}
template <class Cache>
void expect_refusal(std::initializer_list<index> numbers, const char* word) {
  try {
    (void)restored<Cache>(forged<Cache>(numbers));
    ADD_FAILURE() << "a file is taken that has " << word;
  } catch (const heed::file_error& e) {
    EXPECT_NE(std::string(e.what()).find(word), std::string::npos) << e.what();
  }
}

// Sound files of huge or inconsistent extents are refused before memory is taken for them, by name.
TEST(SaveCache, ExtentsAreComparedWithTheFile) {
  constexpr index huge = index{1} << 40;
  using floats = heed::contiguous_cache<float>;
  using slots = heed::slot_cache<float>;
  using pages = heed::paged_cache<float>;
  using kivi_pages = heed::paged_kivi8_cache;
  using rolling = heed::rolling_cache<float>;
  using kivi = heed::kivi_cache<8>;
  using latent = heed::latent_cache<float>;
  using hybrid = heed::hybrid_memory<floats>;
  // Scalars, batch, kv heads, head dim, value dim, capacity, length.
  expect_refusal<floats>({1, 1, huge, huge, huge, huge, huge, 0}, "batch 1099511627776");
  expect_refusal<floats>({1, 1, 1, 2, 8, 8, huge, 0}, "capacity 1099511627776");
  expect_refusal<floats>({1, 1, huge, 0, 8, 8, 0, 0}, "batch 1099511627776");
  expect_refusal<floats>({1, 1, 1, 2, 8, 8, 100, 60}, "length 60 need 7680 bytes, ");
  expect_refusal<floats>({1, 1, 1, 2, 8, 8, 100, 101}, "length 101, needs 0 to 100");
  expect_refusal<floats>({1, 1, 1, 2, 8, -1, 100, 0}, "value dim -1");
  expect_refusal<slots>({1, 1, 50, 1, 1, 1, 1, 0}, "batch 50");
  expect_refusal<heed::int8_cache>({0, 0, 1, huge, 8, 8, 9, 0, 0}, "kv heads 1099511627776");
  expect_refusal<heed::int4_cache>({0, 0, 1, 1, 8, 8, 9, 5, 0}, "length 5, group 0 need 120");
  expect_refusal<kivi>({0, 0, 1, 1, huge, 8, 9, 0, 4}, "head dim 1099511627776");
  expect_refusal<kivi>({0, 0, 1, 1, 8, 8, 9, 8, 4}, "need");
  expect_refusal<kivi>({0, 0, 1, 1, 8, 8, 9, 8, 0}, "group 0");
  expect_refusal<latent>({1, 1, 1, 1, 8, 9, 1, 0, 1, 9}, "latent dim 9");
  expect_refusal<latent>({1, 1, 1, 1, huge, 8, huge, 0, 1, 8}, "head dim 1099511627776");
  // ... page size, tokens a sequence, group.
  expect_refusal<pages>({1, 1, 1, 1, 8, 8, huge, 0, 16, 100, 0}, "pages 1099511627776");
  expect_refusal<pages>({1, 1, 1, 1, 8, 8, 4, 0, 1 << 29, 100, 0}, "page size 536870912");
  expect_refusal<pages>({1, 1, 1, 1, 8, 8, 4, 0, 16, huge, 0}, "tokens a sequence 1099511627776");
  expect_refusal<pages>({1, 1, 9, 1, 8, 8, 4, 0, 16, 64, 0}, "batch 9");
  expect_refusal<kivi_pages>({0, 0, 1, 1, 8, 8, 4, 0, 257, 64, 0}, "page size 257");
  expect_refusal<kivi_pages>({0, 0, 1, 1, 8, 8, 4, 0, 16, 64, 4}, "group 4");
  expect_refusal<kivi_pages>({0, 0, 1, 1, 8, huge, 4, 0, 16, 64, 0}, "value dim 1099511627776");
  expect_refusal<kivi_pages>({0, 0, 1, huge, 8, 8, 0, 0, 16, 64, 0}, "kv heads 1099511627776");
  expect_refusal<kivi_pages>({0, 0, 1, 1, 8, 8, 4, 0, 16, 64, 0, 65}, "length 65");
  expect_refusal<kivi_pages>({0, 0, 1, 1, 8, 8, 4, 0, 16, 64, 0, 3, 4}, "page 4 of 4");
  // ... sinks, tokens seen, pairs and 1, layout.
  expect_refusal<rolling>({1, 1, 1, 1, 8, 8, huge, 0, 4, 0, 0, 0}, "capacity 1099511627776");
  expect_refusal<rolling>({1, 1, 1, 1, 8, 8, 9, 3, 9, 3, 0, 0}, "sinks 9");
  expect_refusal<rolling>({1, 1, 1, 1, 8, 8, 9, 0, 4, 3, 0, 0}, "length 0 of 3 tokens seen");
  // History, length, caches, states; then a state's axes and four extents.
  expect_refusal<hybrid>({1, 1 << 20, 0, 0, 1, 1, huge, 1, 1, 1},
                         "extent of a state 1099511627776");
  expect_refusal<hybrid>({1, 1, 0, 0, 1000}, "states 1000");
  expect_refusal<hybrid>({1, 1, 0, 1000, 0}, "caches 1000");
  expect_refusal<hybrid>({1, 1, 0, 0, 1, 1, 100, 1, 1, 1}, "need 448 bytes");

  // A stream that does not tell its size has the limit alone; and a limit may be raised.
  struct pipe : std::stringbuf {
    using std::stringbuf::stringbuf;
    pos_type seekoff(off_type, std::ios::seekdir, std::ios::openmode) override { return -1; }
  };
  floats c({.capacity = 1000, .head_dim = 8});
  c.append(oracle::random_tensor<float, 3>({1, 9, 8}, 1),
           oracle::random_tensor<float, 3>({1, 9, 8}, 2));
  pipe told_nothing(saved(c));
  std::istream from(&told_nothing);
  EXPECT_EQ(saved(heed::load_cache<floats>(from)), saved(c));
  std::istringstream file(saved(c));
  EXPECT_THROW((void)heed::load_cache<floats>(file, {.most_bytes = 60'000}), heed::file_error);
  file.seekg(0);
  EXPECT_EQ(saved(heed::load_cache<floats>(file, {.most_bytes = 64'000})), saved(c));
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
