// SPDX-License-Identifier: MIT
// The gradient of a diagonal plus low rank, and of RWKV-6 and 7, by chunks of tokens.
//
//   heed::dplr_backward_inputs<float> in{q, k, v, gate, a, b};   // views; RWKV-6: in.bonus, no a and b
//   in.d_out = d_out;
//   heed::dplr_backward([executor,] in, {dq, dk, dv, d_gate, da, db}, [scratch]);
//
// Serves rwkv6, rwkv7, low_rank_attention and diagonal_low_rank_attention. Formulas:
// low_rank_gradient.hpp; axes and options: naive_dplr_backward, which takes the same arguments and
// is the oracle: they agree up to rounding. Gates are at most 0; of 0, -60 and -inf everything stays
// finite, and a gate of -inf has gradient 0. A NaN may reach all gradients of the tokens of its chunk
// and before it.
//
// States are kept every `chunk` tokens (those between, every 16, or 64 without gates, computed again):
// (tokens / chunk + chunk / 16) Dk Dv numbers a worker, beside some 20 x 64 (Dk + Dv). FLOPs a head
// and token, C tokens a chunk: 22 Dk Dv + (C + 1) (12 Dk + 10 Dv); RWKV-6
// 10 Dk Dv + 2.5 (C + 1) (Dk + Dv); what is computed again once in them. Accumulates in A; the bonus'
// gradient is summed over tokens, then over the batch. Parallel over batch x heads; the same bits for
// any number of threads. Throws shape_error, option_error, std::bad_alloc, before anything is written.
// Sources of the forward forms: Peng et al. 2024, arXiv 2404.05892, eq. 18 and 19; Peng et al.
// 2025, arXiv 2503.14456, eq. 17.
#pragma once

#include "heed/core/target.hpp"
#include "heed/linear/channel_gradient.hpp"
#include "heed/linear/matrix_state/backward/low_rank_gradient.hpp"
#include "heed/parallel/openmp.hpp"

namespace heed::inline HEED_TARGET {

/// The gradients `to` of what the forward pass read, from those of what it wrote.
template <executor E, class A>
void dplr_backward(E&& exec, const dplr_backward_inputs<A>& in, const dplr_gradients<A>& to,
                   workspace* scratch = nullptr) {
  detail::check_dplr_backward(in, to);
  matrix_state_inputs<A> inputs{in.q, in.k, in.v, in.gate, {}, in.initial_state};
  inputs.chunk = in.chunk;
  const matrix_state_cotangents<A> given{in.d_out, in.d_final_state};
  const matrix_state_gradients<A> gradients{to.q, to.k, to.v, to.gate, {}, to.initial_state};
  detail::low_rank_gradient<A> gradient(in, to, inputs, given, gradients);
  detail::run_channel_gradient(exec, gradient, scratch);
}
template <class A>
void dplr_backward(const dplr_backward_inputs<A>& in, const dplr_gradients<A>& to,
                   workspace* scratch = nullptr) {
  dplr_backward(default_executor{}, in, to, scratch);
}

}  // namespace heed::inline HEED_TARGET
