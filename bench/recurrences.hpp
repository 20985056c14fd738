// SPDX-License-Identifier: MIT
// The recurrences that heed_bench measures: inputs of every method, what a method needs, its call.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "bench/forward.hpp"
#include "heed/linear/options.hpp"

namespace bench {

/// Numbers of unit scale that repeat after a million: as many as one wants in little time.
template <int R>
[[nodiscard]] heed::tensor<float, R> repeated_tensor(
    const std::array<index, std::size_t{R}>& extents, unsigned seed) {
  constexpr index period = index{1} << 20;
  heed::tensor<float, R> t(extents);
  std::mt19937 generator(seed);
  std::normal_distribution<float> unit;
  float* const x = t.data();
  for (index i = 0; i < t.size(); ++i) x[i] = i < period ? unit(generator) : x[i - period];
  return t;
}

/// Inputs of every method: gates a token and a channel, strengths, low rank factors.
struct recurrence_data {
  explicit recurrence_data(const forward_shape& s)
      : q(repeated_tensor<3>({1, s.n, s.head_dim}, 1)),
        k(repeated_tensor<3>(q.extents(), 2)),
        v(repeated_tensor<3>(q.extents(), 3)),
        out(q.extents()),
        gate({1, s.n}),
        beta({1, s.n}),
        step({1, s.n}),
        channel_gate(q.extents()),
        a(repeated_tensor<3>(q.extents(), 4)),
        b(repeated_tensor<3>(q.extents(), 5)),
        rate({1}),
        skip({1}) {
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
      step(0, t) = 0.01F * static_cast<float>(1 + t % 7);
      for (index c = 0; c < s.head_dim; ++c) {
        channel_gate(0, t, c) = -0.01F * static_cast<float>(1 + (t + c) % 7);
      }
    }
    rate(0) = -1;
    skip(0) = 1;
  }
  heed::tensor<float, 3> q, k, v, out;
  heed::tensor<float, 2> gate, beta, step;
  heed::tensor<float, 3> channel_gate, a, b;
  heed::tensor<float, 1> rate, skip;
  heed::workspace scratch;
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

/// One method; `run` computes `data.out`, with `data.scratch`.
struct recurrence {
  std::string name;
  needs work;
  std::function<void(heed::thread_pool&, recurrence_data&, heed::linear_form)> run;
};

/// The recurrences with a matrix state.
[[nodiscard]] const std::vector<recurrence>& matrix_recurrences();

}  // namespace bench
