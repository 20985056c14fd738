// SPDX-License-Identifier: MIT
// Decode: one new token of 32 query heads against a cache of 8 KV heads. Bound by reading the
// cache.
#include <Eigen/Core>
#include <cmath>
#include <string>

#include "bench/families.hpp"
#include "bench/harness.hpp"
#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/cost.hpp"

namespace bench {
namespace {

constexpr index query_heads = 32;
constexpr index kv_heads = 8;

template <class T>
struct decode_data {
  explicit decode_data(const shape& s)
      : cache({.batch = 1, .kv_heads = kv_heads, .capacity = s.n, .head_dim = s.head_dim}),
        q(random_tensor<float, 4>({1, query_heads, 1, s.head_dim}, 1)),
        out(q.extents()) {
    const index step = 1024;
    const auto k = random_tensor<T, 4>({1, kv_heads, step, s.head_dim}, 2);
    const auto v = random_tensor<T, 4>({1, kv_heads, step, s.head_dim}, 3);
    for (index n = 0; n < s.n; n += step) cache.append(k, v);
  }
  heed::contiguous_cache<T> cache;
  heed::tensor<float, 4> q, out;
  heed::workspace scratch;
};

/// The bytes of the cost model: the cache once, queries and output once.
template <class T>
double bytes_of(const shape& s) {
  heed::cost::attention_shape a;
  a.query_heads = query_heads;
  a.kv_heads = kv_heads;
  a.queries = 1;
  a.keys = s.n;
  a.head_dim = s.head_dim;
  a.scalar_bytes = static_cast<index>(sizeof(T));
  return heed::cost::decode(a).bytes;
}

template <class T>
void register_contiguous(const shape& s) {
  const std::string name = name_of<T>("decode", "contiguous", s);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    auto& d = data_of<decode_data<T>>(name, [&] { return decode_data<T>(s); });
    measure_bytes(state, s.threads, bytes_of<T>(s), d.scratch, [&] {
      heed::decode_into(pool_of(s.threads), d.out, d.q, d.cache, {.scratch = &d.scratch});
    });
  })->Unit(benchmark::kMicrosecond);
}

/// The textbook on Eigen: a matrix-vector product of the keys, a softmax, one of the values, for
/// every query head.
void register_naive_eigen(const shape& s) {
  const std::string name = name_of<float>("decode", "naive_eigen", s);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    auto& d = data_of<decode_data<float>>(name, [&] { return decode_data<float>(s); });
    Eigen::VectorXf scores(s.n);
    const float scale = 1 / std::sqrt(static_cast<float>(s.head_dim));
    measure_bytes(state, 1, bytes_of<float>(s), d.scratch, [&] {
      for (index h = 0; h < query_heads; ++h) {
        const index kv = h / (query_heads / kv_heads);
        const Eigen::Map<const matrix> k(d.cache.keys(0, kv, 0).data, s.n, s.head_dim);
        const Eigen::Map<const matrix> v(d.cache.values(0, kv, 0).data, s.n, s.head_dim);
        const Eigen::Map<const Eigen::VectorXf> q(&d.q(0, h, 0, 0), s.head_dim);
        Eigen::Map<Eigen::VectorXf> out(&d.out(0, h, 0, 0), s.head_dim);
        scores.noalias() = k * q;
        scores = ((scores.array() - scores.maxCoeff()) * scale).exp();
        out.noalias() = v.transpose() * scores;
        out /= scores.sum();
      }
    });
  })->Unit(benchmark::kMicrosecond);
}

}  // namespace

void register_decode() {
  const auto at = [](index n, index threads) {
    shape s;
    s.head_dim = 128;
    s.n = n;
    s.threads = threads;
    return s;
  };
  for (const index n : {4096, 16'384, 65'536}) register_contiguous<float>(at(n, 1));
  register_contiguous<float>(at(65'536, 2));
  for (const index threads : {1, 2}) {
    register_contiguous<heed::bfloat16>(at(65'536, threads));
    register_contiguous<heed::half>(at(65'536, threads));
  }
  register_naive_eigen(at(4096, 1));
  register_naive_eigen(at(16'384, 1));
}

}  // namespace bench
