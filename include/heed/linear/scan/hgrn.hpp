// SPDX-License-Identifier: MIT
// HGRN, the hierarchically gated recurrence: each channel a leaky sum with a gate of its own.
//
//   h_t = exp(g_t) h_{t-1} + x_t,   out_t = h_t                        h_0: the state, or 0
//
//   auto out = heed::hgrn(x, g);
//   auto out = heed::hgrn(pool, x, g, state);
//   heed::hgrn_into(out, x, g, state, heed::scan_options{.scratch = &memory});
//
// | argument  | axes                                                      |
// |-----------|-----------------------------------------------------------|
// | x, g, out | [batch, tokens, channels], any strides; g: log gates      |
// | state     | [sequences, channels], accumulator type; in and out       |
//
// `out` may be x or g element for element, and overlaps nothing else. Scalars float, double, half,
// bfloat16; h in the accumulator type. The error of h_t is at most eps times
// sum_j (4 + |G_tj|) (t - j + 1) |x_j| exp(G_tj), G_tj the sum of the gates after j: bounded for
// decaying gates however many the tokens. g = -inf forgets all that came before, when it was
// finite; gates above 0 are computed too. A NaN or infinity reaches its own token and later tokens
// of its channel. Zero tokens leave the state as it was.
//
// FLOPs 2 and one exp a token and channel; bytes: x, g and out once. Scratch a worker: 2 tiles of
// 64 tokens x 8 packets, and the states of up to 4 KiB of channels. Parallel over sequences x
// blocks of channels; the same bits for any number of threads, and, but in the form `scan`, for a
// sequence in pieces. Safe to call from several threads.
//
// Throws shape_error, option_error, std::bad_alloc, before anything is written.
// Source: Qin, Yang, Zhong 2023, arXiv 2311.04823, eq. 1 to 4 (real gates, the input gate in x).
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "heed/core/target.hpp"
#include "heed/linear/scan/channel_scan.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

template <class A, class TX, class TG, class TO>
struct hgrn_scan {
  static constexpr int packets = 4;
  static constexpr index unit = packets * simd::lanes<A>;
  static constexpr index width = scan_packets * simd::lanes<A>;
  static constexpr index tile_tokens = scan_tile;

  view<const TX, 3> x;
  view<const TG, 3> g;
  view<TO, 3> out;
  view<A, 2> state;  // null data where the caller keeps none

  struct scratch_type {
    A* h = nullptr;
    A* x = nullptr;
    A* g = nullptr;
  };
  [[nodiscard]] scratch_type allocate(arena& c) const noexcept {
    scratch_type s;
    s.x = c.allocate<A>(scan_tile * width);
    s.g = c.allocate<A>(scan_tile * width);
    return s;
  }
  static void allocate_channels(arena& c, scratch_type& s) noexcept { s.h = c.allocate<A>(width); }

  void prepare(const channel_block&, const scratch_type& s) const noexcept {
    std::fill_n(s.h, width, A(0));
  }
  void load_state(const channel_block& c, const scratch_type& s) const noexcept {
    if (state.data() == nullptr) return;
    for (index i = 0; i < c.count; ++i) s.h[i] = state(c.sequence, c.first + i);
  }
  void store_state(const channel_block& c, const scratch_type& s) const noexcept {
    if (state.data() == nullptr) return;
    for (index i = 0; i < c.count; ++i) state(c.sequence, c.first + i) = s.h[i];
  }

  void update_state(const channel_block& c, range t, const scratch_type& s, A* move,
                    const channel_ahead&) const noexcept {
    load_channels(x, c, t, s.x, width, unit);
    load_channels(g, c, t, s.g, width, unit);
    if (move != nullptr) add_rows(s.g, t.size(), round_up(c.count, simd::lanes<A>), width, move);
    for (index first = 0; first < c.count; first += unit) {
      const scratch_type part{s.h + first, s.x + first, s.g + first};
      if (any_positive(part.g, width, t.size(), unit)) {
        run<false>(t.size(), part);
      } else {
        run<true>(t.size(), part);
      }
    }
  }
  void compute_output(const channel_block& c, range t, const scratch_type& s) const noexcept {
    store_channels(s.x, width, out, c, t);
  }

  [[nodiscard]] static A* state_numbers(const scratch_type& s) noexcept { return s.h; }
  [[nodiscard]] static index state_size() noexcept { return width; }
  /// The sum of the gates.
  [[nodiscard]] static index move_size() noexcept { return width; }
  static void join(const A* before, const A* move, const scratch_type& s) noexcept {
    for (index i = 0; i < width; i += simd::lanes<A>) {
      simd::packet<A> e[1] = {simd::load<A>(move + i)};
      scan_exp<A, 1, false>(e);
      simd::store(s.h + i, simd::fmadd(e[0], simd::load<A>(before + i), simd::load<A>(s.h + i)));
    }
  }

 private:
  template <bool Decaying>
  HEED_NOINLINE void run(index tokens, const scratch_type& s) const noexcept {
    using simd::unroll;
    constexpr index w = simd::lanes<A>;
    simd::packet<A> h[std::size_t{packets}];
    simd::packet<A> e[std::size_t{packets}];
    unroll<packets>([&](auto p) HEED_INLINE_LAMBDA { h[p] = simd::load<A>(s.h + p * w); });
    for (index t = 0; t < tokens; ++t) {
      A* const row = s.x + t * width;
      const A* const gates = s.g + t * width;
      unroll<packets>([&](auto p) HEED_INLINE_LAMBDA { e[p] = simd::load<A>(gates + p * w); });
      scan_exp<A, packets, Decaying>(e);
      unroll<packets>([&](auto p) HEED_INLINE_LAMBDA {
        h[p] = simd::fmadd(e[p], h[p], simd::load<A>(row + p * w));
        simd::store(row + p * w, h[p]);
      });
    }
    unroll<packets>([&](auto p) HEED_INLINE_LAMBDA { simd::store(s.h + p * w, h[p]); });
  }
};

struct hgrn_method : scan_method<2> {
  template <bool Given>
  static constexpr void require_inputs() {
    static_assert(Given, "heed: hgrn takes x, gate");
  }
  template <executor E, class Out, class X, class G, class State>
  static void call(E& exec, Out&& out, const X& x, const G& g, State&& state,
                   const scan_options& o) {
    using A = accumulate_t<scalar_of<const X&>>;
    static_assert(writable_tensor<Out>, "heed: the output is not a tensor that can be written");
    const auto x3 = scan_input<A, 3>(x);
    const auto g3 = scan_input<A, 3>(g);
    const view<scalar_of<Out>, 3> o3 = as_view(std::forward<Out>(out));
    require_extents("g", g3.extents(), x3.extents());
    require_extents("out", o3.extents(), x3.extents());
    const auto kept = open_scan<A>(x3.extents(), "x", std::forward<State>(state), o,
                                   std::array<index, 1>{x3.extent(2)});
    using kernel = hgrn_scan<A, scalar_of<const X&>, scalar_of<const G&>, scalar_of<Out>>;
    run_channel_scan<A>(exec, kernel{x3, g3, o3, kept}, x3.extents(), 1, o);
  }
};

}  // namespace detail

/// hgrn_into([executor,] out, x, g, [state,] [scan_options])
inline constexpr linear_function_into<detail::hgrn_method> hgrn_into{};
/// hgrn([executor,] x, g, [state,] [scan_options]) -> x's family
inline constexpr linear_function<detail::hgrn_method> hgrn{};

}  // namespace heed::inline HEED_TARGET
