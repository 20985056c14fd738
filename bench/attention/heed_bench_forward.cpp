// SPDX-License-Identifier: MIT
// Exact attention in float and double, and what it is compared with.
#include "bench/baselines.hpp"
#include "bench/families.hpp"
#include "bench/forward.hpp"

namespace bench {
namespace {

void register_naive_eigen(const forward_shape& s) {
  register_call<float>(
      "forward", "naive_eigen", s, [=](forward_data<float>& d, heed::thread_pool& pool) {
        baselines::naive_eigen<float>(
            pool, heed::as_view(std::as_const(d.q))[0], heed::as_view(std::as_const(d.k))[0],
            heed::as_view(std::as_const(d.v))[0], heed::as_view(d.out)[0], s.causal, d.scratch);
      });
}

void register_naive_loops(const forward_shape& s) {
  register_call<float>(
      "forward", "naive_loops", s, [](forward_data<float>& d, heed::thread_pool& pool) {
        heed::naive_attention_into(pool, d.out, d.q, d.k, d.v, {.scratch = &d.scratch});
      });
}

}  // namespace

void register_forward() {
  for (const index d : {64, 128}) {
    for (const bool causal : {false, true}) {
      for (const index n : {512, 2048, 8192}) {
        register_attention<float>("forward", "tiled", one_head(d, n, causal));
      }
    }
  }
  for (const index d : {64, 128}) {
    for (const bool causal : {false, true}) {
      for (const index n : {512, 2048, 8192}) register_naive_eigen(one_head(d, n, causal));
    }
    for (const index n : {512, 2048}) register_naive_loops(one_head(d, n, false));
  }

  // The dense rate that a window of the same size is held against.
  register_attention<float>("forward", "tiled", one_head(64, 16'384, false));

  // Other head dims; values wider than keys.
  for (const index d : {32, 80, 96, 256}) {
    for (const bool causal : {false, true}) {
      register_attention<float>("forward", "tiled", one_head(d, 2048, causal));
    }
  }
  forward_shape wide = one_head(64, 2048, false);
  wide.value_dim = 512;
  register_attention<float>("forward", "tiled_value512", wide);

  for (const index d : {64, 128}) {
    for (const index n : {2048, 8192}) {
      register_attention<double>("forward", "tiled", one_head(d, n, false));
    }
    register_attention<double>("forward", "tiled", one_head(d, 2048, true));
  }

  // Eight heads on one thread and on two.
  for (const index d : {64, 128}) {
    for (const index n : {2048, 8192}) {
      for (const index threads : {1, 2}) {
        forward_shape s = one_head(d, n, false);
        s.heads = 8;
        s.threads = threads;
        register_attention<float>("forward", "tiled_8heads", s);
      }
    }
  }
  for (const index threads : {1, 2}) {
    forward_shape s = one_head(64, 2048, true);
    s.heads = 8;
    s.threads = threads;
    register_attention<float>("forward", "tiled_8heads", s);
  }
}

}  // namespace bench
