// SPDX-License-Identifier: MIT
// The textbook gradient of the recurrences with a matrix state, token by token.
//
//   forward    D_t = E_t S_(t-1),  u_t = v_t  or, by the delta rule,  beta_t (v_t - D_t' k_t)
//              S_t = D_t + k_t u_t',  out_t = scale S_t' q_t
//   backward   G += scale q_t d_out_t'             (G is the gradient of S_t)
//              dq_t = scale S_t d_out_t,  dk_t = G u_t,  du_t = G' k_t
//              dv_t = du_t  or  beta_t du_t,  and by the delta rule also
//              dbeta_t = du_t . (v_t - D_t' k_t),  dk_t -= beta_t D_t du_t,  G -= beta_t k_t du_t'
//              dg_t = rows of sum(G * D_t),  G = E_t G
//
// E_t = diag(exp g_t), g natural logs, of a token or of each of its key channels; absent, 1. Serves
// unnormalised linear attention, scalar-gated, gated, retention (g that does not change), delta,
// gated delta and per-channel gated delta; SSD with v = x dt and g = A dt.
//
// Axes: arguments.hpp. In float or double, accumulated in that. Gates of -inf have gradient 0; a NaN
// propagates as the sums have it. Keeps a state every `chunk`
// tokens and computes those between again: (tokens / chunk + chunk) Dk Dv numbers. Cost about 14
// tokens Dk Dv FLOPs a head, 20 by the delta rule. Serial: the oracle of matrix_state_backward.
// Throws shape_error, option_error, std::bad_alloc, before anything is written.
// Yang et al. 2023, arXiv 2312.06635, section 4; 2024, arXiv 2406.06484.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "heed/core/target.hpp"
#include "heed/linear/matrix_state/backward/arguments.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// One state head of one batch.
template <class A>
class naive_matrix_state {
 public:
  naive_matrix_state(const matrix_state_inputs<A>& in, const matrix_state_cotangents<A>& given,
                     const matrix_state_gradients<A>& to, A scale)
      : in_(in),
        given_(given),
        to_(to),
        scale_(scale),
        tokens_(in.k.extent(2)),
        d_(in.k.extent(3)),
        dv_(in.v.extent(3)),
        group_(in.k.extent(1) > 0 ? in.q.extent(1) / in.k.extent(1) : 0),
        kept_(numbers(ceil_div(tokens_, in.chunk) + 1)),
        states_(numbers((std::min)(in.chunk, tokens_) + 1)),
        decayed_(numbers(1)),
        gradient_(numbers(1)),
        written_(static_cast<std::size_t>(dv_)),
        error_(static_cast<std::size_t>(dv_)),
        d_written_(static_cast<std::size_t>(dv_)) {}

  void run(index b, index h) noexcept {
    b_ = b;
    h_ = h;
    const index size = d_ * dv_;
    copy_in(in_.initial_state, kept_.data());
    copy_in(given_.final_state, gradient_.data());
    const index chunks = ceil_div(tokens_, in_.chunk);
    for (index c = 0; c < chunks; ++c) {
      std::copy_n(kept_.data() + c * size, size, states_.data());
      const index end = (std::min)(tokens_, (c + 1) * in_.chunk);
      for (index t = c * in_.chunk; t < end; ++t) step(t, states_.data(), states_.data());
      std::copy_n(states_.data(), size, kept_.data() + (c + 1) * size);
    }
    for (index c = chunks; c-- > 0;) {
      const index first = c * in_.chunk;
      const index end = (std::min)(tokens_, first + in_.chunk);
      std::copy_n(kept_.data() + c * size, size, states_.data());
      for (index t = first; t < end; ++t) {
        step(t, states_.data() + (t - first) * size, states_.data() + (t - first + 1) * size);
      }
      for (index t = end; t-- > first;) {
        step(t, states_.data() + (t - first) * size, nullptr);
        step_back(t, states_.data() + (t - first + 1) * size);
      }
    }
    if (to_.initial_state.data() == nullptr) return;
    for (index f = 0; f < d_; ++f) {
      for (index c = 0; c < dv_; ++c) to_.initial_state(b, h, f, c) = gradient_[at(f, c)];
    }
  }

 private:
  [[nodiscard]] std::vector<A> numbers(index states) const {
    return std::vector<A>(static_cast<std::size_t>(states * d_ * dv_), A(0));
  }
  [[nodiscard]] std::size_t at(index f, index c) const noexcept {
    return static_cast<std::size_t>(f * dv_ + c);
  }
  void copy_in(const view<const A, 4>& from, A* state) const noexcept {
    for (index f = 0; f < d_; ++f) {
      for (index c = 0; c < dv_; ++c) {
        state[f * dv_ + c] = from.data() == nullptr ? A(0) : from(b_, h_, f, c);
      }
    }
  }
  [[nodiscard]] A decay(index t, index f) const noexcept {
    if (in_.gate.data() == nullptr) return A(1);
    return std::exp(in_.gate(b_, h_, t, in_.gate.extent(3) == 1 ? 0 : f));
  }

  /// Token t: the decayed state, what is written, and the next state where it is wanted (`to` may be
  /// `from`).
  void step(index t, const A* from, A* to) noexcept {
    const bool delta = in_.beta.data() != nullptr;
    for (index f = 0; f < d_; ++f) {
      const A e = decay(t, f);
      // A decay of 0 forgets whatever the state holds.
      for (index c = 0; c < dv_; ++c) {
        decayed_[at(f, c)] = e == A(0) ? A(0) : e * from[f * dv_ + c];
      }
    }
    for (index c = 0; c < dv_; ++c) {
      A stored = A(0);
      if (delta) {
        for (index f = 0; f < d_; ++f) stored += decayed_[at(f, c)] * in_.k(b_, h_, t, f);
      }
      const auto i = static_cast<std::size_t>(c);
      error_[i] = in_.v(b_, h_, t, c) - stored;
      written_[i] = delta ? in_.beta(b_, h_, t, 0) * error_[i] : error_[i];
    }
    if (to == nullptr) return;
    for (index f = 0; f < d_; ++f) {
      for (index c = 0; c < dv_; ++c) {
        to[f * dv_ + c] =
            decayed_[at(f, c)] + in_.k(b_, h_, t, f) * written_[static_cast<std::size_t>(c)];
      }
    }
  }

  /// The gradients of token t, whose step was just made anew and led to `state`.
  void step_back(index t, const A* state) noexcept {
    const bool delta = in_.beta.data() != nullptr;
    if (given_.out.data() != nullptr) {
      for (index q = h_ * group_; q < (h_ + 1) * group_; ++q) {
        for (index f = 0; f < d_; ++f) {
          A sum = A(0);
          for (index c = 0; c < dv_; ++c) {
            const A d_out = given_.out(b_, q, t, c);
            sum += state[f * dv_ + c] * d_out;
            gradient_[at(f, c)] += scale_ * in_.q(b_, q, t, f) * d_out;
          }
          if (to_.q.data() != nullptr) to_.q(b_, q, t, f) = scale_ * sum;
        }
      }
    } else if (to_.q.data() != nullptr) {
      for (index q = h_ * group_; q < (h_ + 1) * group_; ++q) {
        for (index f = 0; f < d_; ++f) to_.q(b_, q, t, f) = A(0);
      }
    }

    const A beta = delta ? in_.beta(b_, h_, t, 0) : A(1);
    A d_beta = A(0);
    for (index c = 0; c < dv_; ++c) {
      A sum = A(0);
      for (index f = 0; f < d_; ++f) sum += gradient_[at(f, c)] * in_.k(b_, h_, t, f);
      d_written_[static_cast<std::size_t>(c)] = sum;
      d_beta += sum * error_[static_cast<std::size_t>(c)];
      if (to_.v.data() != nullptr) to_.v(b_, h_, t, c) = beta * sum;
    }
    if (delta && to_.beta.data() != nullptr) to_.beta(b_, h_, t, 0) = d_beta;

    const bool by_token = in_.gate.data() != nullptr && in_.gate.extent(3) == 1;
    A d_token = A(0);
    for (index f = 0; f < d_; ++f) {
      const A k = in_.k(b_, h_, t, f);
      const A e = decay(t, f);
      A dk = A(0);
      A d_gate = A(0);
      for (index c = 0; c < dv_; ++c) {
        const auto i = static_cast<std::size_t>(c);
        A& g = gradient_[at(f, c)];
        dk += g * written_[i];
        if (delta) {
          dk -= beta * decayed_[at(f, c)] * d_written_[i];
          g -= beta * k * d_written_[i];
        }
        d_gate += g * decayed_[at(f, c)];
        g = e == A(0) ? A(0) : g * e;
      }
      if (to_.k.data() != nullptr) to_.k(b_, h_, t, f) = dk;
      d_token += d_gate;
      if (!by_token && to_.gate.data() != nullptr) to_.gate(b_, h_, t, f) = d_gate;
    }
    if (by_token && to_.gate.data() != nullptr) to_.gate(b_, h_, t, 0) = d_token;
  }

  const matrix_state_inputs<A>& in_;
  const matrix_state_cotangents<A>& given_;
  const matrix_state_gradients<A>& to_;
  A scale_;
  index tokens_, d_, dv_, group_;
  index b_ = 0, h_ = 0;
  std::vector<A> kept_, states_, decayed_, gradient_, written_, error_, d_written_;
};

}  // namespace detail

/// The gradients `to` of what the forward pass read, from those of what it wrote.
template <class A>
void naive_matrix_state_backward(const matrix_state_inputs<A>& in,
                                 const matrix_state_cotangents<A>& given,
                                 const matrix_state_gradients<A>& to) {
  const A scale = detail::check_matrix_gradients(in, given, to, in.k.extent(0));
  detail::naive_matrix_state<A> head(in, given, to, scale);
  for (index b = 0; b < in.k.extent(0); ++b) {
    for (index h = 0; h < in.k.extent(1); ++h) head.run(b, h);
  }
}

}  // namespace heed::inline HEED_TARGET
