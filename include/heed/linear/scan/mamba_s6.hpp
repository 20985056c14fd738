// SPDX-License-Identifier: MIT
// Selective scan, Mamba's S6: N leaky sums a channel, their rates and weights chosen by each token.
//
//   dt'_t = dt_t + bias, or softplus(dt_t + bias) with options.softplus
//   h_t[c, n] = exp(dt'_t[c] A[c, n]) h_{t-1}[c, n] + dt'_t[c] x_t[c] B_t[n]     h_0: state, or 0
//   y_t[c] = sum_n C_t[n] h_t[c, n] + D[c] x_t[c]
//   out_t[c] = y_t[c] silu(z_t[c])                                               with a gate z
//
//   auto out = heed::selective_scan(x, dt, a, b, c);
//   auto out = heed::selective_scan(pool, x, dt, a, b, c, state,
//       heed::selective_scan_options<float>{.skip = as_view(d), .gate = as_view(z),
//                                           .softplus = true});
//   heed::selective_scan_into(out, x, dt, a, b, c, state);
//
// | argument         | axes                                                               |
// |------------------|--------------------------------------------------------------------|
// | x, dt, gate, out | [batch, tokens, channels], any strides                             |
// | a                | [channels, N]; negative in every stable model                      |
// | b, c             | [batch, tokens, N], or [batch, tokens, groups, N]: channel c reads  |
// |                  | group c / (channels / groups)                                      |
// | skip D, dt_bias  | [channels], in the accumulator type                                |
// | state            | [sequences, channels, N], in the accumulator type; in and out      |
//
// `out` may be x, dt or gate element for element, and overlaps nothing else. Scalars float, double,
// half, bfloat16; dt', h and sums in the accumulator type. The error of h_t in float is at most eps
// sum_j (20 + 8 |L_tj|) |dt'_j x_j B_j| exp(L_tj), L_tj the sum of dt' A after j, however many the
// tokens and however little they forget; in double, and with positive dt' A, 4 eps a token come to
// that. Of y_t, that times |C|, and (N + 2) eps of the terms' absolute sum. A state is rounded once
// a call: tokens fed one by one lose digits as one float sum does. dt' A = -inf forgets all that
// came before, when it was finite; positive dt' A is computed too. A NaN or infinity in x or dt
// reaches its own token and later tokens of its channel, in b those of its group, in c and the gate
// its own token alone. A gate of -inf gives NaN. Zero tokens leave the state as it was.
//
// Cost a token and channel: N exp, 8 N FLOPs and a few; bytes: x, dt, z and out once, b and c once
// a block of channels (at most 16 packets). Scratch a worker: 16 tokens x (64 packets + 2 N
// numbers) + 3 N + 2 numbers a channel of up to 4 KiB of them. Parallel over sequences x blocks of
// channels; the same bits for any number of threads; a sequence in pieces differs by rounding. Safe
// to call from several threads.
//
// Throws shape_error, option_error, std::bad_alloc, before anything is written.
// Source: Gu, Dao 2023, arXiv 2312.00752, algorithm 2 and eq. 2, with B discretised as dt B
// (section 3.6 and the published code).
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "heed/core/target.hpp"
#include "heed/linear/scan/channel_scan.hpp"
#include "heed/linear/scan/mamba_s6_kernel.hpp"

namespace heed::inline HEED_TARGET {

/// T is x's scalar. A view left empty is absent.
template <class T>
struct selective_scan_options {
  view<const accumulate_t<T>, 1> skip{};     ///< D
  view<const accumulate_t<T>, 1> dt_bias{};  ///< added to dt, before softplus
  view<const T, 3> gate{};                   ///< z
  bool softplus = false;
  std::optional<linear_form> form = std::nullopt;  ///< these three as in scan_options
  std::span<const index> sequence_bounds{};
  workspace* scratch = nullptr;
};

namespace detail {

/// b or c with an axis of groups.
template <class A, class T>
[[nodiscard]] auto grouped_weights(const T& t) {
  if constexpr (rank_of<const T&> == 4) {
    return scan_input<A, 4>(t);
  } else {
    const auto v = scan_input<A, 3>(t);
    return view<const scalar_of<const T&>, 4>(v.data(), {v.extent(0), v.extent(1), 1, v.extent(2)},
                                              {v.stride(0), v.stride(1), 0, v.stride(2)});
  }
}

struct selective_scan_method : scan_method<5> {
  template <bool Given>
  static constexpr void require_inputs() {
    static_assert(Given, "heed: selective_scan takes x, dt, a, b, c");
  }
  template <class X>
  using options_for = selective_scan_options<std::remove_const_t<scalar_of<const X&>>>;

  template <executor E, class Out, class X, class Dt, class TA, class TB, class TC, class State>
  static void call(E& exec, Out&& out, const X& x, const Dt& dt, const TA& a, const TB& b,
                   const TC& c, State&& state, const options_for<X>& o) {
    using T = scalar_of<const X&>;
    using A = accumulate_t<T>;
    static_assert(writable_tensor<Out>, "heed: the output is not a tensor that can be written");
    const auto x3 = scan_input<A, 3>(x);
    const auto dt3 = scan_input<A, 3>(dt);
    const auto a2 = scan_input<A, 2>(a);
    const auto b4 = grouped_weights<A>(b);
    const auto c4 = grouped_weights<A>(c);
    const view<scalar_of<Out>, 3> o3 = as_view(std::forward<Out>(out));
    const index batch = x3.extent(0), tokens = x3.extent(1), channels = x3.extent(2);
    const index groups = b4.extent(2), states = a2.extent(1);
    require_extents("dt", dt3.extents(), x3.extents());
    require_equal("a", "channels", a2.extent(0), "x", channels);
    require_extents("b", b4.extents(), {batch, tokens, groups, states});
    require_extents("c", c4.extents(), {batch, tokens, groups, states});
    if (groups == 0 ? channels != 0 : channels % groups != 0) {
      fail<shape_error>("x has " + std::to_string(channels) + " channels, not a multiple of b's " +
                        std::to_string(groups) + " groups");
    }
    require_extents("out", o3.extents(), x3.extents());
    if (o.skip.data() != nullptr) require_extents("skip", o.skip.extents(), {channels});
    if (o.dt_bias.data() != nullptr) require_extents("dt_bias", o.dt_bias.extents(), {channels});
    if (o.gate.data() != nullptr) require_extents("gate", o.gate.extents(), x3.extents());
    const auto kept = open_scan<A>(x3.extents(), "x", std::forward<State>(state), o,
                                   std::array<index, 2>{channels, states});
    using kernel = selective_scan_kernel<A, T, scalar_of<const Dt&>, scalar_of<const TA&>,
                                         scalar_of<const TB&>, scalar_of<const TC&>, scalar_of<Out>,
                                         options_for<X>>;
    run_channel_scan<A>(exec, kernel{x3, dt3, a2, b4, c4, o3, kept, o}, x3.extents(), groups, o);
  }
};

}  // namespace detail

/// selective_scan_into([executor,] out, x, dt, a, b, c, [state,] [selective_scan_options<T>])
inline constexpr linear_function_into<detail::selective_scan_method> selective_scan_into{};
/// selective_scan([executor,] x, dt, a, b, c, [state,] [selective_scan_options<T>]) -> x's family
inline constexpr linear_function<detail::selective_scan_method> selective_scan{};

}  // namespace heed::inline HEED_TARGET
