// SPDX-License-Identifier: MIT
// The textbook gradient of a diagonal plus low rank and of RWKV-6 and 7, token by token.
//
//   forward    S_t = E S + b_t (a_t' S) + k_t v_t'         S before the token, E = diag(exp g_t)
//              out_t = scale S_t' q_t,  or with a bonus u  scale (S + diag(u) k_t v_t')' q_t
//   backward   G is the gradient of S_t; each line takes the G of the one before:
//              G += scale q_t d_out_t'                     where there is no bonus
//              dq_t = scale S_t d_out_t;  dk_t = G v_t;  dv_t = G' k_t
//              s_t = S' a_t;  db_t = G s_t;  r_t = G' b_t;  da_t = S r_t
//              dg_t = rows of sum(G * E S);  G = E G + a_t r_t'
//   bonus      with w = v_t.d_out_t:
//              dq_t = scale (S d_out_t + u * k_t w);  du += scale q_t * k_t w
//              dk_t += scale u * q_t w;  dv_t += scale (sum u * q_t * k_t) d_out_t
//              G += scale q_t d_out_t'                     at last
//
// RWKV-6 has a bonus and no a, b; RWKV-7 and diagonal_low_rank_attention a and b and no bonus;
// low_rank_attention no g. RWKV's scale is 1.
//
// Axes: arguments.hpp; of several query heads that read a state, the sums over them; the gradient
// of u is a sum over batch and tokens. In float or double, accumulated in that. A decay of 0 (a
// gate of -inf) has gradient 0. Keeps a state every `chunk` tokens and computes those between
// again: (tokens / chunk + chunk) Dk Dv numbers. Cost about 22 tokens Dk Dv FLOPs a head. Serial.
// Throws shape_error, option_error, std::bad_alloc, before anything is written.
// Sources of the forward forms: Peng et al. 2024, arXiv 2404.05892, eq. 18 and 19; Peng et al.
// 2025, arXiv 2503.14456, eq. 17; reverse accumulation.
#pragma once

#include <cmath>
#include <vector>

#include "heed/core/target.hpp"
#include "heed/linear/kept_states.hpp"
#include "heed/linear/matrix_state/backward/arguments.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// One head of one batch entry.
template <class A>
class naive_dplr_head {
 public:
  naive_dplr_head(const dplr_backward_inputs<A>& in, const dplr_gradients<A>& to, A scale)
      : in_(in),
        to_(to),
        scale_(scale),
        group_(in.k.extent(1) > 0 ? in.q.extent(1) / in.k.extent(1) : 0),
        d_(in.k.extent(3)),
        dv_(in.v.extent(3)),
        kept_(in.k.extent(2), in.chunk, d_ * dv_),
        gradient_(static_cast<std::size_t>(d_ * dv_)),
        read_(static_cast<std::size_t>(dv_)),
        d_read_(static_cast<std::size_t>(dv_)) {}

  void run(index b, index h) noexcept {
    b_ = b;
    h_ = h;
    for (index f = 0; f < d_; ++f) {
      for (index c = 0; c < dv_; ++c) {
        kept_.first()[f * dv_ + c] =
            has_data(in_.initial_state) ? in_.initial_state(b, h, f, c) : A(0);
        gradient(f, c) = has_data(in_.d_final_state) ? in_.d_final_state(b, h, f, c) : A(0);
      }
    }
    kept_.run(
        [this](index t, const A* from, A* after) noexcept { forward(t, from, after); },
        [this](index t, const A* before, const A* after) noexcept { backward(t, before, after); });
    if (!has_data(to_.initial_state)) return;
    for (index f = 0; f < d_; ++f) {
      for (index c = 0; c < dv_; ++c) to_.initial_state(b, h, f, c) = gradient(f, c);
    }
  }

 private:
  [[nodiscard]] A& gradient(index f, index c) noexcept {
    return gradient_[static_cast<std::size_t>(f * dv_ + c)];
  }
  [[nodiscard]] A decay(index t, index f) const noexcept {
    return has_data(in_.gate) ? std::exp(in_.gate(b_, h_, t, f)) : A(1);
  }
  [[nodiscard]] A d_out(index q, index t, index c) const noexcept {
    return has_data(in_.d_out) ? in_.d_out(b_, q, t, c) : A(0);
  }
  /// f(head) for the query heads of a state.
  template <class F>
  void each_query(F&& f) const noexcept {
    for (index q = h_ * group_; q < (h_ + 1) * group_; ++q) f(q);
  }
  /// What a_t reads of the state.
  void read(index t, const A* state) noexcept {
    for (index c = 0; c < dv_; ++c) {
      A sum = A(0);
      for (index f = 0; f < d_; ++f) sum += in_.a(b_, h_, t, f) * state[f * dv_ + c];
      read_[static_cast<std::size_t>(c)] = sum;
    }
  }

  void forward(index t, const A* from, A* after) noexcept {
    if (has_data(in_.a)) read(t, from);
    for (index f = 0; f < d_; ++f) {
      const A e = decay(t, f);
      for (index c = 0; c < dv_; ++c) {
        A next = decayed(e, from[f * dv_ + c]) + in_.k(b_, h_, t, f) * in_.v(b_, h_, t, c);
        if (has_data(in_.a)) next += in_.b(b_, h_, t, f) * read_[static_cast<std::size_t>(c)];
        after[f * dv_ + c] = next;
      }
    }
  }

  /// gradient += scale q d_out', and dq from the state that was read.
  void read_back(index q, index t, const A* state) noexcept {
    for (index f = 0; f < d_; ++f) {
      A sum = A(0);
      for (index c = 0; c < dv_; ++c) {
        sum += state[f * dv_ + c] * d_out(q, t, c);
        gradient(f, c) += scale_ * in_.q(b_, q, t, f) * d_out(q, t, c);
      }
      if (has_data(to_.q)) to_.q(b_, q, t, f) = scale_ * sum;
    }
  }

  void backward(index t, const A* before, const A* after) noexcept {
    const bool low_rank = has_data(in_.a);
    if (!has_data(in_.bonus)) each_query([&](index q) { read_back(q, t, after); });
    if (low_rank) read(t, before);
    for (index c = 0; c < dv_; ++c) {
      A written = A(0);
      A back = A(0);
      for (index f = 0; f < d_; ++f) {
        written += gradient(f, c) * in_.k(b_, h_, t, f);
        if (low_rank) back += gradient(f, c) * in_.b(b_, h_, t, f);
      }
      if (has_data(to_.v)) to_.v(b_, h_, t, c) = written;
      d_read_[static_cast<std::size_t>(c)] = back;
    }
    for (index f = 0; f < d_; ++f) {
      const A e = decay(t, f);
      A dk = A(0), da = A(0), db = A(0), dg = A(0);
      for (index c = 0; c < dv_; ++c) {
        A& g = gradient(f, c);
        const A old = before[f * dv_ + c];
        dk += g * in_.v(b_, h_, t, c);
        dg += g * decayed(e, old);
        A next = decayed(e, g);
        if (low_rank) {
          const A back = d_read_[static_cast<std::size_t>(c)];
          db += g * read_[static_cast<std::size_t>(c)];
          da += back * old;
          next += in_.a(b_, h_, t, f) * back;
        }
        g = next;
      }
      if (has_data(to_.k)) to_.k(b_, h_, t, f) = dk;
      if (has_data(to_.gate)) to_.gate(b_, h_, t, f) = dg;
      if (has_data(to_.a)) to_.a(b_, h_, t, f) = da;
      if (has_data(to_.b)) to_.b(b_, h_, t, f) = db;
    }
    if (!has_data(in_.bonus)) return;
    each_query([&](index q) {
      read_back(q, t, before);
      bonus_back(q, t);
    });
  }

  void bonus_back(index head, index t) noexcept {
    A w = A(0);
    for (index c = 0; c < dv_; ++c) w += in_.v(b_, h_, t, c) * d_out(head, t, c);
    w *= scale_;
    A share = A(0);
    for (index f = 0; f < d_; ++f) {
      const A q = in_.q(b_, head, t, f);
      const A k = in_.k(b_, h_, t, f);
      const A u = in_.bonus(h_, f);
      share += scale_ * u * q * k;
      if (has_data(to_.q)) to_.q(b_, head, t, f) += u * k * w;
      if (has_data(to_.k)) to_.k(b_, h_, t, f) += u * q * w;
      if (has_data(to_.bonus)) to_.bonus(h_, f) += q * k * w;
    }
    if (!has_data(to_.v)) return;
    for (index c = 0; c < dv_; ++c) to_.v(b_, h_, t, c) += share * d_out(head, t, c);
  }

  const dplr_backward_inputs<A>& in_;
  const dplr_gradients<A>& to_;
  A scale_;
  index group_, d_, dv_;
  index b_ = 0, h_ = 0;
  kept_states<A> kept_;
  std::vector<A> gradient_, read_, d_read_;
};

}  // namespace detail

/// The gradients `to` of what the forward pass read, from those of what it wrote.
template <class A>
void naive_dplr_backward(const dplr_backward_inputs<A>& in, const dplr_gradients<A>& to) {
  const auto k = in.k.extents();
  const A scale = detail::check_dplr_backward(in, to, k[0]);
  detail::naive_dplr_head<A> head(in, to, scale);
  detail::clear_sum(to.bonus);
  for (index b = 0; b < k[0]; ++b) {
    for (index h = 0; h < k[1]; ++h) head.run(b, h);
  }
}

}  // namespace heed::inline HEED_TARGET
