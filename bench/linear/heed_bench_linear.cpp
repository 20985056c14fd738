// SPDX-License-Identifier: MIT
// Kernelised linear attention (elu + 1), GFLOPS on each form's own products.
#include <string>

#include "bench/families.hpp"
#include "bench/forward.hpp"
#include "heed/linear.hpp"

namespace bench {
namespace {

void register_form(const std::string& method, const forward_shape& s, double flops,
                   const heed::linear_options& options) {
  const std::string name = name_of<float>("linear", method, s);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    auto& d = data_of<forward_data<float>>(name, [&] { return forward_data<float>(s); });
    measure_flops<float>(state, s.threads, flops, d.scratch, [&] {
      heed::linear_options o = options;
      o.scratch = &d.scratch;
      heed::linear_attention_into(pool_of(s.threads), d.out, d.q, d.k, d.v, o);
    });
  })->Unit(benchmark::kMicrosecond);
}

}  // namespace

void register_linear() {
  const heed::linear_options defaults;
  for (const index d : {64, 128}) {
    for (const index n : {2048, 16'384}) {
      const auto a = heed::cost::self_attention(n, d);
      const heed::cost::chunking chunks{.features = {}, .chunk = defaults.chunk, .workers = 1};
      forward_shape s = one_head(d, n, true);
      register_form("chunked", s, heed::cost::linear_chunked(a, chunks).flops,
                    {.form = heed::linear_form::chunked});
      if (n == 2048) {
        register_form("recurrent", s, heed::cost::linear_recurrent(a).flops,
                      {.form = heed::linear_form::recurrent});
      }
      s.causal = false;
      register_form("chunked", s, heed::cost::linear_non_causal(a).flops,
                    {.causal = false, .form = heed::linear_form::chunked});
    }
  }
}

}  // namespace bench
