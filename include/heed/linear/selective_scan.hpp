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
// half, bfloat16; dt', h and sums in the accumulator type. The error of h_t is at most eps times
// sum_j (16 + 8 |L_tj|) (t - j + 1) |dt'_j x_j B_j| exp(L_tj), L_tj the sum of dt' A after j:
// bounded for decaying channels however many the tokens; of y_t, that times |C|, and (N + 2) eps of
// the terms' absolute sum. dt' A = -inf forgets all that came before, when it was finite; positive
// dt' A is computed too. A NaN or infinity in x or dt reaches its own token and later tokens of its
// channel, in b those of its group, in c and the gate its own token alone. A gate of -inf gives
// NaN. Zero tokens leave the state as it was.
//
// Cost a token and channel: N exp, 5 N FLOPs and a few; bytes: x, dt, z and out once, b and c once
// a block of channels (at most 8 packets). Scratch a worker: 64 tokens x (24 packets + 2 N numbers)
// + 16 N packets. Parallel over sequences x blocks of channels; the same bits for any number of
// threads, and, but in the form `scan`, for a sequence in pieces. Safe to call from several
// threads.
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

#include "heed/linear/channel_scan.hpp"
#include "heed/linear/softplus.hpp"

namespace heed {

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

template <class A, class TX, class TD, class TA, class TB, class TC, class TO>
struct selective_scan_kernel {
  static constexpr index lanes = simd::lanes<A>;
  static constexpr index unit = lanes;
  static constexpr index width = scan_packets * lanes;

  view<const TX, 3> x;
  view<const TD, 3> dt;
  view<const TA, 2> a;
  view<const TB, 4> b;
  view<const TC, 4> c;
  view<TO, 3> out;
  view<A, 3> state;  // null data where the caller keeps none
  selective_scan_options<std::remove_const_t<TX>> options;

  struct scratch_type {
    A* h = nullptr;  // one packet of channels after the other, N rows each; a likewise
    A* a = nullptr;
    A* x = nullptr;  // rows one token each
    A* dt = nullptr;
    A* gate = nullptr;
    A* b = nullptr;
    A* c = nullptr;
    A* skip = nullptr;
    A* bias = nullptr;
    bool stable = false;  // no a is positive
  };
  [[nodiscard]] index states() const noexcept { return a.extent(1); }

  [[nodiscard]] scratch_type carve(carver& m) const noexcept {
    scratch_type s;
    s.h = m.take<A>(states() * width);
    s.a = m.take<A>(states() * width);
    s.x = m.take<A>(scan_tile * width);
    s.dt = m.take<A>(scan_tile * width);
    s.gate = m.take<A>(scan_tile * width);
    s.b = m.take<A>(scan_tile * states());
    s.c = m.take<A>(scan_tile * states());
    s.skip = m.take<A>(width);
    s.bias = m.take<A>(width);
    return s;
  }

  void prepare(const channel_block& k, scratch_type& s) const noexcept {
    const index n = states();
    std::fill_n(s.h, n * width, A(0));
    std::fill_n(s.a, n * width, A(0));
    std::fill_n(s.skip, width, A(0));
    std::fill_n(s.bias, width, A(0));
    each_packet(k, [&](index first, index count) {
      const TA* from = a.data() + (k.first + first) * a.stride(0);
      copy_tile(rectangle<const TA>{from, a.stride(1), a.stride(0)},
                rectangle<A>{s.a + first * n, lanes, 1}, n, count);
    });
    s.stable = !any_positive(s.a, width, n, width);
    for (index i = 0; i < k.count; ++i) {
      if (options.skip.data() != nullptr) s.skip[i] = options.skip(k.first + i);
      if (options.dt_bias.data() != nullptr) s.bias[i] = options.dt_bias(k.first + i);
    }
  }
  void enter(const channel_block& k, const scratch_type& s) const noexcept {
    if (state.data() == nullptr) return;
    each_packet(k, [&](index first, index count) {
      const auto home = state_at(k, first);
      copy_tile(rectangle<const A>{home.data, home.row, home.column},
                rectangle<A>{s.h + first * states(), lanes, 1}, states(), count);
    });
  }
  void leave(const channel_block& k, const scratch_type& s) const noexcept {
    if (state.data() == nullptr) return;
    each_packet(k, [&](index first, index count) {
      copy_tile(rectangle<const A>{s.h + first * states(), lanes, 1}, state_at(k, first), states(),
                count);
    });
  }

  void take_in(const channel_block& k, range t, const scratch_type& s, A* move) const noexcept {
    load_channels(x, k, t, s.x, width, lanes);
    load_channels(dt, k, t, s.dt, width, lanes);
    load_weights(b, k, t, s.b);
    load_weights(c, k, t, s.c);
    each_packet(k, [&](index first, index) {
      const scratch_type part = at_packet(first, s);
      time_steps(t.size(), part);
      if (move != nullptr) add_rows(part.dt, t.size(), lanes, width, move + first);
      if (s.stable && !any_positive(part.dt, width, t.size(), lanes, A(-1))) {
        run<true>(t.size(), part);
      } else {
        run<false>(t.size(), part);
      }
    });
  }
  void answer(const channel_block& k, range t, const scratch_type& s) const noexcept {
    if (options.gate.data() != nullptr) load_channels(options.gate, k, t, s.gate, width, lanes);
    each_packet(k, [&](index first, index) { finish(t.size(), at_packet(first, s)); });
    store_channels(s.dt, width, out, k, t);
  }

  [[nodiscard]] static A* state_numbers(const scratch_type& s) noexcept { return s.h; }
  [[nodiscard]] index state_size() const noexcept { return states() * width; }
  /// The sum of the time steps.
  [[nodiscard]] static index move_size() noexcept { return width; }
  void join(const A* before, const A* move, const scratch_type& s) const noexcept {
    for (index first = 0; first < width; first += lanes) {
      for (index i = first * states(); i < (first + lanes) * states(); i += lanes) {
        packet e[1] = {simd::mul(simd::load<A>(move + first), simd::load<A>(s.a + i))};
        scan_exp<A, 1, false>(e);
        simd::store(s.h + i, simd::fmadd(e[0], simd::load<A>(before + i), simd::load<A>(s.h + i)));
      }
    }
  }

 private:
  using packet = simd::packet<A>;

  [[nodiscard]] scratch_type at_packet(index first, const scratch_type& s) const noexcept {
    scratch_type part = s;
    for (A** at : {&part.x, &part.dt, &part.gate, &part.skip, &part.bias}) *at += first;
    part.a += first * states();
    part.h += first * states();
    return part;
  }
  [[nodiscard]] rectangle<A> state_at(const channel_block& k, index first) const noexcept {
    return {state.data() + k.sequence * state.stride(0) + (k.first + first) * state.stride(1),
            state.stride(2), state.stride(1)};
  }

  /// f(first channel in the block, channels) for each packet of a block.
  template <class F>
  static void each_packet(const channel_block& k, F&& f) noexcept {
    for (index first = 0; first < k.count; first += lanes) {
      f(first, std::min(lanes, k.count - first));
    }
  }

  template <class T>
  void load_weights(const view<const T, 4>& from, const channel_block& k, range t,
                    A* to) const noexcept {
    copy_tile(rectangle<const T>{from.data() + k.batch * from.stride(0) + t.begin * from.stride(1) +
                                     k.group * from.stride(2),
                                 from.stride(1), from.stride(3)},
              rectangle<A>{to, states(), 1}, t.size(), states());
  }

  void time_steps(index tokens, const scratch_type& s) const noexcept {
    const packet bias = simd::load<A>(s.bias);
    for (index t = 0; t < tokens; ++t) {
      packet step = simd::load<A>(s.dt + t * width);
      if (options.dt_bias.data() != nullptr) step = simd::add(step, bias);
      if (options.softplus) step = softplus<A>(step);
      simd::store(s.dt + t * width, step);
    }
  }

  /// The recurrence; sums over the states are left in place of dt.
  template <bool Decaying>
  HEED_NOINLINE void run(index tokens, const scratch_type& s) const noexcept {
    constexpr int together = 4;
    const index n = states();
    for (index t = 0; t < tokens; ++t) {
      const packet step = simd::load<A>(s.dt + t * width);
      const packet in = simd::mul(step, simd::load<A>(s.x + t * width));
      const A* const b_row = s.b + t * n;
      const A* const c_row = s.c + t * n;
      packet sums[std::size_t{together}];
      simd::unroll<together>([&](auto i) HEED_INLINE_LAMBDA { sums[i] = simd::zero<A>(); });
      index i = 0;
      for (; i + together <= n; i += together) {
        advance<together, Decaying>(i, step, in, b_row, c_row, s, sums);
      }
      for (; i < n; ++i) advance<1, Decaying>(i, step, in, b_row, c_row, s, sums);
      simd::store(s.dt + t * width,
                  simd::add(simd::add(sums[0], sums[1]), simd::add(sums[2], sums[3])));
    }
  }

  template <int Count, bool Decaying>
  HEED_INLINE static void advance(index first, const packet& step, const packet& in, const A* b_row,
                                  const A* c_row, const scratch_type& s, packet* sums) noexcept {
    packet e[std::size_t{Count}];
    simd::unroll<Count>([&](auto i) HEED_INLINE_LAMBDA {
      e[i] = simd::mul(step, simd::load<A>(s.a + (first + i) * lanes));
    });
    scan_exp<A, Count, Decaying>(e);
    simd::unroll<Count>([&](auto i) HEED_INLINE_LAMBDA {
      A* const at = s.h + (first + i) * lanes;
      const packet h =
          simd::fmadd(e[i], simd::load<A>(at), simd::mul(in, simd::broadcast(b_row[first + i])));
      simd::store(at, h);
      sums[i] = simd::fmadd(h, simd::broadcast(c_row[first + i]), sums[i]);
    });
  }

  /// Skip and gate.
  void finish(index tokens, const scratch_type& s) const noexcept {
    const packet skip = simd::load<A>(s.skip);
    for (index t = 0; t < tokens; ++t) {
      packet y = simd::load<A>(s.dt + t * width);
      if (options.skip.data() != nullptr) {
        y = simd::fmadd(skip, simd::load<A>(s.x + t * width), y);
      }
      if (options.gate.data() != nullptr) {
        y = simd::mul(y, silu<A>(simd::load<A>(s.gate + t * width)));
      }
      simd::store(s.dt + t * width, y);
    }
  }
};

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
    using kernel =
        selective_scan_kernel<A, T, scalar_of<const Dt&>, scalar_of<const TA&>,
                              scalar_of<const TB&>, scalar_of<const TC&>, scalar_of<Out>>;
    run_channel_scan<A>(exec, kernel{x3, dt3, a2, b4, c4, o3, kept, o}, x3.extents(), groups, o);
  }
};

}  // namespace detail

/// selective_scan_into([executor,] out, x, dt, a, b, c, [state,] [selective_scan_options<T>])
inline constexpr linear_function_into<detail::selective_scan_method> selective_scan_into{};
/// selective_scan([executor,] x, dt, a, b, c, [state,] [selective_scan_options<T>]) -> x's family
inline constexpr linear_function<detail::selective_scan_method> selective_scan{};

}  // namespace heed
