// SPDX-License-Identifier: MIT
// The gradient of a diagonal plus low rank, and of RWKV-6 and 7, by chunks of tokens.
//
//   heed::dplr_backward_inputs<float> in{q, k, v, gate, a, b};   // views; RWKV-6: in.bonus, no a and b
//   in.d_out = d_out;
//   heed::dplr_backward([executor,] in, {dq, dk, dv, d_gate, da, db}, [options]);
//
// Serves rwkv6, rwkv7, low_rank_attention and diagonal_low_rank_attention. Formulas:
// low_rank_gradient.hpp; axes: arguments.hpp. q has a multiple of k's heads, whose gradients are
// summed; ragged batches by options.sequence_bounds. Scalars float, double, half, bfloat16 of what
// has tokens; bonus, states and their gradients are of the accumulator type. Gradients are rounded
// once, and overlap no input. naive_dplr_backward takes the same arguments in float or double and
// is the oracle: they agree up to rounding. Gates are at most 0; of 0, -60 and -inf everything
// stays finite, and a gate of -inf has gradient 0. A NaN of d_out may reach all gradients of the
// tokens of its chunk and before it, one of an input all of its sequence and head. A sequence
// without tokens passes the final state's gradient on.
//
// States are kept every `chunk` tokens (those between, every 16, or 64 without gates, computed
// again), of each token what it read and its pairs: (tokens / chunk + chunk / 16) Dk Dv + tokens
// (Dv + 32, or 128) numbers a worker, beside some 20 x 64 (Dk + Dv). FLOPs a head and token, C
// tokens a chunk: 22 Dk Dv + (C + 1) (12 Dk + 10 Dv); RWKV-6 10 Dk Dv + 2.5 (C + 1) (Dk + Dv);
// what is computed again once in them. Accumulates in the accumulator type; the bonus' gradient is
// summed over tokens, then over the batch. Parallel over sequences x state heads; the same bits
// for any number of threads and any batch. Throws shape_error, option_error, std::bad_alloc,
// before anything is written.
// Sources of the forward forms: Peng et al. 2024, arXiv 2404.05892, eq. 18 and 19; Peng et al.
// 2025, arXiv 2503.14456, eq. 17.
#pragma once

#include "heed/core/target.hpp"
#include "heed/linear/channel_gradient.hpp"
#include "heed/linear/matrix_state/backward/low_rank_gradient.hpp"
#include "heed/parallel/openmp.hpp"

namespace heed::inline HEED_TARGET {

/// The gradients `to` of what the forward pass read, from those of what it wrote.
template <executor E, class T>
void dplr_backward(E&& exec, const dplr_backward_inputs<T>& in, const dplr_gradients<T>& to,
                   const gradient_options& options = {}) {
  const auto call = detail::checked_call(in, to, options.sequence_bounds);
  detail::low_rank_gradient<accumulate_t<T>> gradient(call);
  detail::run_channel_gradient(exec, gradient, options.scratch);
}
template <class T>
void dplr_backward(const dplr_backward_inputs<T>& in, const dplr_gradients<T>& to,
                   const gradient_options& options = {}) {
  dplr_backward(default_executor{}, in, to, options);
}

}  // namespace heed::inline HEED_TARGET
