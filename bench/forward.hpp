// SPDX-License-Identifier: MIT
// A benchmark of exact self-attention: data, FLOPs on visible pairs, and the call.
#pragma once

#include <optional>
#include <string>
#include <tuple>

#include "bench/harness.hpp"
#include "heed/attention.hpp"
#include "heed/cost.hpp"

namespace bench {

struct forward_shape : shape {
  index heads = 1;
  std::optional<index> value_dim{};
  heed::cost::band visible{};  ///< what the modifiers leave visible; causal() is added for `causal`

  [[nodiscard]] double flops() const {
    heed::cost::attention_shape s = heed::cost::self_attention(n, head_dim, visible);
    if (causal && !visible.right) s.visible = heed::cost::causal();
    s.query_heads = s.kv_heads = heads;
    s.value_dim = value_dim;
    return heed::cost::attention_flops(s);
  }
};

template <class T>
struct forward_data {
  explicit forward_data(const forward_shape& s)
      : q(random_tensor<T, 3>({s.heads, s.n, s.head_dim}, 1)),
        k(random_tensor<T, 3>({s.heads, s.n, s.head_dim}, 2)),
        v(random_tensor<T, 3>({s.heads, s.n, s.value_dim.value_or(s.head_dim)}, 3)),
        out(v.extents()) {}
  heed::tensor<T, 3> q, k, v, out;
  heed::workspace scratch;
};

/// `call(data, pool)` computes `data.out` with `data.scratch`.
template <class T, class Call>
void register_call(const std::string& family, const std::string& method, const forward_shape& s,
                   const Call& call) {
  const std::string name = name_of<T>(family, method, s);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    auto& data = data_of<forward_data<T>>(name, [&] { return forward_data<T>(s); });
    measure_flops<heed::accumulate_t<T>>(state, s.threads, s.flops(), data.scratch,
                                         [&] { call(data, pool_of(s.threads)); });
  })->Unit(benchmark::kMicrosecond);
}

/// heed::attention with modifiers, and causal() when the shape says so.
template <class T, class... M>
void register_attention(const std::string& family, const std::string& method,
                        const forward_shape& s, const M&... modifiers) {
  if (s.causal) {
    register_call<T>(family, method, s, [=](forward_data<T>& d, heed::thread_pool& pool) {
      heed::attention_into(pool, d.out, d.q, d.k, d.v, {.scratch = &d.scratch}, modifiers...,
                           heed::causal());
    });
  } else {
    register_call<T>(family, method, s, [=](forward_data<T>& d, heed::thread_pool& pool) {
      heed::attention_into(pool, d.out, d.q, d.k, d.v, {.scratch = &d.scratch}, modifiers...);
    });
  }
}

/// The shape of one head and one thread.
[[nodiscard]] inline forward_shape one_head(index head_dim, index n, bool causal) {
  forward_shape s;
  s.head_dim = head_dim;
  s.n = n;
  s.causal = causal;
  return s;
}

}  // namespace bench
