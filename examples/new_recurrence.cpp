// SPDX-License-Identifier: MIT
// A recurrence of your own: the matrix memory of an xLSTM without its normaliser, with a forget
// gate and an input gate a token.
//
//   S = exp(f) S + i k v',   out = S'q
//
// One struct says what differs from plain linear attention. Forms (recurrent, chunked, quadratic),
// state, grouped heads, ragged batches, scalars, strides and threads come with it.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <heed/linear.hpp>
#include <heed/parallel.hpp>
#include <vector>

struct matrix_memory_method : heed::matrix_method<matrix_memory_method, 5> {
  template <class Call, class Forget, class Input>
  static void describe(Call& call, const Forget& f, const Input& i) {
    call.gate_by_token("f", f);                          // natural log of the decay
    call.core.value_scale = call.token_numbers("i", i);  // multiplies v
    call.default_scale = 1;
  }
};
inline constexpr heed::linear_function<matrix_memory_method> matrix_memory{};

int main() {
  const heed::index tokens = 300, d = 16;
  heed::tensor<float, 2> q({tokens, d}), k({tokens, d}), v({tokens, d});
  heed::tensor<float, 1> f({tokens}), in({tokens});
  for (heed::index i = 0; i < q.size(); ++i) {
    q.data()[i] = std::sin(static_cast<float>(i));
    k.data()[i] = std::cos(static_cast<float>(3 * i));
    v.data()[i] = std::sin(static_cast<float>(7 * i));
  }
  for (heed::index t = 0; t < tokens; ++t) {
    f(t) = -0.1F * static_cast<float>(t % 5);
    in(t) = 0.5F + 0.5F * std::cos(static_cast<float>(t));
  }

  // The definition, in double.
  std::vector<double> want(static_cast<std::size_t>(tokens * d));
  std::vector<double> state(static_cast<std::size_t>(d * d));
  for (heed::index t = 0; t < tokens; ++t) {
    for (heed::index a = 0; a < d; ++a) {
      for (heed::index c = 0; c < d; ++c) {
        double& s = state[static_cast<std::size_t>(a * d + c)];
        s = std::exp(double(f(t))) * s + double(in(t)) * double(k(t, a)) * double(v(t, c));
        want[static_cast<std::size_t>(t * d + c)] += double(q(t, a)) * s;
      }
    }
  }

  double worst = 0;
  for (const auto form :
       {heed::linear_form::recurrent, heed::linear_form::chunked, heed::linear_form::parallel}) {
    const auto out = matrix_memory(q, k, v, f, in, heed::recurrence_options{.form = form});
    double difference = 0;
    for (heed::index i = 0; i < out.size(); ++i) {
      difference =
          std::max(difference, std::abs(double(out.data()[i]) - want[static_cast<std::size_t>(i)]));
    }
    std::printf("form %d differs from the definition by %.1e\n", static_cast<int>(form),
                difference);
    worst = std::max(worst, difference);
  }
  return worst < 1e-5 ? 0 : 1;
}
