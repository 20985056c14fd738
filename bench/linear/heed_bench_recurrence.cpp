// SPDX-License-Identifier: MIT
// Recurrences with a matrix state, linear/METHOD/f32/d:D/n:N/form:F: GFLOPS on the products that
// the method needs, a token of a head: 4 D D for a gate, 6 D D for a delta rule, 8 D D for low
// rank, and in the chunked form (C + 1) 2 D for each product of pairs inside a chunk of C.
#include <string>

#include "bench/families.hpp"
#include "bench/recurrences.hpp"
#include "heed/linear.hpp"

namespace bench {
namespace {

using options = heed::recurrence_options;
using data = recurrence_data;

/// `call(pool, data, options)`, with the form and the data's scratch in its options.
template <class Call>
recurrence make_recurrence(const std::string& name, const needs& work, const Call& call) {
  return {name, work, [call](heed::thread_pool& pool, data& x, heed::linear_form form) {
            call(pool, x, options{.form = form, .scratch = &x.scratch});
          }};
}

}  // namespace

const std::vector<recurrence>& matrix_recurrences() {
  using pool_type = heed::thread_pool;
  static const std::vector<recurrence> all = {
      make_recurrence("retention", {},
                      [](pool_type& pool, data& x, const options& o) {
                        heed::retention_into(pool, x.out, x.q, x.k, x.v, o);
                      }),
      make_recurrence("scalar_gated", {},
                      [](pool_type& pool, data& x, const options& o) {
                        heed::scalar_gated_attention_into(pool, x.out, x.q, x.k, x.v, x.gate, o);
                      }),
      make_recurrence("ssd", {},
                      [](pool_type& pool, data& x, const options& o) {
                        heed::ssd_into(pool, x.out, x.q, x.k, x.v, x.step, x.rate, x.skip, o);
                      }),
      make_recurrence("gated", {.chunk = 16},
                      [](pool_type& pool, data& x, const options& o) {
                        heed::gated_attention_into(pool, x.out, x.q, x.k, x.v, x.channel_gate, o);
                      }),
      make_recurrence("delta", {.state = 6, .pairs = 2},
                      [](pool_type& pool, data& x, const options& o) {
                        heed::delta_attention_into(pool, x.out, x.q, x.k, x.v, x.beta, o);
                      }),
      make_recurrence("gated_delta", {.state = 6, .pairs = 2},
                      [](pool_type& pool, data& x, const options& o) {
                        heed::gated_delta_attention_into(pool, x.out, x.q, x.k, x.v, x.gate, x.beta,
                                                         o);
                      }),
      make_recurrence("rwkv7", {.state = 8, .pairs = 4, .chunk = 16},
                      [](pool_type& pool, data& x, const options& o) {
                        heed::rwkv7_into(pool, x.out, x.q, x.k, x.v, x.channel_gate, x.a, x.b, o);
                      })};
  return all;
}

void register_recurrence() {
  for (const index d : {64, 128}) {
    for (const index n : {2048, 16'384}) {
      for (const recurrence& method : matrix_recurrences()) {
        for (const auto form : {heed::linear_form::chunked, heed::linear_form::recurrent}) {
          const bool chunked = form == heed::linear_form::chunked;
          if (!chunked && n > 2048) continue;
          const forward_shape s = one_head(d, n, true);
          const std::string name = "linear/" + method.name + "/f32/d:" + std::to_string(d) +
                                   "/n:" + std::to_string(n) +
                                   (chunked ? "/form:chunked" : "/form:recurrent");
          benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
            auto& x = data_of<data>(name, [&] { return data(s); });
            measure_flops<float>(state, 1, method.work.flops(s, chunked), x.scratch,
                                 [&] { method.run(pool_of(1), x, form); });
          })->Unit(benchmark::kMicrosecond);
        }
      }
    }
  }
}

}  // namespace bench
