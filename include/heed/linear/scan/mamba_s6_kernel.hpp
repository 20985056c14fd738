// SPDX-License-Identifier: MIT
// The kernel of the selective scan: a block of channels, a tile of tokens at a time.
//
// Packets hold channels. Four states of a packet stay in registers over a whole tile: the decays
// exp(dt A) are all that the recurrence waits for, and one token's do not depend on another's.
// Tensors of the accumulator type whose channels are contiguous are read and written where they
// lie. A tile is short because rows are often a multiple of the page apart, so that a packet's
// lines all fall on a few sets of the caches: this tile's and the next one's must fit them.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/core/workspace.hpp"
#include "heed/kernel/copy_strided.hpp"
#include "heed/linear/channel_blocks.hpp"
#include "heed/linear/scan/channel_lines.hpp"
#include "heed/linear/scan/mamba_s6_states.hpp"
#include "heed/simd/softplus.hpp"

namespace heed::inline HEED_TARGET::detail {

/// `Options` is selective_scan_options of x's scalar.
template <class A, class TX, class TD, class TA, class TB, class TC, class TO, class Options>
struct selective_scan_kernel {
  static constexpr index lanes = simd::lanes<A>;
  static constexpr index unit = lanes;
  static constexpr index width = 16 * lanes;
  /// Between the rows of a tile's copies: not a power of two, which would lay a packet of all
  /// tokens on the same few sets of the first-level cache.
  static constexpr index row = width + lanes;
  static constexpr index tile_tokens = 16;

  view<const TX, 3> x;
  view<const TD, 3> dt;
  view<const TA, 2> a;
  view<const TB, 4> b;
  view<const TC, 4> c;
  view<TO, 3> out;
  view<A, 3> state;  // null data where the caller keeps none
  Options options;

  using rows = scan_rows<A>;
  using tile_rows = selective_rows<A>;
  struct scratch_type {
    A* h = nullptr;  // one packet of channels after the other, N rows each; then their low parts
    A* a = nullptr;  // as h, times log2 e
    A* x = nullptr;  // rows one token each
    A* dt = nullptr;
    A* gate = nullptr;
    A* y = nullptr;
    A* b = nullptr;
    A* c = nullptr;
    A* skip = nullptr;
    A* bias = nullptr;
  };
  [[nodiscard]] index states() const noexcept { return a.extent(1); }

  [[nodiscard]] scratch_type allocate(arena& m) const noexcept {
    scratch_type s;
    for (A** tile : {&s.x, &s.dt, &s.gate, &s.y}) *tile = m.allocate<A>(tile_tokens * row);
    s.b = m.allocate<A>(tile_tokens * states());
    s.c = m.allocate<A>(tile_tokens * states());
    return s;
  }
  void allocate_channels(arena& m, scratch_type& s) const noexcept {
    s.h = m.allocate<A>(2 * states() * width);
    s.a = m.allocate<A>(states() * width);
    s.skip = m.allocate<A>(width);
    s.bias = m.allocate<A>(width);
  }

  void prepare(const channel_block& k, scratch_type& s) const noexcept {
    const index n = states();
    std::fill_n(s.h, 2 * n * width, A(0));
    std::fill_n(s.a, n * width, A(0));
    std::fill_n(s.skip, width, A(0));
    std::fill_n(s.bias, width, A(0));
    each_packet(k, [&](index first, index count) {
      const TA* from = a.data() + (k.first + first) * a.stride(0);
      copy_tile(rectangle<const TA>{from, a.stride(1), a.stride(0)},
                rectangle<A>{s.a + first * n, lanes, 1}, n, count);
    });
    std::transform(s.a, s.a + n * width, s.a, binary_rate);
    for (index i = 0; i < k.count; ++i) {
      if (options.skip.data() != nullptr) s.skip[i] = options.skip(k.first + i);
      if (options.dt_bias.data() != nullptr) s.bias[i] = options.dt_bias(k.first + i);
    }
  }
  void load_state(const channel_block& k, const scratch_type& s) const noexcept {
    if (state.data() == nullptr) return;
    each_packet(k, [&](index first, index count) {
      const auto stored = state_at(k, first);
      copy_tile(rectangle<const A>{stored.data, stored.row, stored.column},
                rectangle<A>{s.h + first * states(), lanes, 1}, states(), count);
    });
  }
  void store_state(const channel_block& k, const scratch_type& s) const noexcept {
    if (state.data() == nullptr) return;
    each_packet(k, [&](index first, index count) {
      copy_tile(rectangle<const A>{s.h + first * states(), lanes, 1}, state_at(k, first), states(),
                count);
    });
  }

  void update_state(const channel_block& k, range t, const scratch_type& s, A* move,
                    const channel_ahead& ahead) const noexcept {
    tile_rows from;
    from.x = channel_rows(x, k, t, s.x, copied(x));
    from.step = channel_rows(dt, k, t, s.dt, copied(dt));
    if (from.x.data == s.x) load_channels(x, k, t, s.x, row, lanes);
    if (from.step.data == s.dt) load_channels(dt, k, t, s.dt, row, lanes);
    from.b = weight_rows(b, k, t, s.b);
    from.c = weight_rows(c, k, t, s.c);
    channel_lines next = next_lines(ahead);
    const bool finite_writes = finite_rows(from.b, t.size());
    each_packet(k, [&](index first, index) {
      tile_rows part = from;
      part.x.data += first;
      part.step.data += first;
      time_steps(t.size(), part.step, s, first);
      if (move != nullptr) {
        add_rows(part.step.data, t.size(), lanes, part.step.stride, move + first,
                 move + width + first);
      }
      A* const h = s.h + first * states();
      const selective_states<A> at{
          h,   h + states() * width, s.a + first * states(), states(), s.y + first,
          row, finite_writes};
      at.run(t.size(), part, next);
    });
  }

  /// Skip and gate, and the store.
  void compute_output(const channel_block& k, range t, const scratch_type& s) const noexcept {
    tile_rows from;
    from.x = channel_rows(x, k, t, s.x, copied(x));
    if (options.gate.data() != nullptr) {
      from.gate = channel_rows(options.gate, k, t, s.gate, false);
      if (from.gate.data == s.gate) load_channels(options.gate, k, t, s.gate, row, lanes);
    }
    if constexpr (std::is_same_v<TO, A>) {
      if (in_place(out, k) && !copied(out)) {
        each_packet(k, [&](index first, index) {
          finish(t.size(), from, s, first, channel_row(out, k, t.begin) + first, out.stride(1));
        });
        return;
      }
    }
    each_packet(k, [&](index first, index) { finish(t.size(), from, s, first, s.y + first, row); });
    store_channels(s.y, row, out, k, t);
  }

  [[nodiscard]] static A* state_numbers(const scratch_type& s) noexcept { return s.h; }
  [[nodiscard]] index state_size() const noexcept { return 2 * states() * width; }
  /// The sum of the time steps.
  [[nodiscard]] static index move_size() noexcept { return 2 * width; }
  void join(const A* before, const A* move, const scratch_type& s) const noexcept {
    const index low = states() * width;
    for (index first = 0; first < width; first += lanes) {
      const packet steps =
          simd::add(simd::load<A>(move + first), simd::load<A>(move + width + first));
      for (index i = first * states(); i < (first + lanes) * states(); i += lanes) {
        join_decayed<A, true>(before + i, before + low + i,
                              simd::mul(steps, simd::load<A>(s.a + i)), s.h + i, s.h + low + i);
      }
    }
  }

 private:
  using packet = simd::packet<A>;

  [[nodiscard]] channel_lines next_lines(const channel_ahead& next) const noexcept {
    channel_lines lines(next, tile_tokens, x.extent(1));
    lines.add(x, next);
    lines.add(dt, next);
    lines.add(out, next);
    if (options.gate.data() != nullptr) lines.add(options.gate, next);
    return lines;
  }

  /// exp(dt a) = 2^(dt a log2 e): one product a token fewer. What is finite stays so.
  [[nodiscard]] static A binary_rate(A rate) noexcept {
    constexpr A log2e = A(1.4426950408889634073599246810018921L);
    constexpr A largest = (std::numeric_limits<A>::max)();
    return std::isfinite(rate) ? std::clamp(rate * log2e, -largest, largest) : rate;
  }

  [[nodiscard]] rectangle<A> state_at(const channel_block& k, index first) const noexcept {
    return {state.data() + k.sequence * state.stride(0) + (k.first + first) * state.stride(1),
            state.stride(2), state.stride(1)};
  }

  /// f(first channel in the block, channels) for each packet of a block.
  template <class F>
  static void each_packet(const channel_block& k, F&& f) noexcept {
    for (index first = 0; first < k.count; first += lanes) {
      f(first, (std::min)(lanes, k.count - first));
    }
  }

  /// Whether packets may run along a tensor's channels where they lie.
  template <class T>
  [[nodiscard]] static bool in_place(const view<T, 3>& tensor, const channel_block& k) noexcept {
    return std::is_same_v<std::remove_const_t<T>, A> && tensor.stride(2) == 1 &&
           k.count % lanes == 0;
  }
  /// Whether rows that could be used in place are copied all the same: a packet of a tile's tokens
  /// may fall on a few sets of the first-level cache, and is read for every four states. Measured:
  /// a tenth faster; but slower where a gate or the steps' softplus go through the rows once more.
  template <class T>
  [[nodiscard]] bool copied(const view<T, 3>& tensor) const noexcept {
    const bool crowded = tensor.stride(1) * index{sizeof(T)} % 1024 == 0;
    return crowded && !changes_steps() && options.gate.data() == nullptr;
  }
  [[nodiscard]] bool changes_steps() const noexcept {
    return options.dt_bias.data() != nullptr || options.softplus;
  }
  /// The tensor's own rows, or those of its copy.
  template <class T>
  [[nodiscard]] static rows channel_rows(const view<const T, 3>& from, const channel_block& k,
                                         range t, A* copy, bool copied) noexcept {
    if constexpr (std::is_same_v<T, A>) {
      if (!copied && in_place(from, k)) return {channel_row(from, k, t.begin), from.stride(1)};
    }
    return {copy, row};
  }
  template <class T>
  [[nodiscard]] rows weight_rows(const view<const T, 4>& from, const channel_block& k, range t,
                                 A* copy) const noexcept {
    const T* const first = from.data() + k.batch * from.stride(0) + t.begin * from.stride(1) +
                           k.group * from.stride(2);
    if constexpr (std::is_same_v<T, A>) {
      if (from.stride(3) == 1) return {first, from.stride(1)};
    }
    copy_tile(rectangle<const T>{first, from.stride(1), from.stride(3)},
              rectangle<A>{copy, states(), 1}, t.size(), states());
    return {copy, states()};
  }

  [[nodiscard]] bool finite_rows(const rows& from, index tokens) const noexcept {
    A none = A(0);
    for (index t = 0; t < tokens; ++t) {
      for (index i = 0; i < states(); ++i) none += from.data[t * from.stride + i] * A(0);
    }
    return none == A(0);
  }

  /// dt', in place of dt where nothing is to be done.
  void time_steps(index tokens, rows& step, const scratch_type& s, index first) const noexcept {
    if (!changes_steps()) return;
    const packet bias = simd::load<A>(s.bias + first);
    for (index t = 0; t < tokens; ++t) {
      packet value = simd::load<A>(step.data + t * step.stride);
      if (options.dt_bias.data() != nullptr) value = simd::add(value, bias);
      if (options.softplus) value = simd::softplus<A>(value);
      simd::store(s.dt + first + t * row, value);
    }
    step = {s.dt + first, row};
  }

  /// `to` may be y, x, dt or the gate.
  void finish(index tokens, const tile_rows& from, const scratch_type& s, index first, A* to,
              index stride) const noexcept {
    const bool skips = options.skip.data() != nullptr;
    const bool gated = options.gate.data() != nullptr;
    const A* const y_rows = s.y + first;
    const packet skip = simd::load<A>(s.skip + first);
    if (!skips && !gated && to == y_rows) return;
    for (index t = 0; t < tokens; ++t) {
      packet y = simd::load<A>(y_rows + t * row);
      if (skips) y = simd::fmadd(skip, simd::load<A>(from.x.data + first + t * from.x.stride), y);
      if (gated) {
        y = simd::mul(y,
                      simd::silu<A>(simd::load<A>(from.gate.data + first + t * from.gate.stride)));
      }
      simd::store(to + t * stride, y);
    }
  }
};

}  // namespace heed::inline HEED_TARGET::detail
