// SPDX-License-Identifier: MIT
// The gradient of kernelised attention by its features, in time linear in tokens.
//
//   n_i = phi(q_i).z_i + eps,  out_i = phi(q_i)'S_i / n_i,   S and z: a state of the values [v, 1]
//   e_i = [d_out_i, -d_out_i.out_i] / n_i                    its cotangents; unnormalised scale d_out_i
//   causal      matrix_state_backward of phi(q), phi(k), [v, 1] and e
//   not causal  dphi(q)_i = (sum_j phi(k)_j [v, 1]_j') e_i,  and alike those of phi(k) and v:
//               attention without a kernel again, the arguments in other places
//
// A row without a weight, whose output is 0, has gradient 0. Memory: features, values and their
// gradients, N (4 F + 3 Dv) numbers a head. The same bits for any number of threads.
// Katharopoulos et al. 2020, arXiv 2006.16236, section 3.3.1.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "heed/core/target.hpp"
#include "heed/linear/gradient_views.hpp"
#include "heed/linear/kernelised/linear_attention.hpp"
#include "heed/linear/matrix_state/backward/matrix_state_backward.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

/// What the forward pass read, and the gradient of what it wrote.
template <class A>
struct linear_attention_backward_inputs {
  view<const A, 4> q;
  view<const A, 4> k;
  view<const A, 4> v;
  view<const A, 4> d_out;
};

/// Where gradients go; all are wanted.
template <class A>
struct linear_attention_gradients {
  view<A, 4> q;
  view<A, 4> k;
  view<A, 4> v;
};

namespace detail {

template <class A>
void check_linear_gradients(const linear_attention_backward_inputs<A>& in,
                            const linear_attention_gradients<A>& to, bool causal) {
  const auto q = in.q.extents();
  check_linear_shapes(q, in.k.extents(), in.v.extents(), causal);
  check_extents("d_out", in.d_out, std::array<index, 4>{q[0], q[1], q[2], in.v.extent(3)});
  check_extents("dq", to.q, q);
  check_extents("dk", to.k, in.k.extents());
  check_extents("dv", to.v, in.v.extents());
}

/// f(batch, head) for every head of x, as tasks.
template <class E, class T, class F>
void for_each_head(E& exec, const view<T, 4>& x, F&& f) {
  const index tasks = x.extent(0) * x.extent(1);
  const index workers = worker_count(exec, tasks);
  for_each_task(exec, workers, tasks,
                [&](index, index t) noexcept { f(t / x.extent(1), t % x.extent(1)); });
}

/// The query heads of a kv head as one head of more tokens.
template <class A>
[[nodiscard]] view<const A, 4> as_kv_heads(const tensor<A, 4>& x, index kv_heads) {
  const index group = kv_heads > 0 ? x.extent(1) / kv_heads : 0;
  return view<const A, 4>(x.data(), {x.extent(0), kv_heads, group * x.extent(2), x.extent(3)});
}

template <class A>
struct feature_gradients {
  tensor<A, 4> q, k;
};

/// The gradients of the features fq and fk; those of the values go to `dv`.
template <class A, class E>
[[nodiscard]] feature_gradients<A> kernelised_backward(
    E& exec, const tensor<A, 4>& fq, const tensor<A, 4>& fk,
    const linear_attention_backward_inputs<A>& in, const view<A, 4>& dv, bool causal,
    bool normalise, A eps, double scale) {
  const index channels = in.v.extent(3);
  const index width = channels + (normalise ? 1 : 0);
  const index kv = fk.extent(1);
  tensor<A, 4> values({fk.extent(0), kv, fk.extent(2), width});
  tensor<A, 4> cotangent({fq.extent(0), fq.extent(1), fq.extent(2), width});
  tensor<A, 4> d_values(values.extents());
  feature_gradients<A> to{tensor<A, 4>(fq.extents()), tensor<A, 4>(fk.extents())};
  const identity_features plain;
  linear_options sums;
  sums.causal = causal;
  sums.normalise = false;
  sums.scale = normalise ? 1 : scale;
  for_each_head(exec, as_view(values), [&](index b, index h) noexcept {
    for (index t = 0; t < values.extent(2); ++t) {
      for (index c = 0; c < channels; ++c) values(b, h, t, c) = in.v(b, h, t, c);
      if (normalise) values(b, h, t, channels) = A(1);
    }
  });
  if (normalise) linear_attention_into(exec, cotangent, fq, fk, values, sums, plain);
  for_each_head(exec, as_view(cotangent), [&](index b, index h) noexcept {
    for (index t = 0; t < cotangent.extent(2); ++t) {
      A* const row = &cotangent(b, h, t, 0);
      if (!normalise) {
        for (index c = 0; c < channels; ++c) row[c] = in.d_out(b, h, t, c);
        continue;
      }
      const A factor = row[channels] == A(0) ? A(0) : A(1) / (row[channels] + eps);
      A past = A(0);
      for (index c = 0; c < channels; ++c) {
        past += in.d_out(b, h, t, c) * (row[c] * factor);
        row[c] = in.d_out(b, h, t, c) * factor;
      }
      row[channels] = -past * factor;
    }
  });
  if (causal) {
    matrix_state_inputs<A> state{as_view(fq), as_view(fk), as_view(std::as_const(values))};
    state.scale = *sums.scale;
    matrix_state_backward(exec, state, {as_view(std::as_const(cotangent))},
                          {as_view(to.q), as_view(to.k), as_view(d_values)});
  } else {
    const auto all_q = as_kv_heads(fq, kv);
    const auto all_e = as_kv_heads(cotangent, kv);
    linear_attention_into(exec, to.q, cotangent, values, fk, sums, plain);
    linear_attention_into(exec, to.k, values, all_e, all_q, sums, plain);
    linear_attention_into(exec, d_values, fk, all_q, all_e, sums, plain);
  }
  for_each_head(exec, dv, [&](index b, index h) noexcept {
    for (index t = 0; t < dv.extent(2); ++t) {
      for (index c = 0; c < channels; ++c) dv(b, h, t, c) = d_values(b, h, t, c);
    }
  });
  return to;
}

}  // namespace detail

}  // namespace heed::inline HEED_TARGET
