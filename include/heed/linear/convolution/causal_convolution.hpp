// SPDX-License-Identifier: MIT
// Depthwise causal convolution over tokens, with the state that lets a sequence arrive in pieces.
//
//   y[b,c,t] = act(bias[c] + sum_j weight[c][j] x[b,c,t + j - (W-1)])        j = 0 .. W-1
//
// where x at t = -(W-1) .. -1 is the state, or 0 without one; afterwards the state is the last W-1
// inputs of [state, x]. act(s) = s, or silu(s) = s / (1 + exp(-s)).
//
//   auto y = heed::causal_convolution(x, weight);
//   auto y = heed::causal_convolution(x, weight, {.bias = heed::as_view(bias), .silu = true});
//   heed::tensor<float, 3> state({batch, channels, taps - 1});                       // zeros
//   auto y = heed::causal_convolution(x, weight, {.state = heed::as_view(state)});   // in and out
//   heed::causal_convolution_into(pool, out, x, weight, options);
//   auto y = heed::causal_convolution(heed::as_view(tokens_first).swap_axes(1, 2), weight);
//
// | argument | axes                                                                            |
// |----------|---------------------------------------------------------------------------------|
// | x, out   | [batch, channels, tokens], or [channels, tokens]                                |
// | weight   | [channels, W], W >= 1; the last tap meets the token itself                      |
// | bias     | [channels], scalar of weight; optional                                          |
// | state    | [sequences, channels, W-1] (1 where x has no batch), accumulator type; optional |
//
// Any strides. `out` may be x itself, element for element; otherwise it and the state overlap
// nothing else. Scalars float, double, half, bfloat16; sums, silu and state in the accumulator
// type, so that a state holds its inputs exactly.
//
// An output's sum is off by at most (W + 1) eps of its terms' absolute sum; silu adds (|s| + 8) eps
// of the result, and a result below the smallest normal number is off by less than |s| times that
// number. A NaN or infinity in x reaches its own channel, tokens t to t + W-1 (a weight of 0 does
// not hide it), and the state; silu of -infinity is NaN. A sequence fed in pieces, in any layout
// and with any number of threads, gives the same bits.
//
// Cost: 2 W multiply-add FLOPs an output, and with silu an exponential and a division; x and out
// are each moved once. Parallel over sequences x blocks of channels. Scratch a worker:
// (W + 32) x 8 packets and 2 W numbers a channel of up to 4 KiB of them, or 2 W + 1024 numbers; no
// other allocation. Memory is read along channels where those are contiguous, else along tokens.
//
// Throws shape_error, std::bad_alloc, before anything is written.
// Sources: causal convolution: van den Oord et al. 2016, arXiv 1609.03499, section 2.1; depthwise
// and short, before a recurrence: Fu et al. 2022, arXiv 2212.14052, section 3.1, and, with silu, Gu
// and Dao 2023, arXiv 2312.00752, section 3.4; silu: Elfwing, Uchibe, Doya 2017, arXiv 1702.03118.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include "heed/api/overloads.hpp"
#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/core/workspace.hpp"
#include "heed/linear/channel_blocks.hpp"
#include "heed/linear/convolution/channel_block.hpp"
#include "heed/linear/recurrence.hpp"
#include "heed/parallel/executor.hpp"
#include "heed/parallel/scratch_tasks.hpp"
#include "heed/tensor/scalar.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

/// Views of the caller's memory; `W` is the scalar of the weights, `A` the accumulator type.
template <class W, class A>
struct causal_convolution_options {
  /// Added to every output of its channel.
  std::optional<view<const W, 1>> bias = std::nullopt;
  /// The W-1 inputs before x, oldest first; after the call those before what follows.
  std::optional<view<A, 3>> state = std::nullopt;
  /// s / (1 + exp(-s)) of every output, also called swish.
  bool silu = false;
  /// Sequences of different lengths, one after another on the token axis of a batch of 1: where
  /// each begins, and at last where the last one ends. The state has one batch entry a sequence.
  std::span<const index> sequence_bounds{};
  /// Scratch the caller keeps between calls; two calls at once are refused. Without it a call
  /// allocates its own.
  workspace* scratch = nullptr;
};

namespace detail {

/// Named by the tensors, so that a call's `{.silu = true}` needs no type.
template <class X, class W>
using convolution_options_of =
    causal_convolution_options<scalar_of<const W&>, accumulate_t<scalar_of<const X&>>>;

/// Channels x tokens as batch x channels x tokens.
template <class T, int R>
[[nodiscard]] view<T, 3> with_batch(const view<T, R>& v) {
  if constexpr (R == 2) {
    return {v.data(), {1, v.extent(0), v.extent(1)}, {0, v.stride(0), v.stride(1)}};
  } else {
    return v;
  }
}

template <class A, class X, class W, class Out>
void check_convolution(const convolution_block<A, X, W, Out>& c,
                       const causal_convolution_options<W, A>& o) {
  if (c.taps() < 1) fail<shape_error>("weight has taps 0, must be at least 1");
  require_equal("weight", "channels", c.weight.extent(0), "x", c.channels());
  if (c.out.extents() != c.x.extents()) {
    fail<shape_error>("out has extents " + format_extents(c.out.extents()) + ", the result has " +
                      format_extents(c.x.extents()));
  }
  if (o.bias) require_equal("bias", "channels", o.bias->extent(0), "x", c.channels());
  check_sequence_bounds(o.sequence_bounds, "x", c.batch(), c.tokens());
  const index sequences =
      o.sequence_bounds.empty() ? c.batch() : static_cast<index>(o.sequence_bounds.size()) - 1;
  const std::array<index, 3> past{sequences, c.channels(), c.taps() - 1};
  if (o.state && o.state->extents() != past) {
    fail<shape_error>("state has extents " + format_extents(o.state->extents()) +
                      ", the call needs " + format_extents(past) + " (taps - 1 inputs)");
  }
}

/// A batch of sequences of equal length, or the sequences that `bounds` cut from its only entry.
template <class E, class A, class X, class W, class Out>
void run_convolution(E& exec, convolution_block<A, X, W, Out> whole, std::span<const index> bounds,
                     workspace& memory) {
  const bool ragged = !bounds.empty();
  const index sequences = ragged ? static_cast<index>(bounds.size()) - 1 : whole.batch();
  whole.columns = (std::min)(channels_per_task(exec, sequences, whole.channels(), whole.part),
                             task_channels<A>);
  const auto sequence = [&](index n) noexcept {
    auto one = whole;
    const auto at = static_cast<std::size_t>(n);
    const range t = ragged ? range{bounds[at], bounds[at + 1]} : range{0, whole.tokens()};
    const index entry = ragged ? 0 : n;
    one.x = whole.x.slice(0, entry, entry + 1).slice(2, t.begin, t.end);
    one.out = whole.out.slice(0, entry, entry + 1).slice(2, t.begin, t.end);
    if (whole.state.data() != nullptr) one.state = whole.state.slice(0, n, n + 1);
    return one;
  };
  // Short sequences and long ones are cut differently; scratch and tasks suffice for every one.
  std::size_t bytes = 0;
  index blocks = 0;
  for (index n = 0; n < (ragged ? sequences : std::min<index>(sequences, 1)); ++n) {
    const auto one = sequence(n);
    if (one.tokens() == 0) continue;
    arena measure;
    (void)one.allocate(measure);
    bytes = (std::max)(bytes, measure.used());
    blocks = (std::max)(blocks, one.blocks());
  }
  for_each_with_scratch(
      exec, sequences * blocks, memory,
      [&](arena& c) noexcept { return c.allocate<std::byte>(static_cast<index>(bytes)); },
      [&](std::byte* scratch, index task) noexcept {
        const auto one = sequence(task / blocks);
        const index block = task % blocks;
        if (one.tokens() == 0 || block >= one.blocks()) return;
        arena c(scratch);
        one.run(0, block, one.allocate(c));
      });
}

template <class E, class Out, class X, class W>
void convolution_call(E& exec, Out&& out, const X& x, const W& weight,
                      const convolution_options_of<X, W>& o) {
  using x_scalar = scalar_of<const X&>;
  using w_scalar = scalar_of<const W&>;
  using A = accumulate_t<x_scalar>;
  static_assert(attention_scalar<w_scalar> && attention_scalar<scalar_of<Out>>,
                "heed: weights and outputs are float, double, half or bfloat16");
  static_assert(
      std::is_same_v<A, accumulate_t<w_scalar>> && std::is_same_v<A, accumulate_t<scalar_of<Out>>>,
      "heed: x, weight and out accumulate in different types; double goes with double "
      "alone");
  static_assert(writable_tensor<Out>, "heed: the output is not a tensor that can be written");
  static_assert(rank_of<const X&> == 2 || rank_of<const X&> == 3,
                "heed: a convolution's input is channels x tokens or batch x channels x tokens");
  static_assert(rank_of<Out> == rank_of<const X&>, "heed: the output has another rank than x");
  static_assert(rank_of<const W&> == 2, "heed: a convolution's weights are channels x taps");
  convolution_block<A, x_scalar, w_scalar, scalar_of<Out>> block{
      with_batch(as_view(std::forward<Out>(out))),
      with_batch(as_view(x)),
      as_view(weight),
      {},
      {},
      o.silu};
  check_convolution(block, o);
  if (o.bias) block.bias = *o.bias;
  if (o.state) block.state = *o.state;

  scratch_lease lease(o.scratch);
  run_convolution(exec, block, o.sequence_bounds, lease.memory());
}

/// The options' type, where both inputs are tensors.
template <class... Inputs>
struct convolution_inputs {};
template <tensor_like X, tensor_like W>
struct convolution_inputs<X, W> {
  using options = convolution_options_of<std::remove_cvref_t<X>, std::remove_cvref_t<W>>;
};

struct causal_convolution_method : api::method<api::no_options> {
  template <class... Inputs>
  using options = typename convolution_inputs<Inputs...>::options;

  template <class X, class... Rest>
  [[nodiscard]] static auto result(const X& x, const Rest&...) {
    return result_like<const X&>(as_view(x).extents());
  }
  template <class E, class Out, class X, class W>
  static void write(E& exec, Out&& out, const X& x, const W& weight,
                    const convolution_options_of<X, W>& o) {
    convolution_call(exec, std::forward<Out>(out), x, weight, o);
  }
};

}  // namespace detail

/// causal_convolution_into([executor,] out, x, weight, options = {})
inline constexpr api::writing<detail::causal_convolution_method, 2> causal_convolution_into{};
/// causal_convolution([executor,] x, weight, options = {}) -> a tensor of x's family
inline constexpr api::returning<detail::causal_convolution_method, 2> causal_convolution{};

}  // namespace heed::inline HEED_TARGET
