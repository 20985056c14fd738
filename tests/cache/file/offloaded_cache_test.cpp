// SPDX-License-Identifier: MIT
// A cache in a file: the bits of a contiguous one, however it is read; what a killed process leaves;
// files that are damaged, cut or another's.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "heed/cache/file/offloaded.hpp"

#if __has_include(<sys/wait.h>)
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cache/cache_model.hpp"
#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/cache/file/save_offloaded.hpp"
#include "heed/parallel.hpp"
#include "heed/score.hpp"
#include "support/attention_oracle.hpp"

namespace {

using heed::index;

/// A file of this process's own that goes with it.
struct temporary {
  temporary() : name(testing::TempDir() + "heed_offloaded_" + std::to_string(::getpid())) {}
  ~temporary() { std::remove(name.c_str()); }
  std::string name;
};

std::string contents(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream all;
  all << in.rdbuf();
  return all.str();
}
void put(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

template <class T, heed::offload Mode>
void check_bits() {
  const temporary file;
  const heed::offload_extents e{.batch = 2,
                                .kv_heads = 2,
                                .capacity = 900,
                                .head_dim = 24,
                                .value_dim = 19,
                                .page_size = 100};
  auto cache = heed::offloaded_cache<T, T, Mode>::create(file.name, e, 2);
  heed::contiguous_cache<T> same(
      {.batch = 2, .kv_heads = 2, .capacity = 900, .head_dim = 24, .value_dim = 19});
  const auto k = oracle::random_tensor<float, 4>({2, 2, 800, 24}, 1);
  const auto v = oracle::random_tensor<float, 4>({2, 2, 800, 19}, 2);
  heed::thread_pool pool(3);
  index at = 0;
  for (const index count : {1, 150, 49, 600}) {
    const auto part = [&](const auto& t) { return heed::as_view(t).slice(2, at, at + count); };
    cache.append(part(k), part(v));
    same.append(part(k), part(v));
    at += count;
    for (const index n : {index{1}, std::min<index>(at, 40)}) {
      const auto q = oracle::random_tensor<float, 4>({2, 4, n, 24}, 3);
      EXPECT_TRUE(oracle::same_bits(heed::decode(pool, q, cache, {}, heed::causal()),
                                    heed::decode(q, same, {}, heed::causal())))
          << at << ' ' << n;
    }
  }
  EXPECT_FALSE(cache.read_failed());
  EXPECT_FALSE(cache.try_append(k, v));
  EXPECT_THROW(cache.append(k, v), heed::capacity_error);
  EXPECT_THROW(cache.append(v, v), heed::shape_error);
  EXPECT_THROW(cache.truncate(801), heed::shape_error);
}
TEST(ParallelOffloadedCache, MappedHasTheBitsOfAContiguousOne) {
  check_bits<float, heed::offload::mapped>();
  check_bits<heed::half, heed::offload::mapped>();
}
TEST(ParallelOffloadedCache, ReadHasTheBitsOfAContiguousOne) {
  check_bits<float, heed::offload::read>();
  check_bits<heed::float8_e4m3, heed::offload::read>();
}

using cache_of_tokens = heed::offloaded_cache<float>;
constexpr cache_model::geometry g;
heed::offload_extents small() {
  return {.kv_heads = g.kv_heads,
          .capacity = 40,
          .head_dim = g.head_dim,
          .value_dim = g.value_dim,
          .page_size = 4};
}
int append(cache_of_tokens& cache, cache_model::sequence& model, int next, index count) {
  const cache_model::tokens t(g, next, count);
  if (cache.try_append(t.k, t.v)) {
    for (index i = 0; i < count; ++i) model.push_back(next + static_cast<int>(i));
  }
  return next + static_cast<int>(count);
}

RC_GTEST_PROP(OffloadedCache, HoldsTheModelAcrossOpenings, ()) {
  const temporary file;
  std::optional<cache_of_tokens> cache(cache_of_tokens::create(file.name, small(), 1));
  cache_model::sequence model;
  int next = 1;
  for (int step = 0; step < 25; ++step) {
    const int what = *rc::gen::inRange(0, 7);
    if (what < 3) {
      next = append(*cache, model, next, *rc::gen::inRange<index>(0, 9));
    } else if (what == 3) {
      const auto kept = *rc::gen::inRange<index>(0, static_cast<index>(model.size()) + 1);
      cache->truncate(kept);
      model.resize(static_cast<std::size_t>(kept));
    } else if (what == 4) {
      cache->sync();
      RC_ASSERT(cache->synced() == cache->length());
    } else if (what == 5) {
      cache.reset();  // syncs
      cache.emplace(cache_of_tokens::open(file.name, 1));
      RC_ASSERT(cache->lost() == 0);
    } else {
      // The file as a kill would leave it now: what is synced is there, and it is told what is not.
      const index synced = cache->synced();
      const index length = cache->length();
      const std::string copy = file.name + ".killed";
      put(copy, contents(file.name));
      {
        const auto left = cache_of_tokens::open(copy, 1);
        cache_model::sequence kept = model;
        kept.resize(static_cast<std::size_t>(synced));
        RC_ASSERT(cache_model::difference(left, {kept}) == "");
        RC_ASSERT(left.lost() == length - synced);
      }
      std::remove(copy.c_str());
    }
    RC_ASSERT(cache_model::difference(*cache, {model}) == "");
  }
}

// A process that is killed while it appends: all that it had synced is there.
TEST(OffloadedCache, SurvivesAKill) {
  const temporary file;
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    auto cache = cache_of_tokens::create(file.name, small());
    cache_model::sequence model;
    append(cache, model, 1, 13);
    cache.sync();
    append(cache, model, 14, 5);
    (void)!::write(ready[1], "x", 1);
    for (;;) {
      cache.truncate(15);
      append(cache, model, 16, 20);
    }
  }
  char x = 0;
  ASSERT_EQ(::read(ready[0], &x, 1), 1);
  ::usleep(3000);
  ::kill(child, SIGKILL);
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status));
  const auto cache = cache_of_tokens::open(file.name);
  EXPECT_EQ(cache.length(), 13);
  EXPECT_GT(cache.lost(), 0);
  cache_model::sequence want;
  for (int t = 1; t <= 13; ++t) want.push_back(t);
  EXPECT_EQ(cache_model::difference(cache, {want}), "");
}

/// Three threads read what no one writes, each all of it.
template <class Cache>
void check_readers(const Cache& cache) {
  const auto sum = [&] {
    double all = 0;
    std::vector<float> wide(static_cast<std::size_t>(cache.head_dim() + cache.value_dim()));
    for (index b = 0; b < cache.batch(); ++b) {
      for (index h = 0; h < cache.kv_heads(); ++h) {
        for (index j = 0; j < cache.length(b); ++j) {
          if constexpr (heed::widening_source<Cache>) {
            cache.widen_keys(b, h, {j, j + 1}, wide.data());
            cache.widen_values(b, h, {j, j + 1}, wide.data() + cache.head_dim());
          } else {
            const auto k = cache.keys(b, h, j);
            const auto v = cache.values(b, h, j);
            for (index c = 0; c < cache.head_dim(); ++c) {
              wide[static_cast<std::size_t>(c)] = static_cast<float>(k.data[c]);
            }
            for (index c = 0; c < cache.value_dim(); ++c) {
              wide[static_cast<std::size_t>(cache.head_dim() + c)] = static_cast<float>(v.data[c]);
            }
          }
          for (std::size_t i = 0; i < wide.size(); ++i) {
            all += static_cast<double>(wide[i]) * static_cast<double>(i + 1);
          }
        }
      }
    }
    return all;
  };
  const double want = sum();
  double got[3] = {};
  std::vector<std::thread> threads;
  for (double& x : got) threads.emplace_back([&] { x = sum(); });
  for (std::thread& t : threads) t.join();
  for (const double x : got) EXPECT_EQ(x, want);
  EXPECT_NE(want, 0);
}
TEST(ParallelReaders, OfOneCacheSeeTheSame) {
  const temporary file;
  const auto k = oracle::random_tensor<float, 4>({2, 2, 29, 9}, 1);
  const auto v = oracle::random_tensor<float, 4>({2, 2, 29, 4}, 2);
  const auto filled = [&](auto cache) {
    cache.append(k, v);
    return cache;
  };
  const heed::cache_extents e{
      .batch = 2, .kv_heads = 2, .capacity = 29, .head_dim = 9, .value_dim = 4};
  const heed::paged_extents pages{
      .sequences = 2, .kv_heads = 2, .pages = 16, .page_size = 4, .head_dim = 9, .value_dim = 4};
  check_readers(filled(heed::contiguous_cache<heed::half>(e)));
  check_readers(filled(heed::slot_cache<float>(e)));
  check_readers(filled(heed::paged_cache<float>(pages)));
  check_readers(filled(heed::paged_int4_cache(pages)));
  check_readers(filled(heed::int8_cache(e, 4)));
  check_readers(filled(heed::kivi_cache<4>(
      {.batch = 2, .kv_heads = 2, .capacity = 29, .head_dim = 9, .value_dim = 4, .group = 8})));
  check_readers(filled(heed::rolling_cache<float>(
      {.batch = 2, .kv_heads = 2, .sinks = 2, .window = 9, .head_dim = 9, .value_dim = 4})));
  const heed::offload_extents on_disk{
      .batch = 2, .kv_heads = 2, .capacity = 29, .head_dim = 9, .value_dim = 4, .page_size = 4};
  check_readers(filled(heed::offloaded_cache<float>::create(file.name, on_disk, 1)));
  check_readers(filled(
      heed::offloaded_cache<float, float, heed::offload::read>::create(file.name, on_disk, 1)));
}

// To a stream and back to a file or to memory, and from memory to a file.
template <class T, heed::offload Mode>
void check_saved() {
  using cache_type = heed::offloaded_cache<T, T, Mode>;
  const temporary file;
  const std::string other = file.name + ".restored";
  heed::contiguous_cache<T> same(
      {.batch = 2, .kv_heads = 2, .capacity = 90, .head_dim = 9, .value_dim = 4});
  auto cache = cache_type::create(
      file.name,
      {.batch = 2, .kv_heads = 2, .capacity = 90, .head_dim = 9, .value_dim = 4, .page_size = 16});
  for (const index count : {2, 38, 24, 26}) {
    const auto k = oracle::random_tensor<float, 4>({2, 2, count, 9}, 1);
    const auto v = oracle::random_tensor<float, 4>({2, 2, count, 4}, 2);
    cache.append(k, v);
    same.append(k, v);
    std::stringstream saved;
    std::stringstream saved_same;
    heed::save_cache(saved, cache);
    heed::save_cache(saved_same, same);
    EXPECT_EQ(saved.str(), saved_same.str());
    const auto q = oracle::random_tensor<float, 4>({2, 4, 2, 9}, 3);
    {
      auto again = heed::load_cache<cache_type>(saved, other, 7);
      EXPECT_EQ(again.synced(), same.length());
      EXPECT_TRUE(oracle::same_bits(heed::decode(q, again), heed::decode(q, same)));
    }
    EXPECT_TRUE(oracle::same_bits(heed::decode(q, cache_type::open(other)), heed::decode(q, same)));
    std::string cut = saved_same.str();
    cut.resize(cut.size() - 20);
    std::istringstream from(cut);
    EXPECT_THROW((void)heed::load_cache<cache_type>(from, other), heed::file_error);
  }
  std::remove(other.c_str());
}
TEST(OffloadedCache, IsSavedAsAContiguousOneAndRestored) {
  check_saved<heed::half, heed::offload::mapped>();
  check_saved<float, heed::offload::read>();
}

// Right checksums over extents that the file is not large enough for.
TEST(OffloadedCache, ExtentsAreComparedWithTheFile) {
  const temporary file;
  {
    auto cache = cache_of_tokens::create(file.name, small());
  }
  const std::string good = contents(file.name);
  for (std::size_t i = 2; i < 8; ++i) {  // batch, kv heads, capacity, dims, page size
    for (const std::int64_t n : {std::int64_t{1} << 20, std::int64_t{1} << 40}) {
      std::string bytes = good;
      std::memcpy(bytes.data() + 64 + 8 * i, &n, 8);
      const std::uint64_t sum = heed::detail::checksum(bytes.data() + 64, 64);
      std::memcpy(bytes.data() + 128, &sum, 8);
      put(file.name, bytes);
      EXPECT_ANY_THROW((void)cache_of_tokens::open(file.name)) << i;
    }
  }
}

TEST(OffloadedCache, OtherFilesAreRefused) {
  const temporary file;
  EXPECT_THROW((void)cache_of_tokens::open(file.name), heed::file_error);
  {
    auto cache = cache_of_tokens::create(file.name, small());
    cache_model::sequence model;
    append(cache, model, 1, 10);
  }
  const std::string good = contents(file.name);
  EXPECT_EQ(cache_of_tokens::open(file.name).length(), 10);
  EXPECT_THROW((void)heed::offloaded_cache<heed::half>::open(file.name), heed::file_error);
  for (const std::size_t n : {0U, 10U, 4096U, 8000U}) {
    put(file.name, good.substr(0, n));
    EXPECT_THROW((void)cache_of_tokens::open(file.name), heed::file_error) << n;
  }
  // A bit of the header, the geometry, the record, a row and a trailer. Beyond them, nothing reads.
  index refused = 0;
  for (std::size_t n = 0; n < good.size(); n += n < 700 ? 1 : 61) {
    std::string damaged = good;
    damaged[n] = static_cast<char>(damaged[n] ^ 4);
    put(file.name, damaged);
    const bool matters = n < 40 || (n >= 64 && n < 136) || (n >= 512 && n < 536) ||
                         (n >= 4096 && n < 4096 + 4 * 2 * (3 + 2) * 4);
    if (matters) {
      EXPECT_THROW((void)cache_of_tokens::open(file.name), heed::file_error) << n;
      ++refused;
    }
  }
  EXPECT_GT(refused, 100);
  put(file.name, std::string(20000, 'x'));
  EXPECT_THROW((void)cache_of_tokens::open(file.name), heed::file_error);
  put(file.name, good);
  EXPECT_EQ(cache_of_tokens::open(file.name).length(), 10);
}

}  // namespace
#endif
