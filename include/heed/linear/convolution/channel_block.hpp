// SPDX-License-Identifier: MIT
// A depthwise causal convolution of one batch entry's block of channels, first token to last.
//
// Tokens come in tiles; where lanes run along channels, the block's parts take each tile one after
// the other, so that memory is read in long rows. Of every tile the last taps - 1 inputs before it
// and its own inputs are gathered side by side into scratch, in the accumulator type: the window.
// Lanes run along the channels (a row of the window is a token) or along the tokens of one channel
// (the window is one row). Either way an output is the same chain of multiply-adds in the order of
// the taps, also where packets are not full, so that its bits depend neither on the layout nor on
// where tiles, blocks or calls begin.
#pragma once

#include <algorithm>
#include <cstddef>

#include "heed/core/config.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/core/workspace.hpp"
#include "heed/kernel/tiled/microkernel.hpp"
#include "heed/simd/convert.hpp"
#include "heed/simd/packet.hpp"
#include "heed/simd/softplus.hpp"
#include "heed/tensor/view.hpp"

namespace heed::inline HEED_TARGET::detail {

/// `count` numbers, `stride` apart, widened side by side; zeros behind them up to a whole packet.
template <class A, class T>
void gather_row(const T* src, index stride, index count, A* dst) noexcept {
  if (stride == 1) {
    simd::widen_row(src, dst, count);
  } else {
    for (index i = 0; i < count; ++i) dst[i] = static_cast<A>(src[i * stride]);
  }
  for (index i = count; i < round_up(count, simd::lanes<A>); ++i) dst[i] = A(0);
}

template <class A, class T>
void scatter_row(const A* src, T* dst, index stride, index count) noexcept {
  if (stride == 1) {
    simd::narrow_row(src, dst, count);
  } else {
    for (index i = 0; i < count; ++i) dst[i * stride] = static_cast<T>(src[i]);
  }
}

/// Rows of one block lie far apart, where no processor expects them.
template <class T>
void prefetch_channels(const T* row, index stride, index count) noexcept {
  if (stride != 1) return;
  constexpr auto line = static_cast<index>(cache_line / sizeof(T));
  for (index i = 0; i < count; i += line) simd::prefetch(row + i);
}

template <class A>
struct convolution_scratch {
  A* weight = nullptr;  // taps x width
  A* bias = nullptr;    // width
  A* past = nullptr;    // (taps - 1) x width
  A* window = nullptr;  // (taps - 1 + tile) x part
};

/// The operands, batch x channels x tokens. An absent bias or state has no data.
template <class A, class X, class W, class Out>
struct convolution_block {
  static constexpr index lanes = simd::lanes<A>;
  static constexpr int group = simd::vector_registers == 32 ? 8 : 4;
  /// Channels side by side in the window.
  static constexpr index part = 8 * lanes;

  view<Out, 3> out;
  view<const X, 3> x;
  view<const W, 2> weight;
  view<const W, 1> bias;
  view<A, 3> state;
  bool silu_output = false;
  index columns = part;  ///< channels of a block whose lanes run along them, whole parts

  [[nodiscard]] index batch() const noexcept { return x.extent(0); }
  [[nodiscard]] index channels() const noexcept { return x.extent(1); }
  [[nodiscard]] index tokens() const noexcept { return x.extent(2); }
  [[nodiscard]] index taps() const noexcept { return weight.extent(1); }

  /// Lanes lie where memory is contiguous; a few tokens do not fill a packet.
  [[nodiscard]] bool along_tokens() const noexcept {
    return tokens() >= lanes && (x.stride(2) == 1 || x.stride(1) != 1);
  }
  /// Channels a task; of rows as many as are worth starting one.
  [[nodiscard]] index width() const noexcept { return along_tokens() ? 8 : columns; }
  [[nodiscard]] index tile() const noexcept {
    return std::min<index>(along_tokens() ? round_up(tokens(), lanes) : tokens(),
                           along_tokens() ? 1024 : 32);
  }
  [[nodiscard]] index blocks() const noexcept { return ceil_div(channels(), width()); }

  [[nodiscard]] convolution_scratch<A> allocate(arena& c) const noexcept {
    const index together = along_tokens() ? 1 : columns;
    convolution_scratch<A> s;
    s.weight = c.allocate<A>(taps() * together);
    s.bias = c.allocate<A>(together);
    s.past = c.allocate<A>((taps() - 1) * together);
    s.window = c.allocate<A>((taps() - 1 + tile()) * (along_tokens() ? 1 : part));
    return s;
  }

  void run(index b, index block, const convolution_scratch<A>& s) const noexcept {
    const index first = block * width();
    const index count = (std::min)(width(), channels() - first);
    if (along_tokens()) {
      for (index c = first; c < first + count; ++c) run_row(b, c, s);
    } else {
      run_columns(b, first, count, s);
    }
  }

 private:
  /// Channels `first` to `first + count`, lanes along them.
  void run_columns(index b, index first, index count,
                   const convolution_scratch<A>& s) const noexcept {
    const index row = columns;
    const index past_rows = taps() - 1;
    for (index j = 0; j < taps(); ++j) {
      gather_row(&weight(first, j), weight.stride(0), count, s.weight + j * row);
    }
    std::fill_n(s.bias, row, A(0));
    if (bias.data() != nullptr) gather_row(&bias(first), bias.stride(0), count, s.bias);
    std::fill_n(s.past, past_rows * row, A(0));
    for (index j = 0; state.data() != nullptr && j < past_rows; ++j) {
      gather_row(&state(b, first, j), state.stride(1), count, s.past + j * row);
    }
    for (index t = 0; t < tokens(); t += tile()) {
      const range tokens_of_tile{t, (std::min)(t + tile(), tokens())};
      for (index c = 0; c < count; c += part) {
        const convolution_scratch<A> own{s.weight + c, s.bias + c, s.past + c, s.window};
        run_part(b, first + c, (std::min)(part, count - c), tokens_of_tile, own);
      }
    }
    for (index j = 0; state.data() != nullptr && j < past_rows; ++j) {
      scatter_row(s.past + j * row, &state(b, first, j), state.stride(1), count);
    }
  }

  /// A tile of tokens of at most `part` channels.
  void run_part(index b, index first, index count, range t,
                const convolution_scratch<A>& s) const noexcept {
    const index past_rows = taps() - 1;
    for (index j = 0; j < past_rows; ++j) {
      std::copy_n(s.past + j * columns, part, s.window + j * part);
    }
    for (index i = 0; i < t.size(); ++i) {
      const index later = t.begin + i + tile();
      if (later < tokens()) prefetch_channels(&x(b, first, later), x.stride(1), count);
      gather_row(&x(b, first, t.begin + i), x.stride(1), count, s.window + (past_rows + i) * part);
    }
    for (index j = 0; j < past_rows; ++j) {
      std::copy_n(s.window + (t.size() + j) * part, part, s.past + j * columns);
    }
    for (index c = 0; c < count; c += lanes) {
      const A* const w = s.weight + c;
      convolve(s.window + c, part, part, t.size(), simd::load(s.bias + c),
               [&](index j) HEED_INLINE_LAMBDA { return simd::load(w + j * columns); });
    }
    for (index i = 0; i < t.size(); ++i) {
      scatter_row(s.window + i * part, &out(b, first, t.begin + i), out.stride(1), count);
    }
  }

  /// Channel c, lanes along its tokens.
  void run_row(index b, index c, const convolution_scratch<A>& s) const noexcept {
    const index past = taps() - 1;
    for (index j = 0; j < taps(); ++j) s.weight[j] = static_cast<A>(weight(c, j));
    const A offset = bias.data() != nullptr ? static_cast<A>(bias(c)) : A(0);
    const bool kept = state.data() != nullptr;
    for (index j = 0; j < past; ++j) s.past[j] = kept ? state(b, c, j) : A(0);
    for (index t = 0; t < tokens(); t += tile()) {
      const index n = (std::min)(tile(), tokens() - t);
      std::copy_n(s.past, past, s.window);
      gather_row(&x(b, c, t), x.stride(2), n, s.window + past);
      std::copy_n(s.window + n, past, s.past);
      convolve(s.window, 1, lanes, ceil_div(n, lanes), simd::broadcast(offset),
               [&](index j) HEED_INLINE_LAMBDA { return simd::broadcast(s.weight[j]); });
      scatter_row(s.window, &out(b, c, t), out.stride(2), n);
    }
    for (index j = 0; kept && j < past; ++j) state(b, c, j) = s.past[j];
  }

  /// Packets of outputs, `step` apart, each over its own oldest input, which nothing later reads:
  /// tap j of the packet at p is at p + j * tap_step.
  template <class Weight>
  HEED_INLINE void convolve(A* window, index tap_step, index step, index count,
                            simd::packet<A> offset, Weight&& w) const noexcept {
    in_steps<group>(count, [&](auto packets, index i) HEED_INLINE_LAMBDA {
      constexpr int n = decltype(packets)::value;
      A* const at = window + i * step;
      simd::packet<A> y[std::size_t{n}];
      simd::unroll<n>([&](auto p) HEED_INLINE_LAMBDA { y[p] = offset; });
      for (index j = 0; j < taps(); ++j) {
        const simd::packet<A> factor = w(j);
        simd::unroll<n>([&](auto p) HEED_INLINE_LAMBDA {
          y[p] = simd::fmadd(factor, simd::load<A>(at + p * step + j * tap_step), y[p]);
        });
      }
      if (silu_output) simd::silu_in_place<A, n>(y);
      simd::unroll<n>([&](auto p) HEED_INLINE_LAMBDA { simd::store(at + p * step, y[p]); });
    });
  }
};

}  // namespace heed::inline HEED_TARGET::detail
