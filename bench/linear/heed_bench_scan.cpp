// SPDX-License-Identifier: MIT
// Diagonal scans and the causal convolution, linear/METHOD/f32/channels:C[/states:S]/n:N: how near
// they come to their arithmetic's floor.
//
// floor = (exponentials / their rate + fused multiply-adds / their rate) / time, both rates
// measured beside the calls. Not counted: multiplications, divisions, and moving the data. A token
// and channel of S states takes
//
//   selective_scan        S exponentials        exp(dt A)
//                         2 S multiply-adds     decay and write, reading
//   selective_scan_gated  2 exponentials more   softplus(dt), silu(z)
//                         1 multiply-add more   the skip D x
//   hgrn                  1 and 1
//   rwkv4                 1 and 4
//   causal_convolution    1 (silu) and 4 taps
//
// and METHOD_backward, what is computed again once in it,
//
//   selective_scan        S exponentials, 8 S multiply-adds
//   hgrn                  1 and 2
//   rwkv4                 7 and 13
//   causal_convolution    1 and 3 x 4 taps
#include <functional>
#include <string>

#include "bench/exponential_probe.hpp"
#include "bench/families.hpp"
#include "bench/harness.hpp"
#include "heed/linear.hpp"

namespace bench {
namespace {

constexpr index states = 16;

struct scan_data {
  scan_data(index n, index channels)
      : x(random_tensor<float, 3>({1, n, channels}, 1)),
        gate(random_tensor<float, 3>(x.extents(), 2)),
        step(x.extents()),
        out(x.extents()),
        write(random_tensor<float, 3>({1, n, states}, 3)),
        read(random_tensor<float, 3>(write.extents(), 4)),
        rates({channels, states}),
        taps(random_tensor<float, 2>({channels, 4}, 5)),
        by_channel(random_tensor<float, 1>({channels}, 6)),
        d_out(random_tensor<float, 3>(x.extents(), 7)),
        dx(x.extents()),
        d_gate(x.extents()),
        d_write({1, n, 1, states}),
        d_read(d_write.extents()),
        d_rates(rates.extents()),
        d_taps(taps.extents()),
        d_by_channel(by_channel.extents()) {
    for (index i = 0; i < x.size(); ++i) {
      gate.data()[i] = -std::abs(gate.data()[i]);
      step.data()[i] = 0.01F * static_cast<float>(1 + i % 7);
    }
    for (index c = 0; c < channels; ++c) {
      for (index i = 0; i < states; ++i) rates(c, i) = -static_cast<float>(1 + i);
    }
  }
  heed::tensor<float, 3> x, gate, step, out, write, read;
  heed::tensor<float, 2> rates, taps;
  heed::tensor<float, 1> by_channel;
  heed::tensor<float, 3> d_out, dx, d_gate;
  heed::tensor<float, 4> d_write, d_read;
  heed::tensor<float, 2> d_rates, d_taps;
  heed::tensor<float, 1> d_by_channel;
  heed::workspace scratch;
};

template <class T>
[[nodiscard]] heed::view<T, 4> one_group(const heed::view<T, 3>& x) {
  return {x.data(),
          {x.extent(0), x.extent(1), 1, x.extent(2)},
          {x.stride(0), x.stride(1), 0, x.stride(2)}};
}

/// Of one token and channel.
struct arithmetic {
  double exponentials = 0;
  double multiply_adds = 0;
};

/// `tensors` of the size of x are read or written.
void register_method(const std::string& method, index channels, index n, const arithmetic& needs,
                     double tensors, const std::function<void(scan_data&)>& call) {
  const std::string name = "linear/" + method + "/n:" + std::to_string(n);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    auto& data = data_of<scan_data>(name, [&] { return scan_data(n, channels); });
    const auto numbers = static_cast<double>(n * channels);
    const auto floors_per_second = [&] {
      const double seconds = needs.exponentials / probes::exponential_rate<float>() +
                             2 * needs.multiply_adds / probes::fma_peak<float>();
      return 1 / (numbers * seconds);
    };
    const measured m = run_segments(state, floors_per_second, [&] { call(data); });
    state.counters["seconds"] = m.seconds;
    state.counters["floor"] = 1 / (m.seconds * m.probe);
    state.counters["GBps"] = tensors * numbers * sizeof(float) / m.seconds * 1e-9;
    state.counters["tokens"] = static_cast<double>(n) / m.seconds;
    state.counters["workspace"] = static_cast<double>(data.scratch.size());
    if (m.shared) state.counters["shared"] = 1;
  })->Unit(benchmark::kMicrosecond);
}

void register_backward(const std::string& shape, const std::string& with_states, index channels,
                       index n) {
  using heed::as_view;
  constexpr double s = states;
  register_method(
      "selective_scan_backward" + with_states, channels, n, {s, 8 * s}, 7, [](scan_data& d) {
        heed::selective_scan_backward_inputs<float> in{
            as_view(d.x), as_view(d.step), as_view(d.rates),
            one_group<const float>(as_view(d.write)), one_group<const float>(as_view(d.read))};
        in.d_out = as_view(d.d_out);
        heed::selective_scan_backward(pool_of(1), in,
                                      {as_view(d.dx), as_view(d.d_gate), as_view(d.d_rates),
                                       as_view(d.d_write), as_view(d.d_read)},
                                      {.scratch = &d.scratch});
      });
  register_method("hgrn_backward" + shape, channels, n, {1, 2}, 7, [](scan_data& d) {
    const heed::hgrn_backward_inputs<float> in{as_view(d.x), as_view(d.gate), {}, as_view(d.d_out)};
    heed::hgrn_backward(pool_of(1), in, {as_view(d.dx), as_view(d.d_gate)},
                        {.scratch = &d.scratch});
  });
  register_method("rwkv4_backward" + shape, channels, n, {7, 13}, 7, [](scan_data& d) {
    const heed::rwkv4_backward_inputs<float> in{as_view(d.gate), as_view(d.x),
                                                as_view(d.by_channel), as_view(d.by_channel),
                                                as_view(d.d_out)};
    heed::rwkv4_backward(pool_of(1), in,
                         {as_view(d.d_gate), as_view(d.dx), as_view(d.d_by_channel)},
                         {.scratch = &d.scratch});
  });
  register_method("causal_convolution_backward" + shape, channels, n, {1, 12}, 3, [](scan_data& d) {
    const auto turned = [](auto& t) { return as_view(t).swap_axes(1, 2); };
    heed::convolution_backward_inputs<float> in{turned(d.x), as_view(d.taps)};
    in.silu = true;
    in.d_out = turned(d.d_out);
    heed::causal_convolution_backward(pool_of(1), in, {turned(d.dx), as_view(d.d_taps)},
                                      {.scratch = &d.scratch});
  });
}

void register_scans(index channels, index n) {
  const std::string shape = "/f32/channels:" + std::to_string(channels);
  const std::string with_states = shape + "/states:" + std::to_string(states);
  constexpr double s = states;
  register_method("selective_scan" + with_states, channels, n, {s, 2 * s}, 3, [](scan_data& d) {
    heed::selective_scan_options<float> o;
    o.scratch = &d.scratch;
    heed::selective_scan_into(pool_of(1), d.out, d.x, d.step, d.rates, d.write, d.read, o);
  });
  register_method(
      "selective_scan_gated" + with_states, channels, n, {s + 2, 2 * s + 1}, 4, [](scan_data& d) {
        heed::selective_scan_options<float> o;
        o.skip = heed::as_view(d.by_channel);
        o.gate = heed::as_view(d.gate);
        o.softplus = true;
        o.scratch = &d.scratch;
        heed::selective_scan_into(pool_of(1), d.out, d.x, d.step, d.rates, d.write, d.read, o);
      });
  register_method("hgrn" + shape, channels, n, {1, 1}, 3, [](scan_data& d) {
    heed::hgrn_into(pool_of(1), d.out, d.x, d.gate, heed::scan_options{.scratch = &d.scratch});
  });
  register_method("rwkv4" + shape, channels, n, {1, 4}, 3, [](scan_data& d) {
    heed::rwkv4_into(pool_of(1), d.out, d.gate, d.x, d.by_channel, d.by_channel,
                     heed::scan_options{.scratch = &d.scratch});
  });
  register_method("causal_convolution" + shape, channels, n, {1, 4}, 2, [](scan_data& d) {
    heed::causal_convolution_into(pool_of(1), heed::as_view(d.out).swap_axes(1, 2),
                                  heed::as_view(d.x).swap_axes(1, 2), d.taps,
                                  {.silu = true, .scratch = &d.scratch});
  });
  register_backward(shape, with_states, channels, n);
}

}  // namespace

void register_scan() {
  for (const index n : {2048, 16'384}) {
    for (const index channels : {64, 1024}) register_scans(channels, n);
  }
}

}  // namespace bench
