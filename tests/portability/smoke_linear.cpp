// SPDX-License-Identifier: MIT
// Linear attention and recurrences: the chunked form beside the token by token form, and both
// beside loops in double where those are a few lines.
#include <heed/linear.hpp>

#include "smoke.hpp"

namespace smoke {
namespace {

using heed::index;
constexpr index n = 150;
constexpr index d = 24;

void kernelised() {
  const auto q = numbers<float, 4>({1, 1, n, d}, 21);
  const auto k = numbers<float, 4>({1, 1, n, d}, 22);
  const auto v = numbers<float, 4>({1, 1, n, d}, 23);
  const auto phi = [](float x) { return x > 0 ? double(x) + 1 : std::exp(double(x)); };
  heed::tensor<float, 4> want({1, 1, n, d});
  for (index i = 0; i < n; ++i) {
    double sum[d] = {};
    double total = 1e-6;
    for (index j = 0; j <= i; ++j) {
      double weight = 0;
      for (index c = 0; c < d; ++c) weight += phi(q(0, 0, i, c)) * phi(k(0, 0, j, c));
      total += weight;
      for (index c = 0; c < d; ++c) sum[c] += weight * double(v(0, 0, j, c));
    }
    for (index c = 0; c < d; ++c) want(0, 0, i, c) = static_cast<float>(sum[c] / total);
  }
  report("linear attention", "float",
         difference(heed::linear_attention(q, k, v, {.causal = true}), want),
         allowed<float>(n + d));
}

template <class T>
void delta_rule() {
  const auto q = numbers<T, 4>({1, 2, n, d}, 24);
  auto k = numbers<T, 4>({1, 2, n, d}, 25);
  const auto v = numbers<T, 4>({1, 2, n, d}, 26);
  auto gate = numbers<T, 3>({1, 2, n}, 27);
  auto beta = numbers<T, 3>({1, 2, n}, 28);
  for (index i = 0; i < k.size(); ++i) k.data()[i] = static_cast<T>(double(k.data()[i]) / 4);
  for (index i = 0; i < gate.size(); ++i) {
    gate.data()[i] = static_cast<T>((double(gate.data()[i]) - 1) / 8);  // -1/4 to 0
    beta.data()[i] = static_cast<T>((double(beta.data()[i]) + 1) / 2);  // 0 to 1
  }
  heed::tensor<T, 4> want({1, 2, n, d});
  for (index h = 0; h < 2; ++h) {
    double state[d][d] = {};
    for (index t = 0; t < n; ++t) {
      for (index j = 0; j < d; ++j) {
        double old = 0;
        for (index i = 0; i < d; ++i) {
          state[i][j] *= std::exp(double(gate(0, h, t)));
          old += state[i][j] * double(k(0, h, t, i));
        }
        const double written = double(beta(0, h, t)) * (double(v(0, h, t, j)) - old);
        double read = 0;
        for (index i = 0; i < d; ++i) {
          state[i][j] += double(k(0, h, t, i)) * written;
          read += state[i][j] * double(q(0, h, t, i));
        }
        want(0, h, t, j) = static_cast<T>(read / std::sqrt(double(d)));
      }
    }
  }
  for (const auto form : {heed::linear_form::recurrent, heed::linear_form::chunked}) {
    const heed::recurrence_options options{.form = form};
    report(form == heed::linear_form::chunked ? "gated delta rule, chunked" : "gated delta rule",
           name_of<T>(),
           difference(heed::gated_delta_attention(q, k, v, gate, beta, options), want),
           allowed<T>(n + 2 * d));
  }
}

void scanned() {
  const auto x = numbers<float, 3>({1, n, d}, 29);
  auto gate = numbers<float, 3>({1, n, d}, 30);
  for (index i = 0; i < gate.size(); ++i) gate.data()[i] -= 1;  // -2 to 0
  heed::tensor<float, 3> want({1, n, d});
  double state[d] = {};
  for (index t = 0; t < n; ++t) {
    for (index c = 0; c < d; ++c) {
      state[c] = std::exp(double(gate(0, t, c))) * state[c] + double(x(0, t, c));
      want(0, t, c) = static_cast<float>(state[c]);
    }
  }
  // Sums of at most a few numbers below 1, for the gates forget quickly; 100 roundings are far off.
  report("scan of channels (HGRN)", "float", difference(heed::hgrn(x, gate), want),
         allowed<float>(100));
}

void convolved() {
  const auto x = numbers<heed::half, 3>({1, d, n}, 31);
  const auto weight = numbers<heed::half, 2>({d, 4}, 32);
  heed::tensor<heed::half, 3> want({1, d, n});
  for (index c = 0; c < d; ++c) {
    for (index t = 0; t < n; ++t) {
      double sum = 0;
      for (index j = 0; j < 4; ++j) {
        if (t + j >= 3) sum += double(weight(c, j)) * double(x(0, c, t + j - 3));
      }
      want(0, c, t) = static_cast<heed::half>(static_cast<float>(sum));
    }
  }
  // Results are below 4: a rounding to half is four times that of numbers below 1.
  report("causal convolution", "half", difference(heed::causal_convolution(x, weight), want),
         4 * allowed<heed::half>(5));
}

}  // namespace

void linear_family() {
  kernelised();
  delta_rule<float>();
  delta_rule<double>();
  scanned();
  convolved();
}

}  // namespace smoke
