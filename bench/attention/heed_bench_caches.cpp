// SPDX-License-Identifier: MIT
// Decode from every cache: a token of 32 query heads a sequence against 8 KV heads of 128 channels.
//
//   decode/CACHE/DTYPE/hq:32/hkv:8/d:128/n:N/batch:B/threads:T
//
// Compare within one run: GBps counts the bytes that the cache stores, tokens the sequences served a
// second, over batch. CACHE "rotated" also rotates q, k, v and the output of each step (Hadamard).
//
//   prefix_lookup/tokens:100000/page:16    a prompt of so many tokens found in a tree of 40 branches
//   rollback/states:24/tokens:5            so many tokens taken back, 8 caches beside 24 states
#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "bench/families.hpp"
#include "bench/harness.hpp"
#include "heed/attention.hpp"
#include "heed/cache.hpp"

namespace bench {
namespace {

constexpr index query_heads = 32;
constexpr index kv_heads = 8;
constexpr index channels = 128;

struct setting {
  index n = 0;
  index batch = 1;
  index threads = 1;
};

heed::cache_extents extents(const setting& s) {
  return {.batch = s.batch, .kv_heads = kv_heads, .capacity = s.n, .head_dim = channels};
}
template <index PageSize>
heed::paged_extents pages(const setting& s) {
  return {.sequences = s.batch,
          .kv_heads = kv_heads,
          .pages = s.batch * heed::ceil_div(s.n, PageSize),
          .page_size = PageSize,
          .head_dim = channels};
}

template <class Cache>
struct cache_data {
  cache_data(const setting& s, Cache made)
      : cache(std::move(made)),
        q(random_tensor<float, 4>({s.batch, query_heads, 1, channels}, 1)),
        out(q.extents()) {
    const index step = 1024;
    const auto k = random_tensor<float, 4>({s.batch, kv_heads, step, channels}, 2);
    const auto v = random_tensor<float, 4>({s.batch, kv_heads, step, channels}, 3);
    for (index n = 0; n < s.n; n += step) {
      const index count = std::min(step, s.n - n);
      const auto part = [&](const auto& x) { return heed::as_view(x).slice(2, 0, count); };
      cache.append(part(k), part(v));
    }
  }
  Cache cache;
  heed::tensor<float, 4> q, out;
  heed::workspace scratch;
};

/// `row_bytes`: of a key and its value as they are stored.
template <class Make>
void register_cache(const std::string& cache, const std::string& dtype, const setting& s,
                    double row_bytes, const Make& make) {
  using Cache = decltype(make(s));
  const std::string name =
      "decode/" + cache + "/" + dtype + "/hq:32/hkv:8/d:128/n:" + std::to_string(s.n) +
      "/batch:" + std::to_string(s.batch) + "/threads:" + std::to_string(s.threads);
  const double bytes = row_bytes * kv_heads * static_cast<double>(s.n * s.batch) +
                       2.0 * query_heads * channels * static_cast<double>(s.batch) * sizeof(float);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    auto& d = data_of<cache_data<Cache>>(name, [&] { return cache_data<Cache>(s, make(s)); });
    measure_bytes(state, s.threads, bytes, d.scratch, [&] {
      heed::decode_into(pool_of(s.threads), d.out, d.q, d.cache, {.scratch = &d.scratch});
    });
  })->Unit(benchmark::kMicrosecond);
}

template <class T>
void register_contiguous_of(const std::string& dtype, const setting& s) {
  register_cache("contiguous", dtype, s, 2.0 * channels * sizeof(T),
                 [](const setting& x) { return heed::contiguous_cache<T>(extents(x)); });
}

/// A step that rotates what is new and, back again, what comes out.
void register_rotated(const setting& s) {
  using cache_type = heed::int4_cache;
  const std::string name = "decode/rotated/int4/hq:32/hkv:8/d:128/n:" + std::to_string(s.n) +
                           "/batch:" + std::to_string(s.batch) +
                           "/threads:" + std::to_string(s.threads);
  const double bytes = 2.0 * (channels / 2.0 + 8) * kv_heads * static_cast<double>(s.n * s.batch);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    auto& d = data_of<cache_data<cache_type>>(
        name, [&] { return cache_data<cache_type>(s, cache_type(extents(s))); });
    auto k = random_tensor<float, 4>({s.batch, kv_heads, 1, channels}, 4);
    measure_bytes(state, s.threads, bytes, d.scratch, [&] {
      heed::hadamard_rotate(d.q);
      for (int i = 0; i < 2; ++i) heed::hadamard_rotate(k);  // a key, and a value
      heed::decode_into(pool_of(s.threads), d.out, d.q, d.cache, {.scratch = &d.scratch});
      heed::hadamard_rotate(d.out);
    });
  })->Unit(benchmark::kMicrosecond);
}

void register_prefix_lookup() {
  constexpr index tokens = 100'000;
  constexpr index page = 16;
  benchmark::RegisterBenchmark("prefix_lookup/tokens:100000/page:16", [](benchmark::State& state) {
    heed::paged_cache<float> cache(
        {.sequences = 41, .pages = 1 << 16, .page_size = page, .head_dim = 1});
    heed::prefix_tree tree(cache);
    std::vector<std::int32_t> prompt(tokens);
    for (std::size_t i = 0; i < prompt.size(); ++i) {
      prompt[i] = static_cast<std::int32_t>(i * 2'654'435'761U >> 9U);
    }
    const heed::tensor<float, 3> rows({1, tokens, 1});
    cache.append(0, rows, rows);
    tree.insert(prompt, 0);
    for (index s = 1; s <= 40; ++s) {  // others leave it on the way
      const index shared = s * 2400;
      cache.fork(0, s, shared);
      const auto more = heed::as_view(rows).slice(1, 0, page);
      cache.append(s, more, more);
      std::vector<std::int32_t> other(prompt.begin(), prompt.begin() + shared);
      other.resize(static_cast<std::size_t>(shared + page), -1);
      tree.insert(other, s);
    }
    for (auto _ : state) benchmark::DoNotOptimize(tree.match(prompt));
  })->Unit(benchmark::kMicrosecond);
}

void register_rollback() {
  benchmark::RegisterBenchmark("rollback/states:24/tokens:5", [](benchmark::State& state) {
    using cache_type = heed::contiguous_cache<float>;
    heed::hybrid_memory<cache_type> memory(8);
    for (int i = 0; i < 8; ++i) {
      memory.add_cache(cache_type({.kv_heads = kv_heads, .capacity = 8, .head_dim = channels}));
    }
    for (int i = 0; i < 24; ++i) memory.add_state({1, 16, 64, 64});
    const auto rows = random_tensor<float, 4>({1, kv_heads, 1, channels}, 1);
    for (auto _ : state) {
      state.PauseTiming();
      for (int t = 0; t < 5; ++t) {
        auto step = memory.step(1);
        for (index i = 0; i < 8; ++i) step.cache(i).append(rows, rows);
        step.commit();
      }
      state.ResumeTiming();
      memory.rollback(5);
    }
  })->Unit(benchmark::kMicrosecond);
}

}  // namespace

void register_caches() {
  register_prefix_lookup();
  register_rollback();
  for (const setting& s : {setting{16'384, 1, 1}, setting{65'536, 1, 1}, setting{4096, 8, 2}}) {
    constexpr double floats = 2.0 * channels * sizeof(float);
    register_contiguous_of<float>("f32", s);
    register_cache("slots", "f32", s, floats,
                   [](const setting& x) { return heed::slot_cache<float>(extents(x)); });
    register_cache("paged16", "f32", s, floats,
                   [](const setting& x) { return heed::paged_cache<float>(pages<16>(x)); });
    register_cache("paged64", "f32", s, floats,
                   [](const setting& x) { return heed::paged_cache<float>(pages<64>(x)); });
    register_contiguous_of<heed::half>("f16", s);
    register_contiguous_of<heed::bfloat16>("bf16", s);
    register_contiguous_of<heed::float8_e4m3>("fp8", s);
    register_cache("contiguous", "int8", s, 2.0 * (channels + 8),
                   [](const setting& x) { return heed::int8_cache(extents(x)); });
    register_cache("contiguous", "int4", s, 2.0 * (channels / 2.0 + 8),
                   [](const setting& x) { return heed::int4_cache(extents(x)); });
    register_cache("groups64", "int4", s, 2.0 * (channels / 2.0 + 16),
                   [](const setting& x) { return heed::int4_cache(extents(x), 64); });
    register_cache("paged64", "int8", s, 2.0 * (channels + 8),
                   [](const setting& x) { return heed::paged_int8_cache(pages<64>(x)); });
    register_rotated(s);
    // Of keys 8 bytes a channel and 32 tokens, of values 8 a row.
    register_cache(
        "kivi", "int4", s, 2.0 * channels / 2.0 + 8.0 * channels / 32 + 8, [](const setting& x) {
          return heed::kivi_cache<4>(
              {.batch = x.batch, .kv_heads = kv_heads, .capacity = x.n, .head_dim = channels});
        });
  }
}

}  // namespace bench
