// SPDX-License-Identifier: MIT
// The textbook gradient of a depthwise causal convolution.
//
//   s_t = bias + sum_j weight_j x_(t + j - (W-1)),  y_t = s_t or silu(s_t)
//   ds_t = d_out_t, or d_out_t silu'(s_t);  d_bias = sum_t ds_t;  dweight_j = sum_t ds_t x_(...)
//   dx_u = sum_j weight_j ds_(u - j + W-1): of the inputs before the first token too, the past
//
// x, d_out, dx [batch, channels, tokens]; weight [channels, W]; bias [channels]; past and its
// gradient [batch, channels, W-1]. The next state is the last W-1 of [past, x]: its gradient,
// d_final_state, is added to those. Gradients of weight and bias are sums over batch and tokens.
//
// In float or double: error at most (batch x tokens + W) eps of the terms' absolute sum. silu' is
// sigmoid(s) (1 + s (1 - sigmoid(s))). Cost 6 W FLOPs an input; tokens + W numbers of scratch.
// Serial. Throws shape_error, std::bad_alloc, before anything is written.
// Source of the forward form: van den Oord et al. 2016, arXiv 1609.03499; reverse accumulation.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/linear/gradient_views.hpp"
#include "heed/tensor/scalar.hpp"

namespace heed::inline HEED_TARGET {

/// What the convolution read, and what is known of what it wrote. A view without data is absent, or
/// zeros. What has no tokens, and the past, is of the accumulator type of T.
template <class T>
struct convolution_backward_inputs {
  view<const T, 3> x;
  view<const accumulate_t<T>, 2> weight;
  view<const accumulate_t<T>, 1> bias{};
  view<const accumulate_t<T>, 3> past{};
  bool silu = false;
  view<const T, 3> d_out{};
  view<const accumulate_t<T>, 3> d_final_state{};
};

/// Where gradients go. One without data is not wanted.
template <class T>
struct convolution_gradients {
  view<T, 3> x{};
  view<accumulate_t<T>, 2> weight{};
  view<accumulate_t<T>, 1> bias{};
  view<accumulate_t<T>, 3> past{};
};

namespace detail {

template <class T>
void check_convolution_backward(const convolution_backward_inputs<T>& in,
                                const convolution_gradients<T>& to, index sequences) {
  const auto e = in.x.extents();
  const index taps = in.weight.extent(1);
  if (taps < 1) fail<shape_error>("weight has taps 0, must be at least 1");
  const std::array<index, 2> weight{e[1], taps};
  const std::array<index, 1> channels{e[1]};
  const std::array<index, 3> past{sequences, e[1], taps - 1};
  check_extents("weight", in.weight, weight);
  check_extents_if_given("bias", in.bias, channels);
  check_extents_if_given("past", in.past, past);
  check_extents_if_given("d_out", in.d_out, e);
  check_extents_if_given("d_final_state", in.d_final_state, past);
  check_extents_if_given("dx", to.x, e);
  check_extents_if_given("d_weight", to.weight, weight);
  check_extents_if_given("d_bias", to.bias, channels);
  check_extents_if_given("d_past", to.past, past);
}

/// One channel of one sequence. `input` is [past, x] and `gradient` that of it.
template <class A>
void convolve_back(const convolution_backward_inputs<A>& in, const convolution_gradients<A>& to,
                   index b, index c, A* input, A* gradient) noexcept {
  const index tokens = in.x.extent(2);
  const index taps = in.weight.extent(1);
  const index past = taps - 1;
  for (index t = 0; t < past; ++t) input[t] = has_data(in.past) ? in.past(b, c, t) : A(0);
  for (index t = 0; t < tokens; ++t) input[past + t] = in.x(b, c, t);
  std::fill_n(gradient, tokens + past, A(0));
  for (index t = 0; t < past; ++t) {
    if (has_data(in.d_final_state)) gradient[tokens + t] = in.d_final_state(b, c, t);
  }
  for (index t = 0; t < tokens; ++t) {
    A d = has_data(in.d_out) ? in.d_out(b, c, t) : A(0);
    if (in.silu) {
      A s = has_data(in.bias) ? in.bias(c) : A(0);
      for (index j = 0; j < taps; ++j) s += in.weight(c, j) * input[t + j];
      const A open = sigmoid(s);
      d *= open * (1 + s * (1 - open));
    }
    if (has_data(to.bias)) to.bias(c) += d;
    for (index j = 0; j < taps; ++j) {
      gradient[t + j] += in.weight(c, j) * d;
      if (has_data(to.weight)) to.weight(c, j) += d * input[t + j];
    }
  }
  for (index t = 0; t < past; ++t) {
    if (has_data(to.past)) to.past(b, c, t) = gradient[t];
  }
  for (index t = 0; t < tokens; ++t) {
    if (has_data(to.x)) to.x(b, c, t) = gradient[past + t];
  }
}

}  // namespace detail

/// The gradients `to` of what the forward pass read, from those of what it wrote.
template <class A>
void naive_causal_convolution_backward(const convolution_backward_inputs<A>& in,
                                       const convolution_gradients<A>& to) {
  const auto e = in.x.extents();
  const index taps = in.weight.extent(1);
  detail::check_convolution_backward(in, to, e[0]);
  std::vector<A> input(static_cast<std::size_t>(e[2] + taps - 1));
  std::vector<A> gradient(input.size());
  detail::clear_sum(to.weight);
  detail::clear_sum(to.bias);
  for (index b = 0; b < e[0]; ++b) {
    for (index c = 0; c < e[1]; ++c) {
      detail::convolve_back(in, to, b, c, input.data(), gradient.data());
    }
  }
}

}  // namespace heed::inline HEED_TARGET
