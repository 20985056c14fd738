// SPDX-License-Identifier: MIT
// The backward pass of the selective scan S6, with skip, gate, softplus and groups.
//
//   heed::selective_scan_backward_inputs<float> in{x, dt, a, b, c};   // views; in.gate, in.skip, ...
//   in.d_out = d_out;
//   heed::selective_scan_backward([executor,] in, {dx, d_dt, da, db, dc}, [options]);
//
// Formulas and axes: naive_selective_scan_backward, which is the oracle and takes the same
// arguments; b and c are [batch, tokens, groups, N]. Any strides. Scalars float, double, half,
// bfloat16 of what has tokens; a, skip, dt_bias, states and their gradients are of the accumulator
// type. Gradients are rounded once, and overlap no input. A decay of 0 (dt' a of -inf) has
// gradient 0. A NaN of d_out may reach all gradients of the tokens of its chunk and before it, one
// of an input all of its sequence, in all channels of its group. A sequence without tokens passes
// the final state's gradient on. A gate's gradient is wanted only where there is a gate.
//
// Sums over tokens go chunk by chunk, then over sequences; those of b and c over the channels of a
// block (16 packets), then over the blocks: all in the accumulator type.
//
// Cost a token, channel and state: 16 FLOPs, and the state once more (4 and an exp). States are
// kept every `chunk` tokens: scratch a worker N (tokens / chunk + 5) + 10 chunk numbers for each
// of 16 packets of channels; of all workers 2 N numbers for each token and block of channels, and
// N + 2 a channel of every sequence. Parallel over sequences x blocks of channels; the same bits
// for any number of threads. Throws shape_error, option_error, std::bad_alloc, before anything is
// written.
// Source of the forward form: Gu, Dao 2023, arXiv 2312.00752; reverse accumulation.
#pragma once

#include "heed/core/target.hpp"
#include "heed/linear/scan/backward/s6_gradient.hpp"
#include "heed/parallel/openmp.hpp"

namespace heed::inline HEED_TARGET {

/// The gradients `to` of what the forward pass read, from those of what it wrote.
template <executor E, class T>
void selective_scan_backward(E&& exec, const selective_scan_backward_inputs<T>& in,
                             const selective_scan_gradients<T>& to,
                             const gradient_options& options = {}) {
  const auto blocks = detail::blocks_of_channels("x", in.x.extents(), options.sequence_bounds,
                                                 (std::max)(in.b.extent(2), index{1}),
                                                 detail::s6_gradient<T>::width);
  detail::check_selective_scan_backward(in, to, blocks.sequences());
  detail::s6_gradient<T> gradient(in, to, blocks);
  detail::run_channel_gradient(exec, gradient, options.scratch);
}
template <class T>
void selective_scan_backward(const selective_scan_backward_inputs<T>& in,
                             const selective_scan_gradients<T>& to,
                             const gradient_options& options = {}) {
  selective_scan_backward(default_executor{}, in, to, options);
}

}  // namespace heed::inline HEED_TARGET
