// SPDX-License-Identifier: MIT
// The textbook gradient of RWKV-4's time mixing, channel by channel.
//
//   out_t = sum_(j <= t) p_tj v_j,  p_tj = exp(l_tj - L_t),  L_t = log sum_j exp(l_tj)
//   l_tj = k_j + (t - 1 - j) w for j < t,  l_tt = k_t + u,  w = -exp(decay)
//   dl_tj = d_out_t p_tj (v_j - out_t);  dk_j = sum_t dl_tj;  dv_j = sum_t d_out_t p_tj
//   du = sum_t dl_tt;  d_decay = w sum_tj (t - 1 - j) dl_tj
//
// From the last token back four sums over the later tokens t > j are kept, of d_out_t and of
// d_out_t out_t, times exp((t - 1 - j) w - L_t), without and with the factor t - 1 - j: linear in
// tokens. They are kept less the largest exponent, so that no exponential is above 1.
//
// k, v, d_out, dk, dv [batch, tokens, channels]; decay, bonus u [channels], their gradients are
// sums over batch and tokens. A key of -inf has no weight and gradient 0.
//
// States are numerator a, denominator b and maximum p, [batch, 3, channels]: a e^p and b e^p, of which
// p is only the scale. d_final_state counts as the gradient of these at that p; its third row is not
// read. Of the initial state dp = a da + b db. Absent, the state begins empty.
//
// In float or double; a NaN stays in its channel. Cost some 50 FLOPs a token and channel, an
// exponential counted as one; 2 tokens numbers of scratch. Serial. Throws shape_error, std::bad_alloc,
// before anything is written.
// Source of the forward form: Peng et al. 2023, arXiv 2305.13048, eq. 16; reverse accumulation.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "heed/core/target.hpp"
#include "heed/linear/gradient_views.hpp"
#include "heed/linear/kept_states.hpp"
#include "heed/tensor/scalar.hpp"

namespace heed::inline HEED_TARGET {

/// What the forward pass read, and the gradient of what it wrote. What has no tokens is of the
/// accumulator type of T.
template <class T>
struct rwkv4_backward_inputs {
  view<const T, 3> k;
  view<const T, 3> v;
  view<const accumulate_t<T>, 1> decay;
  view<const accumulate_t<T>, 1> bonus;
  view<const T, 3> d_out;
  view<const accumulate_t<T>, 3> initial_state{};
  view<const accumulate_t<T>, 3> d_final_state{};
  index chunk = 64;  ///< tokens from one kept state to the next; the textbook form keeps none
};

/// Where gradients go. One without data is not wanted.
template <class T>
struct rwkv4_gradients {
  view<T, 3> k{};
  view<T, 3> v{};
  view<accumulate_t<T>, 1> decay{};
  view<accumulate_t<T>, 1> bonus{};
  view<accumulate_t<T>, 3> initial_state{};
};

namespace detail {

template <class T>
void check_rwkv4_backward(const rwkv4_backward_inputs<T>& in, const rwkv4_gradients<T>& to,
                          index sequences) {
  const auto e = in.k.extents();
  const std::array<index, 1> channels{e[2]};
  const std::array<index, 3> state{sequences, 3, e[2]};
  check_state_chunk(in.chunk);
  check_extents("v", in.v, e);
  check_extents("decay", in.decay, channels);
  check_extents("bonus", in.bonus, channels);
  check_extents("d_out", in.d_out, e);
  check_extents_if_given("initial_state", in.initial_state, state);
  check_extents_if_given("d_final_state", in.d_final_state, state);
  check_extents_if_given("d_initial_state", to.initial_state, state);
  check_extents_if_given("dk", to.k, e);
  check_extents_if_given("dv", to.v, e);
  check_extents_if_given("d_decay", to.decay, channels);
  check_extents_if_given("d_bonus", to.bonus, channels);
}

/// One channel of one sequence.
template <class A>
class naive_rwkv4_channel {
 public:
  explicit naive_rwkv4_channel(const rwkv4_backward_inputs<A>& in)
      : in_(in),
        out_(static_cast<std::size_t>(in.k.extent(1))),
        log_sum_(static_cast<std::size_t>(in.k.extent(1))) {}

  void run(const rwkv4_gradients<A>& to, index b, index c) noexcept {
    const A w = -std::exp(in_.decay(c));
    const A u = in_.bonus(c);
    const bool past = has_data(in_.initial_state) && in_.initial_state(b, 1, c) != A(0);
    const std::array<A, 3> initial =
        past ? std::array<A, 3>{in_.initial_state(b, 0, c), in_.initial_state(b, 1, c),
                                in_.initial_state(b, 2, c)}
             : std::array<A, 3>{A(0), A(0), none};
    const std::array<A, 3> final_state = forward(b, c, w, u, initial);
    // Sums over t > j of d_out_t and of d_out_t out_t, and of those times t - 1 - j; less e^most.
    A values = 0, means = 0, aged_values = 0, aged_means = 0, most = none;
    if (has_data(in_.d_final_state) && final_state[1] != A(0)) {
      values = in_.d_final_state(b, 0, c);
      means = -in_.d_final_state(b, 1, c);
      most = -final_state[2];
    }
    for (index j = in_.k.extent(1); j-- > 0;) {
      const A k = in_.k(b, j, c);
      const A d = in_.d_out(b, j, c);
      const A out = out_[static_cast<std::size_t>(j)];
      const A log_sum = log_sum_[static_cast<std::size_t>(j)];
      A dk = 0, dv = 0, d_bonus = 0, d_w = 0;
      if (k != none) {
        const A v = in_.v(b, j, c);
        const A later = most == none ? A(0) : std::exp(k + most);
        const A own = std::exp(u + k - log_sum);
        d_bonus = own * (v - out) * d;
        dv = later * values + own * d;
        dk = later * (v * values - means) + d_bonus;
        d_w = later * (v * aged_values - aged_means);
      }
      if (has_data(to.k)) to.k(b, j, c) = dk;
      if (has_data(to.v)) to.v(b, j, c) = dv;
      if (has_data(to.bonus)) to.bonus(c) += d_bonus;
      if (has_data(to.decay)) to.decay(c) += d_w * w;

      aged_values += values;
      aged_means += means;
      const A own_exponent = log_sum == none ? none : -log_sum;
      const A next = (std::max)(most + w, own_exponent);
      const A keep = relative(most + w, next);
      const A add = relative(own_exponent, next) * d;
      values = keep * values + add;
      means = keep * means + add * out;
      aged_values *= keep;
      aged_means *= keep;
      most = next;
    }
    const A reach = past && most != none ? std::exp(initial[2] + most) : A(0);
    if (has_data(to.decay)) {
      to.decay(c) += w * reach * (initial[0] * aged_values - initial[1] * aged_means);
    }
    if (!has_data(to.initial_state)) return;
    to.initial_state(b, 0, c) = reach * values;
    to.initial_state(b, 1, c) = -reach * means;
    to.initial_state(b, 2, c) = reach * (initial[0] * values - initial[1] * means);
  }

 private:
  static constexpr A none = -std::numeric_limits<A>::infinity();
  [[nodiscard]] static A relative(A exponent, A most) noexcept {
    return exponent == none ? A(0) : std::exp(exponent - most);
  }

  /// out_t and L_t, which is -inf where no key has a weight.
  std::array<A, 3> forward(index b, index c, A w, A u, const std::array<A, 3>& initial) noexcept {
    auto [numerator, denominator, most] = initial;
    for (index t = 0; t < in_.k.extent(1); ++t) {
      const A k = in_.k(b, t, c);
      const A v = in_.v(b, t, c);
      const auto add = [&, num = numerator, den = denominator](A past, A exponent) noexcept {
        const A m = (std::max)(past, exponent);
        const A keep = relative(past, m);
        const A own = relative(exponent, m);
        return std::array<A, 3>{keep * num + (own == A(0) ? A(0) : own * v), keep * den + own, m};
      };
      const auto [sum, weight, m] = add(most, u + k);
      out_[static_cast<std::size_t>(t)] = weight == A(0) ? A(0) : sum / weight;
      log_sum_[static_cast<std::size_t>(t)] = weight == A(0) ? none : m + std::log(weight);
      const auto next = add(most + w, k);
      numerator = next[0];
      denominator = next[1];
      most = next[2];
    }
    return {numerator, denominator, most};
  }

  const rwkv4_backward_inputs<A>& in_;
  std::vector<A> out_, log_sum_;
};

}  // namespace detail

/// The gradients `to` of what the forward pass read.
template <class A>
void naive_rwkv4_backward(const rwkv4_backward_inputs<A>& in, const rwkv4_gradients<A>& to) {
  const auto e = in.k.extents();
  detail::check_rwkv4_backward(in, to, e[0]);
  detail::naive_rwkv4_channel<A> one(in);
  detail::clear_sum(to.decay);
  detail::clear_sum(to.bonus);
  for (index b = 0; b < e[0]; ++b) {
    for (index c = 0; c < e[2]; ++c) one.run(to, b, c);
  }
}

}  // namespace heed::inline HEED_TARGET
