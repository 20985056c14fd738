// SPDX-License-Identifier: MIT
// The textbook gradient of the selective scan S6, channel by channel.
//
//   E_n = e^(dt' A_n), h_n = E_n h_n + dt' x B_n, y = sum_n C_n h_n + D x, out = y silu(z).
//   With H_n the gradient of h_n, from the last token back:
//   dz = d_out y silu'(z);  dy = d_out silu(z);  dD += dy x
//   dC_n = dy h_n;  H_n += dy C_n;  dB_n = H_n dt' x;  dx = dy D + dt' sum_n H_n B_n
//   ddt' = sum_n H_n (x B_n + A_n E_n h_n before);  dA_n += H_n dt' E_n h_n before;  H_n = E_n H_n
//   d_dt = ddt', or by a softplus ddt' sigmoid(dt + bias);  d_bias += d_dt
//
// Axes as selective_scan has them; b and c are [batch, tokens, groups, N]. Their gradients are sums
// over the channels of a group, those of A, D and dt_bias sums over batch and tokens.
//
// In float or double. A decay of 0 (dt' A of -inf) has gradient 0; a NaN propagates as the sums
// have it. A gate's gradient is wanted only where there is a gate. Cost some 25 FLOPs a token,
// channel and state. Keeps a state every `chunk` tokens and computes those between again: (tokens
// / chunk + chunk) states of N numbers a channel. Serial. Throws shape_error, option_error,
// std::bad_alloc, before anything is written.
// Source of the forward form: Gu, Dao 2023, arXiv 2312.00752; reverse accumulation.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "heed/core/target.hpp"
#include "heed/linear/gradient_views.hpp"
#include "heed/linear/kept_states.hpp"
#include "heed/tensor/scalar.hpp"

namespace heed::inline HEED_TARGET {

/// What the selective scan read, and what is known of what it wrote. What has no tokens is of the
/// accumulator type of T.
template <class T>
struct selective_scan_backward_inputs {
  view<const T, 3> x;
  view<const T, 3> dt;
  view<const accumulate_t<T>, 2> a;
  view<const T, 4> b;
  view<const T, 4> c;
  view<const accumulate_t<T>, 1> skip{};
  view<const T, 3> gate{};
  view<const accumulate_t<T>, 1> dt_bias{};
  view<const accumulate_t<T>, 3> initial_state{};
  bool softplus = false;
  view<const T, 3> d_out{};
  view<const accumulate_t<T>, 3> d_final_state{};
  index chunk = 64;  ///< tokens from one kept state to the next
};

/// Where gradients go. One without data is not wanted.
template <class T>
struct selective_scan_gradients {
  view<T, 3> x{};
  view<T, 3> dt{};
  view<accumulate_t<T>, 2> a{};
  view<T, 4> b{};
  view<T, 4> c{};
  view<accumulate_t<T>, 1> skip{};
  view<T, 3> gate{};
  view<accumulate_t<T>, 1> dt_bias{};
  view<accumulate_t<T>, 3> initial_state{};
};

namespace detail {

template <class T>
void check_selective_scan_backward(const selective_scan_backward_inputs<T>& in,
                                   const selective_scan_gradients<T>& to, index sequences) {
  const auto e = in.x.extents();
  const index n = in.a.extent(1);
  const std::array<index, 2> rates{e[2], n};
  const std::array<index, 4> weights{e[0], e[1], in.b.extent(2), n};
  const std::array<index, 3> state{sequences, e[2], n};
  check_state_chunk(in.chunk);
  check_extents("dt", in.dt, e);
  check_extents("a", in.a, rates);
  check_extents("b", in.b, weights);
  check_extents("c", in.c, weights);
  if (weights[2] < 1 || e[2] % weights[2] != 0) {
    fail<shape_error>("x has " + std::to_string(e[2]) + " channels, not a multiple of b's " +
                      std::to_string(weights[2]) + " groups");
  }
  const std::array<index, 1> channels{e[2]};
  check_extents_if_given("skip", in.skip, channels);
  check_extents_if_given("gate", in.gate, e);
  check_extents_if_given("dt_bias", in.dt_bias, channels);
  check_extents_if_given("initial_state", in.initial_state, state);
  check_extents_if_given("d_out", in.d_out, e);
  check_extents_if_given("d_final_state", in.d_final_state, state);
  check_extents_if_given("dx", to.x, e);
  check_extents_if_given("d_dt", to.dt, e);
  check_extents_if_given("da", to.a, rates);
  check_extents_if_given("db", to.b, weights);
  check_extents_if_given("dc", to.c, weights);
  check_extents_if_given("d_skip", to.skip, channels);
  check_gradient_of("d_gate", to.gate, "gate", in.gate);
  check_extents_if_given("d_dt_bias", to.dt_bias, channels);
  check_extents_if_given("d_initial_state", to.initial_state, state);
}

/// One channel of one sequence of S6. H is the gradient of the state.
template <class A>
class naive_selective_channel {
 public:
  naive_selective_channel(const selective_scan_backward_inputs<A>& in,
                          const selective_scan_gradients<A>& to)
      : in_(in),
        to_(to),
        states_(in.a.extent(1)),
        per_group_(in.x.extent(2) / (std::max<index>)(1, in.b.extent(2))),
        kept_(in.x.extent(1), in.chunk, states_),
        gradient_(static_cast<std::size_t>(states_)) {}

  void run(index batch, index channel) noexcept {
    b_ = batch;
    ch_ = channel;
    g_ = channel / per_group_;
    for (index n = 0; n < states_; ++n) {
      kept_.first()[n] = has_data(in_.initial_state) ? in_.initial_state(b_, ch_, n) : A(0);
      gradient_[static_cast<std::size_t>(n)] =
          has_data(in_.d_final_state) ? in_.d_final_state(b_, ch_, n) : A(0);
    }
    kept_.run(
        [this](index t, const A* from, A* to) noexcept { forward(t, from, to); },
        [this](index t, const A* before, const A* after) noexcept { backward(t, before, after); });
    if (!has_data(to_.initial_state)) return;
    for (index n = 0; n < states_; ++n) {
      to_.initial_state(b_, ch_, n) = gradient_[static_cast<std::size_t>(n)];
    }
  }

 private:
  [[nodiscard]] A raw_step(index t) const noexcept {
    return in_.dt(b_, t, ch_) + (has_data(in_.dt_bias) ? in_.dt_bias(ch_) : A(0));
  }
  [[nodiscard]] A step(index t) const noexcept {
    const A s = raw_step(t);
    return in_.softplus ? (std::max)(s, A(0)) + std::log1p(std::exp(-std::abs(s))) : s;
  }

  void forward(index t, const A* from, A* to) const noexcept {
    const A dt = step(t);
    for (index n = 0; n < states_; ++n) {
      to[n] = decayed(std::exp(dt * in_.a(ch_, n)), from[n]) +
              dt * in_.x(b_, t, ch_) * in_.b(b_, t, g_, n);
    }
  }

  void backward(index t, const A* before, const A* after) noexcept {
    const A dt = step(t);
    const A x = in_.x(b_, t, ch_);
    A dy = has_data(in_.d_out) ? in_.d_out(b_, t, ch_) : A(0);
    const A skip = has_data(in_.skip) ? in_.skip(ch_) : A(0);
    if (has_data(in_.gate)) {
      const A z = in_.gate(b_, t, ch_);
      const A s = sigmoid(z);
      A y = skip * x;
      for (index n = 0; n < states_; ++n) y += in_.c(b_, t, g_, n) * after[n];
      if (has_data(to_.gate)) to_.gate(b_, t, ch_) = dy * y * s * (1 + z * (1 - s));
      dy *= z * s;
    }
    if (has_data(to_.skip)) to_.skip(ch_) += dy * x;
    A dx = dy * skip;
    A d_step = A(0);
    for (index n = 0; n < states_; ++n) {
      A& h = gradient_[static_cast<std::size_t>(n)];
      const A b = in_.b(b_, t, g_, n);
      const A a = in_.a(ch_, n);
      const A e = std::exp(dt * a);
      const A old = decayed(e, before[n]);
      h += dy * in_.c(b_, t, g_, n);
      if (has_data(to_.c)) to_.c(b_, t, g_, n) += dy * after[n];
      if (has_data(to_.b)) to_.b(b_, t, g_, n) += h * dt * x;
      dx += h * dt * b;
      d_step += h * x * b;
      if (old != A(0)) {
        d_step += h * a * old;
        if (has_data(to_.a)) to_.a(ch_, n) += h * dt * old;
      }
      h = decayed(e, h);
    }
    if (in_.softplus) d_step *= sigmoid(raw_step(t));
    if (has_data(to_.x)) to_.x(b_, t, ch_) = dx;
    if (has_data(to_.dt)) to_.dt(b_, t, ch_) = d_step;
    if (has_data(to_.dt_bias)) to_.dt_bias(ch_) += d_step;
  }

  const selective_scan_backward_inputs<A>& in_;
  const selective_scan_gradients<A>& to_;
  index states_, per_group_;
  index b_ = 0, ch_ = 0, g_ = 0;
  kept_states<A> kept_;
  std::vector<A> gradient_;
};

}  // namespace detail

/// The gradients `to` of what the forward pass read, from those of what it wrote.
template <class A>
void naive_selective_scan_backward(const selective_scan_backward_inputs<A>& in,
                                   const selective_scan_gradients<A>& to) {
  const auto e = in.x.extents();
  detail::check_selective_scan_backward(in, to, e[0]);
  detail::naive_selective_channel<A> one(in, to);
  detail::clear_sum(to.a);
  detail::clear_sum(to.b);
  detail::clear_sum(to.c);
  detail::clear_sum(to.skip);
  detail::clear_sum(to.dt_bias);
  for (index b = 0; b < e[0]; ++b) {
    for (index c = 0; c < e[2]; ++c) one.run(b, c);
  }
}

}  // namespace heed::inline HEED_TARGET
