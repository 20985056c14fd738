// SPDX-License-Identifier: MIT
// RWKV-4's time mixing: a mean of the values of each channel, weighted by exp(k) and by age.
//
//   w = -exp(decay)
//   out_t = (e^(p - m) a + e^(u + k_t - m) v_t) / (e^(p - m) b + e^(u + k_t - m)),
//       m = max(p, u + k_t)                                   a, b, p: those before the token
//   p' = max(p + w, k_t);  a' = e^(p + w - p') a + e^(k_t - p') v_t;  b' the same with 1 for v_t
//
// so that a e^p and b e^p are sum_j e^(k_j + (t - 1 - j) w) v_j and the sum of the weights, and
// nothing overflows whatever the keys: every exponential is at most 1.
//
//   auto out = heed::rwkv4(k, v, decay, bonus);
//   auto out = heed::rwkv4(pool, k, v, decay, bonus, state);
//   heed::rwkv4_into(out, k, v, decay, bonus, state, heed::scan_options{.scratch = &memory});
//
// | argument       | axes                                                                   |
// |----------------|------------------------------------------------------------------------|
// | k, v, out      | [batch, tokens, channels], any strides                                 |
// | decay, bonus u | [channels]                                                             |
// | state          | [sequences, 3, channels]: numerator a, denominator b, running maximum p;   |
// |                | in the accumulator type; in and out                                    |
//
// Zeros are the state before the first token: where the denominator is 0, the maximum is not read.
// `out` may be k or v element for element, and overlaps nothing else. Scalars float, double, half,
// bfloat16; the state in the accumulator type. With weights w_j = e^(k_j + ...) / their sum the
// error of out_t is at most eps sum_j w_j (|v_j| + |out_t|) (16 + 8 |w| (t - j) + |k_j - p|) in
// float, however many the tokens and however little they forget; in double, and where keys rise or
// fall by 40 within 64 tokens, 2 |p| eps a token come to that. A state and its maximum are rounded
// once a call: tokens fed one by one lose digits as one float sum does. A key of -inf has no weight,
// no weight at all gives 0. A key of +inf, a NaN, and an infinite value reach their own token and
// later ones of their channel. Zero tokens leave the state as it was.
//
// Cost a token and channel: one exp (4 where keys rise or fall so), a division, 20 FLOPs; bytes: k,
// v and out once. Scratch a worker: 2 tiles of 64 tokens x 8 packets, and 8 numbers a channel of up
// to 4 KiB of them. Parallel over sequences x blocks of channels; the same bits for any number of
// threads; a sequence in pieces differs by rounding. Safe to call from several threads.
//
// Throws shape_error, option_error, std::bad_alloc, before anything is written.
// Source: Peng et al. 2023, arXiv 2305.13048, eq. 16 and appendix D.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>

#include "heed/core/target.hpp"
#include "heed/linear/scan/channel_scan.hpp"
#include "heed/linear/scan/rwkv4_sums.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

template <class A, class TK, class TV, class TW, class TU, class TO>
struct rwkv4_scan {
  using sums = rwkv4_sums<A>;
  static constexpr index unit = sums::unit;
  static constexpr index width = sums::width;
  static constexpr index tile_tokens = scan_tile;

  view<const TK, 3> k;
  view<const TV, 3> v;
  view<const TW, 1> decay;
  view<const TU, 1> bonus;
  view<TO, 3> out;
  view<A, 3> state;  // null data where the caller keeps none

  struct scratch_type {
    A* rows = nullptr;  // of sums
    A* k = nullptr;
    A* v = nullptr;
  };
  [[nodiscard]] scratch_type allocate(arena& c) const noexcept {
    scratch_type s;
    s.k = c.allocate<A>(scan_tile * width);
    s.v = c.allocate<A>(scan_tile * width);
    return s;
  }
  static void allocate_channels(arena& c, scratch_type& s) noexcept {
    s.rows = c.allocate<A>(sums::all_rows * width);
  }

  void prepare(const channel_block& c, const scratch_type& s) const noexcept {
    std::fill_n(s.rows, sums::all_rows * width, A(0));
    for (const index r : {sums::running, sums::reference}) {
      std::fill_n(s.rows + r * width, width, -std::numeric_limits<A>::infinity());
    }
    for (index i = 0; i < c.count; ++i) {
      s.rows[sums::rate * width + i] = -std::exp(static_cast<A>(decay(c.first + i)));
      s.rows[sums::extra * width + i] = static_cast<A>(bonus(c.first + i));
    }
  }
  void load_state(const channel_block& c, const scratch_type& s) const noexcept {
    for (index i = 0; state.data() != nullptr && i < c.count; ++i) {
      for (index r = 0; r < 2; ++r) s.rows[r * width + i] = state(c.sequence, r, c.first + i);
      if (s.rows[width + i] == A(0)) continue;
      s.rows[sums::running * width + i] = s.rows[sums::reference * width + i] =
          state(c.sequence, 2, c.first + i);
    }
  }
  void store_state(const channel_block& c, const scratch_type& s) const noexcept {
    if (state.data() == nullptr) return;
    for (index i = 0; i < c.count; i += simd::lanes<A>) {
      sums::refer_to_maximum(s.rows + i);
    }
    for (index r = 0; r < 3; ++r) {
      for (index i = 0; i < c.count; ++i) state(c.sequence, r, c.first + i) = s.rows[r * width + i];
    }
  }

  void update_state(const channel_block& c, range t, const scratch_type& s, A* move,
                    const channel_ahead& ahead) const noexcept {
    channel_lines next(ahead, tile_tokens, k.extent(1));
    next.add(k, ahead);
    next.add(v, ahead);
    next.add(out, ahead);
    load_channels(k, c, t, s.k, width, unit);
    load_channels(v, c, t, s.v, width, unit);
    if (move != nullptr) *move += static_cast<A>(t.size());
    for (index first = 0; first < c.count; first += unit) {
      const sums part{s.rows + first, s.k + first, s.v + first};
      A before[std::size_t{sums::state_rows * unit}];
      part.copy_state(before);
      if (part.settle_reference(t.size())) {
        part.run_settled(t.size(), next);
        if (stayed_finite(before, part.rows, unit)) continue;
        // Infinite values stay such, token by token from the start.
        part.restore_state(before);
        const index count = (std::min)(unit, c.count - first);
        load_channels(v, {c.sequence, c.batch, c.group, c.first + first, count}, t, part.values,
                      width, unit);
      }
      for (index i = 0; i < unit; i += simd::lanes<A>) sums::refer_to_maximum(part.rows + i);
      part.run(t.size(), next);
    }
  }
  void compute_output(const channel_block& c, range t, const scratch_type& s) const noexcept {
    store_channels(s.v, width, out, c, t);
  }

  [[nodiscard]] static A* state_numbers(const scratch_type& s) noexcept { return s.rows; }
  [[nodiscard]] static index state_size() noexcept { return sums::state_rows * width; }
  /// The number of tokens: the decay is the same for each.
  [[nodiscard]] static index move_size() noexcept { return 1; }
  static void join(const A* before, const A* move, const scratch_type& s) noexcept {
    for (index i = 0; i < width; i += simd::lanes<A>) sums::join(before + i, *move, s.rows + i);
  }
};

struct rwkv4_method : scan_method<4> {
  template <bool Given>
  static constexpr void require_inputs() {
    static_assert(Given, "heed: rwkv4 takes k, v, decay, bonus");
  }
  template <executor E, class Out, class K, class V, class W, class U, class State>
  static void call(E& exec, Out&& out, const K& k, const V& v, const W& decay, const U& bonus,
                   State&& state, const scan_options& o) {
    using A = accumulate_t<scalar_of<const K&>>;
    static_assert(writable_tensor<Out>, "heed: the output is not a tensor that can be written");
    const auto k3 = scan_input<A, 3>(k);
    const auto v3 = scan_input<A, 3>(v);
    const auto w1 = scan_input<A, 1>(decay);
    const auto u1 = scan_input<A, 1>(bonus);
    const view<scalar_of<Out>, 3> o3 = as_view(std::forward<Out>(out));
    const index channels = k3.extent(2);
    require_extents("v", v3.extents(), k3.extents());
    require_extents("decay", w1.extents(), {channels});
    require_extents("bonus", u1.extents(), {channels});
    require_extents("out", o3.extents(), k3.extents());
    const auto kept = open_scan<A>(k3.extents(), "k", std::forward<State>(state), o,
                                   std::array<index, 2>{3, channels});
    using kernel = rwkv4_scan<A, scalar_of<const K&>, scalar_of<const V&>, scalar_of<const W&>,
                              scalar_of<const U&>, scalar_of<Out>>;
    run_channel_scan<A>(exec, kernel{k3, v3, w1, u1, o3, kept}, k3.extents(), 1, o);
  }
};

}  // namespace detail

/// rwkv4_into([executor,] out, k, v, decay, bonus, [state,] [scan_options])
inline constexpr linear_function_into<detail::rwkv4_method> rwkv4_into{};
/// rwkv4([executor,] k, v, decay, bonus, [state,] [scan_options]) -> k's family
inline constexpr linear_function<detail::rwkv4_method> rwkv4{};

}  // namespace heed::inline HEED_TARGET
