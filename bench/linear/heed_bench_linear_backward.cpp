// SPDX-License-Identifier: MIT
// Gradients of the recurrences with a matrix state, backward/METHOD/f32/d:D/n:N, beside the chunked
// forward pass of the same shape, backward/METHOD_forward/...: GFLOPS of each on its own products, a
// token of a head. Forward as in linear/METHOD; backward five products with a state and five of pairs
// (eight and twelve for a delta rule, eleven and 22 for low rank), states and writes computed again once.
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "bench/families.hpp"
#include "bench/recurrences.hpp"
#include "heed/linear.hpp"

namespace bench {
namespace {

using inputs = heed::matrix_state_inputs<float>;

struct gradient_data : recurrence_data {
  explicit gradient_data(const forward_shape& s)
      : recurrence_data(s),
        d_out(random_tensor<float, 3>(out.extents(), 9)),
        dq(q.extents()),
        dk(k.extents()),
        dv(v.extents()),
        d_gate(channel_gate.extents()),
        d_beta(beta.extents()),
        da(q.extents()),
        db(q.extents()) {}
  heed::tensor<float, 3> d_out, dq, dk, dv, d_gate;
  heed::tensor<float, 2> d_beta;
  heed::tensor<float, 3> da, db;
};

template <class T>
heed::view<T, 4> batched(const heed::view<T, 3>& x) {
  return {x.data(),
          {1, x.extent(0), x.extent(1), x.extent(2)},
          {0, x.stride(0), x.stride(1), x.stride(2)}};
}
template <class T>
heed::view<T, 4> a_token(const heed::view<T, 2>& x) {
  return {x.data(), {1, x.extent(0), x.extent(1), 1}, {0, x.stride(0), x.stride(1), 0}};
}

enum class gates { none, token, channel };
enum class writes { outer, delta, low_rank };

void run_backward(gradient_data& x, gates g, writes how) {
  const auto read = [](const heed::tensor<float, 3>& t) { return batched(heed::as_view(t)); };
  const auto write = [](heed::tensor<float, 3>& t) { return batched(heed::as_view(t)); };
  const auto numbers = [](const heed::tensor<float, 2>& t) { return a_token(heed::as_view(t)); };
  if (how == writes::low_rank) {
    heed::dplr_backward_inputs<float> in{read(x.q), read(x.k), read(x.v), read(x.channel_gate),
                                         read(x.a), read(x.b)};
    in.d_out = read(x.d_out);
    return heed::dplr_backward(
        pool_of(1), in,
        {write(x.dq), write(x.dk), write(x.dv), write(x.d_gate), write(x.da), write(x.db)},
        {.scratch = &x.scratch});
  }
  inputs in{read(x.q), read(x.k), read(x.v)};
  heed::matrix_state_gradients<float> to{write(x.dq), write(x.dk), write(x.dv)};
  if (g == gates::channel) {
    in.gate = read(x.channel_gate);
    to.gate = write(x.d_gate);
  } else if (g == gates::token) {
    in.gate = numbers(x.gate);
    to.gate = {x.d_gate.data(), in.gate.extents()};
  }
  if (how == writes::delta) {
    in.beta = numbers(x.beta);
    to.beta = a_token(heed::as_view(x.d_beta));
  }
  heed::matrix_state_backward(pool_of(1), in, {read(x.d_out)}, to, {.scratch = &x.scratch});
}

struct method {
  std::string name;  // of matrix_recurrences()
  gates gate;
  writes how;
  needs work;
};

}  // namespace

void register_linear_backward() {
  const std::vector<method> methods{
      {"scalar_gated", gates::token, writes::outer, {.state = 10, .pairs = 2.5}},
      {"gated", gates::channel, writes::outer, {.state = 10, .pairs = 2.5, .chunk = 16}},
      {"delta", gates::none, writes::delta, {.state = 16, .pairs = 6}},
      {"gated_delta", gates::token, writes::delta, {.state = 16, .pairs = 6}},
      {"rwkv7", gates::channel, writes::low_rank, {.state = 22, .pairs = 11, .chunk = 16}}};
  for (const index d : {64, 128}) {
    const forward_shape s = one_head(d, 2048, true);
    const std::string size = "/f32/d:" + std::to_string(d) + "/n:" + std::to_string(s.n);
    for (const method& m : methods) {
      for (const recurrence& forward : matrix_recurrences()) {
        if (forward.name != m.name) continue;
        const std::string name = "backward/" + m.name + "_forward" + size;
        benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
          auto& x = data_of<gradient_data>(name, [&] { return gradient_data(s); });
          measure_flops<float>(state, 1, forward.work.flops(s, true), x.scratch,
                               [&] { forward.run(pool_of(1), x, heed::linear_form::chunked); });
        })->Unit(benchmark::kMicrosecond);
      }
      const std::string name = "backward/" + m.name + size;
      benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
        auto& x = data_of<gradient_data>(name, [&] { return gradient_data(s); });
        measure_flops<float>(state, 1, m.work.flops(s, true), x.scratch,
                             [&] { run_backward(x, m.gate, m.how); });
      })->Unit(benchmark::kMicrosecond);
    }
  }
}

}  // namespace bench
