// SPDX-License-Identifier: MIT
// Native sparse attention: four heads that share keys, causal; the whole call, and apart from it
// the selection with the log-sum-exp given, as the call makes it.
//
// FLOPs are those of the branches on the pairs a row sees, and of the selection's scores; what the
// selection computes beside them (exponentials, the choice) is not counted.
#include <algorithm>
#include <string>

#include "bench/families.hpp"
#include "bench/harness.hpp"
#include "heed/sparse.hpp"

namespace bench {

namespace {

constexpr index heads = 4;
constexpr index head_dim = 64;
constexpr heed::native_sparse_options options{.compression = {.length = 32, .stride = 16}};

struct native_sparse_data {
  explicit native_sparse_data(index n)
      : q(random_tensor<float, 4>({1, heads, n, head_dim}, 1)),
        k(random_tensor<float, 4>({1, 1, n, head_dim}, 2)),
        v(random_tensor<float, 4>({1, 1, n, head_dim}, 3)),
        gates(random_tensor<float, 4>({1, heads, n, 3}, 4)),
        out(q.extents()),
        lse({1, heads, n}),
        kc(heed::block_compression(k, options.compression)) {
    heed::attention_into(heed::into(out, lse), q, kc, kc, {}, options.compression);
  }
  heed::tensor<float, 4> q, k, v, gates, out;
  heed::tensor<float, 3> lse;
  heed::tensor<float, 4> kc;
  heed::workspace scratch;
};

struct pairs {
  double compressed = 0;
  double attended = 0;  // all branches together
};
pairs pairs_of(index n) {
  pairs p;
  for (index i = 0; i < n; ++i) {
    const index seen = options.compression.whole(i + 1);
    const index selected = std::min(i + 1, (options.count - 1) * options.block + i % options.block);
    p.compressed += static_cast<double>(seen);
    p.attended += static_cast<double>(seen + selected + std::min(i + 1, options.window));
  }
  return p;
}

void register_of(index n) {
  shape s;
  s.head_dim = head_dim;
  s.n = n;
  s.causal = true;
  const pairs p = pairs_of(n);
  const double selection_flops = 2.0 * heads * head_dim * p.compressed;
  const double flops = 4.0 * heads * head_dim * p.attended + selection_flops;
  const std::string whole = name_of<float>("sparse", "nsa", s);
  benchmark::RegisterBenchmark(whole.c_str(), [=](benchmark::State& state) {
    auto& data = data_of<native_sparse_data>(whole, [&] { return native_sparse_data(n); });
    auto kept = options;
    kept.scratch = &data.scratch;
    measure_flops<float>(state, 1, flops, data.scratch, [&] {
      heed::native_sparse_attention_into(pool_of(1), data.out, data.q, data.k, data.v, data.gates,
                                         kept);
    });
  })->Unit(benchmark::kMicrosecond);
  const std::string apart = name_of<float>("sparse", "nsa_selection", s);
  benchmark::RegisterBenchmark(apart.c_str(), [=](benchmark::State& state) {
    auto& data = data_of<native_sparse_data>(apart, [&] { return native_sparse_data(n); });
    measure_flops<float>(state, 1, selection_flops, data.scratch, [&] {
      benchmark::DoNotOptimize(heed::compressed_block_selection(
          pool_of(1), data.q, data.kc, n, {.compression = options.compression}, data.lse));
    });
  })->Unit(benchmark::kMicrosecond);
}

}  // namespace

void register_native_sparse() {
  for (const index n : {4096, 8192, 16'384, 32'768}) register_of(n);
}

}  // namespace bench
