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
// error of out_t is at most eps sum_j w_j (|v_j| + |out_t|) (8 + 2 max|p| (t - j + 1)): bounded for
// w < 0 however many the tokens. A key of -inf has no weight; no weight at all gives 0. A key of
// +inf, a NaN, and an infinite value reach their own token and later ones of their channel. Zero
// tokens leave the state as it was.
//
// Cost a token and channel: 4 exp, a division, 14 FLOPs; bytes: k, v and out once. Scratch a
// worker: 2 tiles of 64 tokens x 8 packets, and 5 numbers a channel of up to 4 KiB of them.
// Parallel over sequences x blocks of channels; the same bits for any number of threads, and, but
// in the form `scan`, for a sequence in pieces. Safe to call from several threads.
//
// Throws shape_error, option_error, std::bad_alloc, before anything is written.
// Source: Peng et al. 2023, arXiv 2305.13048, eq. 16 and appendix D.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "heed/core/target.hpp"
#include "heed/linear/scan/channel_lines.hpp"
#include "heed/linear/scan/channel_scan.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

template <class A, class TK, class TV, class TW, class TU, class TO>
struct rwkv4_scan {
  static constexpr int packets = 2;
  static constexpr index unit = packets * simd::lanes<A>;
  static constexpr index width = scan_packets * simd::lanes<A>;
  static constexpr index tile_tokens = scan_tile;

  view<const TK, 3> k;
  view<const TV, 3> v;
  view<const TW, 1> decay;
  view<const TU, 1> bonus;
  view<TO, 3> out;
  view<A, 3> state;  // null data where the caller keeps none

  struct scratch_type {
    A* rows = nullptr;  // a, b, p, w, u, each `width` numbers
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
    s.rows = c.allocate<A>(5 * width);
  }

  void prepare(const channel_block& c, const scratch_type& s) const noexcept {
    std::fill_n(s.rows, 5 * width, A(0));
    std::fill_n(s.rows + 2 * width, width, -std::numeric_limits<A>::infinity());
    for (index i = 0; i < c.count; ++i) {
      s.rows[3 * width + i] = -std::exp(static_cast<A>(decay(c.first + i)));
      s.rows[4 * width + i] = static_cast<A>(bonus(c.first + i));
    }
  }
  void load_state(const channel_block& c, const scratch_type& s) const noexcept {
    for (index i = 0; state.data() != nullptr && i < c.count; ++i) {
      for (index r = 0; r < 2; ++r) s.rows[r * width + i] = state(c.sequence, r, c.first + i);
      if (s.rows[width + i] != A(0)) s.rows[2 * width + i] = state(c.sequence, 2, c.first + i);
    }
  }
  void store_state(const channel_block& c, const scratch_type& s) const noexcept {
    if (state.data() == nullptr) return;
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
      run(t.size(), {s.rows + first, s.k + first, s.v + first}, next);
    }
  }
  void compute_output(const channel_block& c, range t, const scratch_type& s) const noexcept {
    store_channels(s.v, width, out, c, t);
  }

  [[nodiscard]] static A* state_numbers(const scratch_type& s) noexcept { return s.rows; }
  [[nodiscard]] static index state_size() noexcept { return 3 * width; }
  /// The number of tokens: the decay is the same for each.
  [[nodiscard]] static index move_size() noexcept { return 1; }
  static void join(const A* before, const A* move, const scratch_type& s) noexcept {
    constexpr index step = simd::lanes<A>;
    for (index i = 0; i < width; i += unit) {
      packet x[packets], y[packets], old[packets], own[packets], m[packets];
      simd::unroll<packets>([&](auto p) HEED_INLINE_LAMBDA {
        const packet w = simd::load<A>(s.rows + 3 * width + i + p * step);
        x[p] = simd::fmadd(simd::broadcast(*move), w,
                           simd::load<A>(before + 2 * width + i + p * step));
        y[p] = simd::load<A>(s.rows + 2 * width + i + p * step);
      });
      online_weights(x, y, old, own, m);
      simd::unroll<packets>([&](auto p) HEED_INLINE_LAMBDA {
        for (index r = 0; r < 2; ++r) {
          A* const at = s.rows + r * width + i + p * step;
          simd::store(at, simd::fmadd(old[p], simd::load<A>(before + (at - s.rows)),
                                      simd::mul(own[p], simd::load<A>(at))));
        }
        simd::store(s.rows + 2 * width + i + p * step, m[p]);
      });
    }
  }

 private:
  using packet = simd::packet<A>;

  /// The exponentials of x and y less their maximum, which is returned.
  HEED_INLINE static void online_weights(const packet* x, const packet* y, packet* ex, packet* ey,
                                         packet* m) noexcept {
    // Not below the lowest number, so that two infinities do not make a NaN.
    const packet lowest = simd::broadcast(std::numeric_limits<A>::lowest());
    packet e[std::size_t{2 * packets}];
    simd::unroll<packets>([&](auto p) HEED_INLINE_LAMBDA {
      m[p] = (simd::max)((simd::max)(x[p], y[p]), lowest);
      e[p] = simd::sub(x[p], m[p]);
      e[packets + p] = simd::sub(y[p], m[p]);
    });
    simd::exp_nonpositive<A, 2 * packets>(e);
    simd::unroll<packets>([&](auto p) HEED_INLINE_LAMBDA {
      ex[p] = e[p];
      ey[p] = e[packets + p];
    });
  }

  HEED_NOINLINE void run(index tokens, const scratch_type& s, channel_lines& next) const noexcept {
    using simd::unroll;
    constexpr index lane_count = simd::lanes<A>;
    const auto load = [](const A* from, packet* to) HEED_INLINE_LAMBDA {
      unroll<packets>([&](auto p)
                          HEED_INLINE_LAMBDA { to[p] = simd::load<A>(from + p * lane_count); });
    };
    constexpr auto n = std::size_t{packets};
    packet a[n], b[n], p[n], w[n], u[n], key[n], old[n], own[n], m[n], x[n], y[n];
    load(s.rows, a);
    load(s.rows + width, b);
    load(s.rows + 2 * width, p);
    load(s.rows + 3 * width, w);
    load(s.rows + 4 * width, u);
    for (index t = 0; t < tokens; ++t) {
      A* const row = s.v + t * width;
      load(s.k + t * width, key);
      unroll<packets>([&](auto i) HEED_INLINE_LAMBDA { x[i] = simd::add(u[i], key[i]); });
      online_weights(p, x, old, own, m);
      unroll<packets>([&](auto i) HEED_INLINE_LAMBDA { y[i] = simd::add(p[i], w[i]); });
      packet older[n], newer[n];
      online_weights(y, key, older, newer, p);
      unroll<packets>([&](auto i) HEED_INLINE_LAMBDA {
        const packet value = simd::load<A>(row + i * lane_count);
        const packet den = simd::fmadd(old[i], b[i], own[i]);
        const packet num = simd::fmadd(old[i], a[i], simd::mul(own[i], value));
        const packet mean = simd::div(num, den);
        const packet none = simd::equal(den, simd::zero<A>());
        simd::store(row + i * lane_count, simd::select(none, simd::zero<A>(), mean));
        a[i] = simd::fmadd(older[i], a[i], simd::mul(newer[i], value));
        b[i] = simd::fmadd(older[i], b[i], newer[i]);
      });
      next.issue();
    }
    unroll<packets>([&](auto i) HEED_INLINE_LAMBDA {
      simd::store(s.rows + i * lane_count, a[i]);
      simd::store(s.rows + width + i * lane_count, b[i]);
      simd::store(s.rows + 2 * width + i * lane_count, p[i]);
    });
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
