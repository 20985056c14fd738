// SPDX-License-Identifier: MIT
// The gradient of the recurrences with a matrix state, by chunks of tokens: the gradients of every
// input, gates, betas and the initial state, from those of the output and the final state.
//
//   heed::matrix_state_inputs<float> in{q, k, v, gate};   // views; in.beta: the delta rule
//   heed::matrix_state_backward([executor,] in, {d_out, d_state}, {dq, dk, dv, d_gate}, [options])
//
// Serves unnormalised linear attention, retention, scalar-gated, gated, delta, gated delta and
// per-channel gated delta attention, and SSD with v = x dt and g = A dt. Formulas:
// chunk_gradient.hpp; axes: arguments.hpp. q has a multiple of k's heads, whose gradients are
// summed; ragged batches by options.sequence_bounds. Scalars float, double, half, bfloat16 of what
// has tokens; states and their gradients are of the accumulator type. Gradients are rounded once,
// and overlap no input. naive_matrix_state_backward takes the same arguments in float or double
// and is the oracle: they agree up to rounding. Gates are at most 0; of 0, -60 and -inf everything
// stays finite, and a gate of -inf has gradient 0. A NaN of d_out may reach all gradients of the
// tokens of its chunk and before it, one of an input all of its sequence and head. A sequence
// without tokens passes the final state's gradient on.
//
// States are kept every `chunk` tokens (those between, every 64 or, by channel, 16 tokens,
// computed again), by the delta rule of each token also what it corrected and its pairs: (tokens /
// chunk + chunk / 16) Dk Dv + tokens (Dv + 64 or 16) numbers a worker, beside some 12 x 64 (Dk +
// Dv). FLOPs a head and token, C tokens a chunk: 10 Dk Dv + 2.5 (C + 1) (Dk + Dv), by the delta
// rule 16 Dk Dv + 6 (C + 1) (Dk + Dv), what is computed again once in them. Accumulates in the
// accumulator type. Parallel over sequences x state heads; the same bits for any number of threads
// and any batch. Throws shape_error, option_error, std::bad_alloc, before anything is written.
// Yang et al. 2023, arXiv 2312.06635; 2024, arXiv 2406.06484.
#pragma once

#include "heed/core/target.hpp"
#include "heed/linear/channel_gradient.hpp"
#include "heed/linear/matrix_state/backward/chunk_gradient.hpp"
#include "heed/parallel/openmp.hpp"

namespace heed::inline HEED_TARGET {

/// The gradients `to` of what the forward pass read, from those of what it wrote.
template <executor E, class T>
void matrix_state_backward(E&& exec, const matrix_state_inputs<T>& in,
                           const matrix_state_cotangents<T>& given,
                           const matrix_state_gradients<T>& to,
                           const gradient_options& options = {}) {
  const auto call = detail::checked_call(in, given, to, options.sequence_bounds);
  detail::matrix_gradient<accumulate_t<T>> gradient(call);
  detail::run_channel_gradient(exec, gradient, options.scratch);
}
template <class T>
void matrix_state_backward(const matrix_state_inputs<T>& in,
                           const matrix_state_cotangents<T>& given,
                           const matrix_state_gradients<T>& to,
                           const gradient_options& options = {}) {
  matrix_state_backward(default_executor{}, in, given, to, options);
}

}  // namespace heed::inline HEED_TARGET
