// SPDX-License-Identifier: MIT
// The textbook gradient of HGRN, channel by channel.
//
//   h_t = e^g_t h_(t-1) + x_t, out_t = h_t.  With H the gradient of h_t, from the last token back:
//   H += d_out_t;  dx_t = H;  dg_t = H e^g_t h_(t-1);  H = e^g_t H
//
// x, g and their gradients, d_out: [batch, tokens, channels]; states [batch, channels].
//
// In float or double. A decay of 0 (a gate of -inf) has gradient 0; a NaN stays in its channel.
// Cost 7 FLOPs and 3 exp a token and channel. Keeps a state every `chunk` tokens and computes
// those between again: (tokens / chunk + chunk) numbers a channel. Serial. Throws shape_error,
// option_error, std::bad_alloc, before anything is written.
// Source of the forward form: Qin, Yang, Zhong 2023, arXiv 2311.04823; reverse accumulation.
#pragma once

#include <array>
#include <cmath>

#include "heed/core/target.hpp"
#include "heed/linear/gradient_views.hpp"
#include "heed/linear/kept_states.hpp"
#include "heed/tensor/scalar.hpp"

namespace heed::inline HEED_TARGET {

/// What HGRN read, and what is known of what it wrote. A view without data is absent, or zeros. States
/// are of the accumulator type of T.
template <class T>
struct hgrn_backward_inputs {
  view<const T, 3> x;
  view<const T, 3> g;
  view<const accumulate_t<T>, 2> initial_state{};
  view<const T, 3> d_out{};
  view<const accumulate_t<T>, 2> d_final_state{};
  index chunk = 64;  ///< tokens from one kept state to the next
};

/// Where gradients go. One without data is not wanted.
template <class T>
struct hgrn_gradients {
  view<T, 3> x{};
  view<T, 3> g{};
  view<accumulate_t<T>, 2> initial_state{};
};

namespace detail {

template <class T>
void check_hgrn_backward(const hgrn_backward_inputs<T>& in, const hgrn_gradients<T>& to,
                         index sequences) {
  const auto e = in.x.extents();
  const std::array<index, 2> state{sequences, e[2]};
  check_state_chunk(in.chunk);
  check_extents("g", in.g, e);
  check_extents_if_given("initial_state", in.initial_state, state);
  check_extents_if_given("d_out", in.d_out, e);
  check_extents_if_given("d_final_state", in.d_final_state, state);
  check_extents_if_given("dx", to.x, e);
  check_extents_if_given("dg", to.g, e);
  check_extents_if_given("d_initial_state", to.initial_state, state);
}

}  // namespace detail

/// The gradients `to` of what the forward pass read, from those of what it wrote.
template <class A>
void naive_hgrn_backward(const hgrn_backward_inputs<A>& in, const hgrn_gradients<A>& to) {
  using detail::has_data;
  const auto e = in.x.extents();
  detail::check_hgrn_backward(in, to, e[0]);
  detail::kept_states<A> kept(e[1], in.chunk, 1);
  for (index b = 0; b < e[0]; ++b) {
    for (index c = 0; c < e[2]; ++c) {
      *kept.first() = has_data(in.initial_state) ? in.initial_state(b, c) : A(0);
      A h = has_data(in.d_final_state) ? in.d_final_state(b, c) : A(0);
      kept.run(
          [&](index t, const A* from, A* after) noexcept {
            *after = detail::decayed(std::exp(in.g(b, t, c)), *from) + in.x(b, t, c);
          },
          [&](index t, const A* before, const A*) noexcept {
            const A decay = std::exp(in.g(b, t, c));
            if (has_data(in.d_out)) h += in.d_out(b, t, c);
            if (has_data(to.x)) to.x(b, t, c) = h;
            if (has_data(to.g)) to.g(b, t, c) = h * detail::decayed(decay, *before);
            h = detail::decayed(decay, h);
          });
      if (has_data(to.initial_state)) to.initial_state(b, c) = h;
    }
  }
}

}  // namespace heed::inline HEED_TARGET
