// SPDX-License-Identifier: MIT
// The gradient of the recurrences with a matrix state, by chunks of tokens: the gradients of every
// input, gates, betas and the initial state, from those of the output and the final state.
//
//   heed::matrix_state_inputs<float> in{q, k, v, gate};   // views; in.beta: the delta rule
//   heed::matrix_state_backward([executor,] in, {d_out, d_state}, {dq, dk, dv, d_gate}, [scratch])
//
// Serves unnormalised linear attention, retention, scalar-gated, gated, delta, gated delta and
// per-channel gated delta attention, and SSD with v = x dt and g = A dt. Formulas: chunk_gradient.hpp;
// axes: arguments.hpp. naive_matrix_state_backward takes the same arguments and is the oracle: they
// agree up to rounding. Gates are at most 0; of 0, -60 and -inf everything stays finite, and a gate
// of -inf has gradient 0. A NaN may reach all gradients of the tokens of its chunk and before it.
//
// States are kept every `chunk` tokens (those between, every 64 or, by channel, 16 tokens, computed
// again): (tokens / chunk + chunk / 16) Dk Dv numbers a worker, beside some 12 x 64 (Dk + Dv).
// FLOPs a head and token, C tokens a chunk: 10 Dk Dv + 2.5 (C + 1) (Dk + Dv), by the delta rule
// 16 Dk Dv + 6 (C + 1) (Dk + Dv), what is computed again once in them. Accumulates in A. Parallel over
// batch x state heads; the same bits for any number of threads. Throws shape_error, option_error,
// std::bad_alloc, before anything is written.
// Yang et al. 2023, arXiv 2312.06635; 2024, arXiv 2406.06484.
#pragma once

#include "heed/core/target.hpp"
#include "heed/linear/matrix_state/backward/arguments.hpp"
#include "heed/linear/matrix_state/backward/chunk_gradient.hpp"
#include "heed/parallel/openmp.hpp"
#include "heed/parallel/scratch_tasks.hpp"

namespace heed::inline HEED_TARGET {

/// The gradients `to` of what the forward pass read, from those of what it wrote.
template <executor E, class A>
void matrix_state_backward(E&& exec, const matrix_state_inputs<A>& in,
                           const matrix_state_cotangents<A>& given,
                           const matrix_state_gradients<A>& to, workspace* scratch = nullptr) {
  const A scale = detail::check_matrix_gradients(in, given, to);
  const detail::matrix_gradient<A> gradient(in, given, to, scale);
  scratch_lease lease(scratch);
  for_each_with_scratch(
      exec, gradient.tasks(), lease.memory(),
      [&](arena& c) noexcept { return gradient.allocate(c); },
      [&](auto& s, index task) noexcept { gradient.run(task, s); });
}
template <class A>
void matrix_state_backward(const matrix_state_inputs<A>& in,
                           const matrix_state_cotangents<A>& given,
                           const matrix_state_gradients<A>& to, workspace* scratch = nullptr) {
  matrix_state_backward(default_executor{}, in, given, to, scratch);
}

}  // namespace heed::inline HEED_TARGET
