// SPDX-License-Identifier: MIT
// The textbook gradient of attention, pair by pair. The oracle of the tiled backward pass.
//
//   p_ij = exp(s_ij - lse_i)                  delta_i = d_out_i . out_i - d_lse_i
//   dv_j = sum_i p_ij f_ij d_out_i            dp_ij   = f_ij d_out_i . v_j   (f: dropout's factor)
//   ds_ij = p_ij (dp_ij - delta_i) -> modifiers backward -> softcap backward
//   dq_i = scale sum_j ds_ij k_j              dk_j    = scale sum_i ds_ij q_i
//
// of sum(out d_out) + sum(lse d_lse); dk and dv are sums over the query heads of a group. s_ij is
// computed anew as the forward pass does; out and lse are the forward pass's. Gradients of biases,
// slopes, tables and sinks are told to callbacks: score/with_gradient.hpp.
// Accumulates in the accumulator type, rounded once at the end; relative error of the sums is at
// most (head dim + queries x heads of a group) eps. A pair of probability 0, as every masked one is,
// contributes nothing whatever the tensors hold; a row without a visible key has gradient 0.
// Cost per head: 10 N M D FLOPs; keys x (head dim + value dim) numbers of scratch a worker. Throws
// shape_error, option_error, std::bad_alloc, before anything is written.
// Dao, Fu, Ermon, Rudra, Re 2022, arXiv 2205.14135, appendix B.2.
#pragma once

#include <cmath>

#include "heed/attention/backward/arguments.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/online_softmax.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// One pair of a query and a key.
template <class Call, class A>
void naive_backward_pair(const Call& call, const position& p, A lse, A delta, A* dq, A* dk,
                         A* dv) noexcept {
  const auto& f = call.forward;
  const auto q = f.query_rows(p.batch, p.head, p.row);
  const auto d_out = call.cotangent_rows(p.batch, p.head, p.row);
  const auto* k = f.source.keys(p.batch, p.kv_head, p.key).data;
  const auto* v = f.source.values(p.batch, p.kv_head, p.key).data;
  const index kc = f.source.key_channel_stride();
  const index vc = f.source.value_channel_stride();

  A dot = A(0);
  for (index c = 0; c < call.head_dim(); ++c) {
    dot += static_cast<A>(*q.at(0, c)) * static_cast<A>(k[c * kc]);
  }
  const A scaled = dot * f.scale;
  const A capped = f.program.softcapped(scaled, p);
  const A score = f.program.modified(capped, p);
  const A probability = score == softmax_state<A>::empty_max ? A(0) : std::exp(score - lse);
  if (probability == A(0)) return;

  const A factor = f.program.dropout_factor(p);
  A dp = A(0);
  for (index c = 0; c < call.value_dim(); ++c) {
    const A d = static_cast<A>(*d_out.at(0, c));
    dp += d * static_cast<A>(v[c * vc]);
    dv[c] += probability * factor * d;
  }
  A ds = probability * (factor * dp - delta);
  ds = call.gradient.reverse(capped, p, ds) * call.gradient.softcap_derivative(scaled) * f.scale;
  for (index c = 0; c < call.head_dim(); ++c) {
    dq[c] += ds * static_cast<A>(k[c * kc]);
    dk[c] += ds * static_cast<A>(*q.at(0, c));
  }
}

template <class A, class T>
void store_gradient_row(const A* from, rectangle<T> to, index channels) noexcept {
  for (index c = 0; c < channels; ++c) *to.at(0, c) = static_cast<T>(from[c]);
}

struct naive_backward_kernel {
  static constexpr bool sums_tables = false;  // pairs add to the caller's tables
  template <class E, class Call>
  static void run(E& exec, const Call& call) {
    using A = typename Call::A;
    const score_extents e = call.forward.extents;
    const index d = call.head_dim();
    const index dv = call.value_dim();
    struct scratch {
      A* dq;  // [head dim]
      A* dk;  // [keys][head dim]
      A* dv;  // [keys][value dim]
    };
    scratch_lease lease(call.forward.options.scratch);
    workspace& memory = lease.memory();
    const auto allocate = [&](arena& c) noexcept {
      return scratch{c.allocate<A>(d), c.allocate<A>(e.keys * d), c.allocate<A>(e.keys * dv)};
    };
    for_each_with_scratch(exec, e.batch * e.kv_heads, memory, allocate,
                          [&](scratch& s, index t) noexcept {
                            const index b = t / e.kv_heads;
                            const index kv = t % e.kv_heads;
                            for (index n = 0; n < e.keys * d; ++n) s.dk[n] = A(0);
                            for (index n = 0; n < e.keys * dv; ++n) s.dv[n] = A(0);
                            const index group = call.forward.group();
                            for (index h = kv * group; h < (kv + 1) * group; ++h) {
                              for (index i = 0; i < e.queries; ++i)
                                run_row(call, b, h, i, s.dq, s.dk, s.dv);
                            }
                            for (index j = 0; j < e.keys; ++j) {
                              store_gradient_row(s.dk + j * d, Call::rows(call.dk, b, kv, j), d);
                              store_gradient_row(s.dv + j * dv, Call::rows(call.dv, b, kv, j), dv);
                            }
                          });
  }

 private:
  template <class Call, class A>
  static void run_row(const Call& call, index b, index h, index i, A* dq, A* dk, A* dv) noexcept {
    const auto& f = call.forward;
    const A lse = *f.lse_rows(b, h, i);
    const index d = call.head_dim();
    for (index c = 0; c < d; ++c) dq[c] = A(0);
    if (lse != softmax_state<A>::empty_max) {
      const A delta = call.delta(b, h, i);
      position p{b, h, h / f.group(), f.options.offset[b] + i, -1, i};
      call.gradient.tell_sinks(lse, delta, p);
      for (p.key = 0; p.key < f.extents.keys; ++p.key) {
        if (!f.program.visible(p)) continue;
        naive_backward_pair(call, p, lse, delta, dq, dk + p.key * d, dv + p.key * call.value_dim());
      }
    }
    store_gradient_row(dq, Call::rows(call.dq, b, h, i), d);
  }
};

}  // namespace detail

/// naive_attention_backward([executor,] q, k, v, forward, d_out | cotangents(d_out, d_lse),
///                          options = {}, modifiers...) -> attention_gradients.
/// `forward` is what attention_with_lse returned, or into(out, lse).
inline constexpr detail::backward_returning_form<detail::naive_backward_kernel>
    naive_attention_backward{};
/// naive_attention_backward_into([executor,] gradients(dq, dk, dv), q, k, v, forward, ...)
inline constexpr detail::backward_writing_form<detail::naive_backward_kernel>
    naive_attention_backward_into{};

}  // namespace heed::inline HEED_TARGET
