// SPDX-License-Identifier: MIT
// Attention among tokens that a hash or a centroid puts together, and the choosing apart.
//
//   sparse/lsh             four rounds of chunks of 128, n / 128 buckets
//   sparse/lsh_hash        the hashes those take, as pairs of hashes
//   sparse/routing         clusters of 512 tokens, n / 512 of them
//   sparse/routing_select  the routes those take, of queries and of keys
//
// GFLOPS count the pairs that rounds or clusters meet and a causal call sees (of clusters half),
// each as often as it is met; the hashes' and routes' count their products. What choosing costs of
// the whole is the ratio of the two times.
#include <algorithm>

#include "bench/families.hpp"
#include "bench/forward.hpp"
#include "heed/sparse.hpp"

namespace bench {

namespace {

constexpr index rounds = 4;
constexpr index chunk = 128;
constexpr index window = 512;

heed::lsh_options hash_options(index n) {
  const index buckets = n / chunk;
  return {.rounds = rounds, .buckets = buckets, .factor = buckets >= 128 ? 16 : 4};
}

/// Pairs of the rounds: the tokens of a bucket in a token's own chunk and the one before, of a
/// causal call those that do not come after it.
index pairs_met(const heed::tensor<index, 4>& buckets, bool causal) {
  index pairs = 0;
  for (index r = 0; r < buckets.extent(2); ++r) {
    const index n = buckets.extent(3);
    std::vector<index> sorted(&buckets(0, 0, r, 0), &buckets(0, 0, r, 0) + n);
    std::sort(sorted.begin(), sorted.end());
    for (index i = 0; i < n; ++i) {
      const auto [first, last] =
          std::equal_range(sorted.begin(), sorted.end(), sorted[static_cast<std::size_t>(i)]);
      const index end = std::min<index>(last - sorted.begin(), (i / chunk + 1) * chunk);
      pairs +=
          (causal ? i + 1 : end) - std::max<index>(first - sorted.begin(), (i / chunk - 1) * chunk);
    }
  }
  return pairs;
}

double flops_of(index pairs, index d) {
  return 4.0 * static_cast<double>(pairs) * static_cast<double>(d);
}

/// `call(data, pool)` with the data's own flops.
template <class Data, class Call>
void register_sorted_call(const std::string& method, const forward_shape& s, const Call& call) {
  const std::string name = name_of<float>("sparse", method, s);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    auto& data = data_of<Data>(name, [&] { return Data(s); });
    measure_flops<float>(state, s.threads, data.flops(method), data.scratch,
                         [&] { call(data, pool_of(s.threads)); });
  })->Unit(benchmark::kMicrosecond);
}

struct lsh_data : forward_data<float> {
  explicit lsh_data(const forward_shape& f)
      : forward_data<float>(f),
        s(f),
        keys(heed::unit_keys(q)),
        buckets(heed::lsh_buckets(pool_of(1), q, hash_options(f.n))) {}
  [[nodiscard]] double flops(const std::string& method) const {
    if (method == "lsh") return flops_of(pairs_met(buckets, s.causal), s.head_dim);
    const heed::lsh_options o = hash_options(s.n);
    const index directions = (o.buckets / o.factor + o.factor) / 2;
    return 2.0 * static_cast<double>(rounds * s.n * directions * s.head_dim);
  }
  forward_shape s;
  heed::tensor<float, 3> keys;
  heed::tensor<index, 4> buckets;
};

struct routing_data : forward_data<float> {
  explicit routing_data(const forward_shape& f)
      : forward_data<float>(f),
        s(f),
        centroids(
            heed::routing_centroids(pool_of(1), {.clusters = f.n / window, .steps = 1}, q, k)),
        queries(heed::route_tokens(pool_of(1), q, centroids, window)),
        keys_of(heed::route_tokens(pool_of(1), k, centroids, window)) {}
  [[nodiscard]] double flops(const std::string& method) const {
    if (method == "routing") return flops_of(s.n * window / (s.causal ? 2 : 1), s.head_dim);
    return 4.0 * static_cast<double>(s.n * (s.n / window) * s.head_dim);
  }
  forward_shape s;
  heed::tensor<float, 3> centroids;
  heed::tensor<index, 4> queries;
  heed::tensor<index, 4> keys_of;
};

}  // namespace

void register_sorted() {
  for (const index n : {4096, 8192, 16'384, 32'768}) {
    for (const bool causal : {false, true}) {
      const forward_shape s = one_head(64, n, causal);
      register_sorted_call<lsh_data>("lsh", s, [causal](lsh_data& d, heed::thread_pool& pool) {
        const heed::lsh_attention_options lsh{.chunk = chunk, .shared_qk = causal};
        const heed::attention_options o{.scratch = &d.scratch};
        if (causal) {
          heed::lsh_attention_into(pool, d.out, d.q, d.keys, d.v, d.buckets, d.buckets, lsh, o,
                                   heed::causal());
        } else {
          heed::lsh_attention_into(pool, d.out, d.q, d.keys, d.v, d.buckets, d.buckets, lsh, o);
        }
      });
      register_sorted_call<routing_data>(
          "routing", s, [causal](routing_data& d, heed::thread_pool& pool) {
            const heed::attention_options o{.scratch = &d.scratch};
            if (causal) {
              heed::routing_attention_into(pool, d.out, d.q, d.k, d.v, d.queries, d.keys_of, o,
                                           heed::causal());
            } else {
              heed::routing_attention_into(pool, d.out, d.q, d.k, d.v, d.queries, d.keys_of, o);
            }
          });
    }
    const forward_shape s = one_head(64, n, false);
    register_sorted_call<lsh_data>("lsh_hash", s, [n](lsh_data& d, heed::thread_pool& pool) {
      d.buckets = heed::lsh_buckets(pool, d.q, hash_options(n));
    });
    register_sorted_call<routing_data>(
        "routing_select", s, [](routing_data& d, heed::thread_pool& pool) {
          d.queries = heed::route_tokens(pool, d.q, d.centroids, window);
          d.keys_of = heed::route_tokens(pool, d.k, d.centroids, window);
        });
  }
}

}  // namespace bench
