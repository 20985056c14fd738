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
// bfloat16; h in the accumulator type. The error of h_t in float is at most eps
// sum_j (20 + 8 |G_tj|) |x_j| exp(G_tj), G_tj the sum of the gates after j, however many the tokens
// and however little they forget; in double, and with gates above 0, 4 eps a token come to that. A
// state is rounded once a call: tokens fed one by one lose digits as one float sum does. g = -inf
// forgets all that came before, when it was finite; gates above 0 are computed too. A NaN or
// infinity reaches its own token and later tokens of its channel. Zero tokens leave the state as it
// was.
//
// FLOPs 5 and one exp a token and channel; bytes: x, g and out once. Scratch a worker: 2 tiles of
// 64 tokens x 8 packets, and 2 numbers a channel of up to 4 KiB of them. Parallel over sequences x
// blocks of channels; the same bits for any number of threads; a sequence in pieces differs by
// rounding. Safe to call from several threads.
//
// Throws shape_error, option_error, std::bad_alloc, before anything is written.
// Source: Qin, Yang, Zhong 2023, arXiv 2311.04823, eq. 1 to 4 (real gates, the input gate in x).
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <utility>

#include "heed/core/target.hpp"
#include "heed/linear/scan/channel_scan.hpp"
#include "heed/linear/scan/compensated_decay.hpp"

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
    A* h = nullptr;  // and their low parts
    A* x = nullptr;
    A* g = nullptr;
  };
  [[nodiscard]] scratch_type allocate(arena& c) const noexcept {
    scratch_type s;
    s.x = c.allocate<A>(scan_tile * width);
    s.g = c.allocate<A>(scan_tile * width);
    return s;
  }
  static void allocate_channels(arena& c, scratch_type& s) noexcept {
    s.h = c.allocate<A>(2 * width);
  }

  void prepare(const channel_block&, const scratch_type& s) const noexcept {
    std::fill_n(s.h, 2 * width, A(0));
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
    if (move != nullptr) {
      add_rows(s.g, t.size(), round_up(c.count, simd::lanes<A>), width, move, move + width);
    }
    for (index first = 0; first < c.count; first += unit) {
      const scratch_type part{s.h + first, s.x + first, s.g + first};
      const decay_way way = way_of_tile(t.size(), part);
      if (way == decay_way::forgetting) {
        run_plain<true>(t.size(), part);
        continue;
      }
      if constexpr (compensates<A>) {
        A before[std::size_t{unit}];
        std::copy_n(part.h, unit, before);
        if (way == decay_way::near_one) run<decay_way::near_one>(t.size(), part);
        if (way == decay_way::mixed) run<decay_way::mixed>(t.size(), part);
        if (way != decay_way::growing) {
          if (stayed_finite(before, part.h, unit)) continue;
          // An infinite sum stays one, as the formula has it: from the start once more.
          std::copy_n(before, unit, part.h);
          const index count = (std::min)(unit, c.count - first);
          load_channels(x, {c.sequence, c.batch, c.group, c.first + first, count}, t, part.x, width,
                        unit);
        }
      }
      run_plain<false>(t.size(), part);
    }
  }
  void compute_output(const channel_block& c, range t, const scratch_type& s) const noexcept {
    store_channels(s.x, width, out, c, t);
  }

  [[nodiscard]] static A* state_numbers(const scratch_type& s) noexcept { return s.h; }
  [[nodiscard]] static index state_size() noexcept { return 2 * width; }
  /// The sum of the gates.
  [[nodiscard]] static index move_size() noexcept { return 2 * width; }
  static void join(const A* before, const A* move, const scratch_type& s) noexcept {
    for (index i = 0; i < width; i += simd::lanes<A>) {
      const auto gate = simd::add(simd::load<A>(move + i), simd::load<A>(move + width + i));
      join_decayed<A, false>(before + i, before + width + i, gate, s.h + i, s.h + width + i);
    }
  }

 private:
  /// The way of all lanes of a unit: their fastest and slowest gates.
  [[nodiscard]] static decay_way way_of_tile(index tokens, const scratch_type& s) noexcept {
    using simd::unroll;
    constexpr index w = simd::lanes<A>;
    const auto lowest = simd::broadcast(std::numeric_limits<A>::lowest());
    simd::packet<A> fast[std::size_t{packets}], slow[std::size_t{packets}];
    unroll<packets>([&](auto p) HEED_INLINE_LAMBDA { fast[p] = slow[p] = lowest; });
    for (index t = 0; t < tokens; ++t) {
      unroll<packets>([&](auto p) HEED_INLINE_LAMBDA {
        const auto gate = simd::load<A>(s.g + t * width + p * w);
        fast[p] = (simd::max)(fast[p], simd::sub(simd::zero<A>(), gate));
        slow[p] = (simd::max)(slow[p], gate);
      });
    }
    unroll<packets - 1>([&](auto p) HEED_INLINE_LAMBDA {
      fast[0] = (simd::max)(fast[0], fast[p + 1]);
      slow[0] = (simd::max)(slow[0], slow[p + 1]);
    });
    return way_of<A>(fast[0], slow[0]);
  }

  template <decay_way Way>
  HEED_NOINLINE static void run(index tokens, const scratch_type& s) noexcept {
    using simd::unroll;
    constexpr index w = simd::lanes<A>;
    simd::packet<A> h[std::size_t{packets}], low[std::size_t{packets}], gates[std::size_t{packets}];
    unroll<packets>([&](auto p) HEED_INLINE_LAMBDA {
      h[p] = simd::load<A>(s.h + p * w);
      low[p] = simd::load<A>(s.h + width + p * w);
    });
    for (index t = 0; t < tokens; ++t) {
      A* const row = s.x + t * width;
      unroll<packets>(
          [&](auto p) HEED_INLINE_LAMBDA { gates[p] = simd::load<A>(s.g + t * width + p * w); });
      const decay_step<packets, false, Way> step(gates);
      unroll<packets>([&](auto p) HEED_INLINE_LAMBDA {
        step.advance(p, h[p], low[p], simd::add(step.kept(p, low[p]), simd::load<A>(row + p * w)));
        simd::store(row + p * w, h[p]);
      });
    }
    unroll<packets>([&](auto p) HEED_INLINE_LAMBDA {
      simd::store(s.h + p * w, h[p]);
      simd::store(s.h + width + p * w, low[p]);
    });
  }

  /// As the formula has it.
  template <bool Decaying>
  HEED_NOINLINE static void run_plain(index tokens, const scratch_type& s) noexcept {
    using simd::unroll;
    constexpr index w = simd::lanes<A>;
    simd::packet<A> h[std::size_t{packets}];
    simd::packet<A> e[std::size_t{packets}];
    unroll<packets>([&](auto p) HEED_INLINE_LAMBDA { h[p] = simd::load<A>(s.h + p * w); });
    for (index t = 0; t < tokens; ++t) {
      A* const row = s.x + t * width;
      unroll<packets>([&](auto p)
                          HEED_INLINE_LAMBDA { e[p] = simd::load<A>(s.g + t * width + p * w); });
      scan_exp<A, packets, Decaying>(e);
      unroll<packets>([&](auto p) HEED_INLINE_LAMBDA {
        h[p] = simd::fmadd(e[p], h[p], simd::load<A>(row + p * w));
        simd::store(row + p * w, h[p]);
      });
    }
    unroll<packets>([&](auto p) HEED_INLINE_LAMBDA { simd::store(s.h + p * w, h[p]); });
    std::fill_n(s.h + width, unit, A(0));
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
