// SPDX-License-Identifier: MIT
// Sparse patterns: the rate on visible blocks of 128 x 128, to be held against that of
// forward/tiled, and time over n, which is linear where the pattern has a fixed width.
//
// A partial block counts as a whole one. Building a pattern is not timed here, but apart.
#include <memory>
#include <vector>

#include "bench/families.hpp"
#include "bench/forward.hpp"
#include "heed/sparse.hpp"

namespace bench {

namespace {

heed::pattern_extents blocks_of_one_head(index n) { return {1, 1, n, n, 128, 128}; }

/// A pattern of this machine's memory, shared by the copies of a benchmark.
using shared_pattern = std::shared_ptr<const heed::block_pattern>;

template <class M>
shared_pattern pattern_of(index n, const M& mask) {
  return std::make_shared<heed::block_pattern>(pool_of(1), blocks_of_one_head(n), mask);
}

/// `mask(pattern)` is what attention is called with; made when the benchmark runs.
template <class Make, class Mask>
void register_sparse(const std::string& method, index d, index n, const Make& make,
                     const Mask& mask) {
  const forward_shape s = one_head(d, n, false);
  const std::string name = name_of<float>("sparse", method, s);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    struct sparse_data : forward_data<float> {
      sparse_data(const forward_shape& f, shared_pattern p)
          : forward_data<float>(f), pattern(std::move(p)) {}
      shared_pattern pattern;
    };
    auto& data = data_of<sparse_data>(name, [&] { return sparse_data(s, make(n)); });
    state.counters["density"] = data.pattern->density();
    measure_flops<float>(state, 1, data.pattern->flops(d, d), data.scratch, [&] {
      heed::attention_into(pool_of(1), data.out, data.q, data.k, data.v, {.scratch = &data.scratch},
                           mask(*data.pattern));
    });
  })->Unit(benchmark::kMicrosecond);
}

template <class M>
void register_analytic(const std::string& method, index d, index n, const M& mask) {
  register_sparse(
      method, d, n, [mask](index tokens) { return pattern_of(tokens, mask); },
      [mask](const heed::block_pattern&) { return mask; });
}

/// Whose work is linear in n.
void register_fixed_width(index d, index n) {
  const auto listed = [](const heed::block_pattern& p) { return heed::blocks(p); };
  register_sparse(
      "big_bird", d, n,
      [](index tokens) {
        return std::make_shared<heed::block_pattern>(
            heed::big_bird(blocks_of_one_head(tokens), {.window = 3, .global = 2, .random = 3}));
      },
      listed);
  register_sparse(
      "window_blocks", d, n,
      [](index tokens) {
        return std::make_shared<heed::block_pattern>(whole_blocks(
            heed::block_pattern(pool_of(1), blocks_of_one_head(tokens), heed::window{511, 511})));
      },
      listed);
  register_analytic("longformer", d, n, heed::longformer(512, 128));
}

void register_patterns(index d, index n) {
  register_fixed_width(d, n);
  register_analytic("fixed", d, n, heed::fixed_pattern{.stride = 1024, .summary = 128});
}

}  // namespace

void register_sparse() {
  for (const index n : {4096, 16'384, 65'536}) register_patterns(64, n);
  register_fixed_width(64, 262'144);
  register_patterns(128, 16'384);
}

}  // namespace bench
