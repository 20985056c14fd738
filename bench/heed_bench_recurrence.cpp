// SPDX-License-Identifier: MIT
// Recurrences with a matrix state, linear/METHOD/f32/d:D/n:N/form:F: GFLOPS on the products that
// the method needs, a token of a head: 4 D D for a gate, 6 D D for a delta rule, 8 D D for low
// rank, and in the chunked form (C + 1) 2 D for each product of pairs inside a chunk of C.
#include <string>

#include "families.hpp"
#include "forward.hpp"
#include "heed/linear.hpp"

namespace bench {
namespace {

/// Inputs of every method: gates a token and a channel, strengths, low rank factors.
struct recurrence_data : forward_data<float> {
  explicit recurrence_data(const forward_shape& s)
      : forward_data<float>(s),
        gate({1, s.n}),
        beta({1, s.n}),
        channel_gate({1, s.n, s.head_dim}),
        a(random_tensor<float, 3>({1, s.n, s.head_dim}, 4)),
        b(random_tensor<float, 3>({1, s.n, s.head_dim}, 5)) {
    // Keys, and low rank factors, of a length that keeps a state bounded.
    const auto shorten = [&](heed::tensor<float, 3>& x, float factor) {
      for (index i = 0; i < x.size(); ++i) {
        x.data()[i] *= factor / static_cast<float>(s.head_dim);
      }
    };
    shorten(k, 4);
    shorten(a, 1);
    shorten(b, 1);
    for (index t = 0; t < s.n; ++t) {
      gate(0, t) = -0.01F * static_cast<float>(1 + t % 7);
      beta(0, t) = 0.5F;
      for (index c = 0; c < s.head_dim; ++c) {
        channel_gate(0, t, c) = -0.01F * static_cast<float>(1 + (t + c) % 7);
      }
    }
  }
  heed::tensor<float, 2> gate, beta;
  heed::tensor<float, 3> channel_gate, a, b;
};

/// What one token of one head costs: `state` products with the state, `pairs` inside the chunk.
struct needs {
  double state = 4;
  double pairs = 1;
  double chunk = 64;

  [[nodiscard]] double flops(const forward_shape& s, bool chunked) const {
    const auto d = static_cast<double>(s.head_dim);
    return static_cast<double>(s.n) * (state * d * d + (chunked ? pairs * (chunk + 1) * 2 * d : 0));
  }
};

template <class Call>
void register_method(const std::string& method, index d, index n, const needs& work,
                     const Call& call) {
  for (const auto form : {heed::linear_form::chunked, heed::linear_form::recurrent}) {
    const bool chunked = form == heed::linear_form::chunked;
    if (!chunked && n > 2048) continue;
    const forward_shape s = one_head(d, n, true);
    const std::string name = "linear/" + method + "/f32/d:" + std::to_string(d) +
                             "/n:" + std::to_string(n) +
                             (chunked ? "/form:chunked" : "/form:recurrent");
    benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
      auto& data = data_of<recurrence_data>(name, [&] { return recurrence_data(s); });
      measure_flops<float>(state, 1, work.flops(s, chunked), data.scratch, [&] {
        call(pool_of(1), data, heed::recurrence_options{.form = form, .scratch = &data.scratch});
      });
    })->Unit(benchmark::kMicrosecond);
  }
}

}  // namespace

void register_recurrence() {
  using options = heed::recurrence_options;
  using data = recurrence_data;
  for (const index d : {64, 128}) {
    for (const index n : {2048, 16'384}) {
      register_method("retention", d, n, {}, [](auto& pool, data& x, const options& o) {
        heed::retention_into(pool, x.out, x.q, x.k, x.v, o);
      });
      register_method("scalar_gated", d, n, {}, [](auto& pool, data& x, const options& o) {
        heed::scalar_gated_attention_into(pool, x.out, x.q, x.k, x.v, x.gate, o);
      });
      register_method("gated", d, n, {.chunk = 16}, [](auto& pool, data& x, const options& o) {
        heed::gated_attention_into(pool, x.out, x.q, x.k, x.v, x.channel_gate, o);
      });
      register_method("delta", d, n, {.state = 6, .pairs = 2},
                      [](auto& pool, data& x, const options& o) {
                        heed::delta_attention_into(pool, x.out, x.q, x.k, x.v, x.beta, o);
                      });
      register_method(
          "gated_delta", d, n, {.state = 6, .pairs = 2}, [](auto& pool, data& x, const options& o) {
            heed::gated_delta_attention_into(pool, x.out, x.q, x.k, x.v, x.gate, x.beta, o);
          });
      register_method("rwkv7", d, n, {.state = 8, .pairs = 4, .chunk = 16},
                      [](auto& pool, data& x, const options& o) {
                        heed::rwkv7_into(pool, x.out, x.q, x.k, x.v, x.channel_gate, x.a, x.b, o);
                      });
    }
  }
}

}  // namespace bench
