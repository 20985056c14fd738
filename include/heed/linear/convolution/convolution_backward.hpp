// SPDX-License-Identifier: MIT
// The backward pass of a depthwise causal convolution, packets of channels or of tokens at a time.
//
//   s_t = bias + sum_j weight_j x_(t + j - (W-1)),  y_t = s_t or silu(s_t)
//   ds_t = d_out_t, or d_out_t silu'(s_t);  d_bias = sum_t ds_t;  dweight_j = sum_t ds_t x_(...)
//   dx_u = sum_j weight_j ds_(u - j + W-1), and d_final_state where x_u is in the next state
//
//   heed::convolution_backward_inputs<float> in{x, weight, bias, past, /*silu=*/true, d_out};
//   heed::causal_convolution_backward([executor,] in, {dx, d_weight, d_bias, d_past}, [options]);
//
// Axes: naive_causal_convolution_backward, which is the oracle and takes the same arguments. Any
// strides. Scalars float, double, half, bfloat16 of x, d_out and dx; weights, bias, past and their
// gradients are of the accumulator type. Gradients are rounded once, and overlap no input.
//
// Sums over tokens go tile by tile (1024 tokens, or 64 where channels are contiguous), then over
// sequences, in the accumulator type: off by at most (tile + tiles + sequences) eps of the terms'
// absolute sum; dx by (2 W + 12) eps of that of its terms. A NaN or infinity in x or d_out reaches its
// own channel: the tokens within W-1 of it, and the channel's sums.
//
// Cost 6 W FLOPs an input, and with silu an exponential, a division and 8 FLOPs; x and d_out are read
// once, and W-1 tokens of every tile twice. Scratch a worker: 2 (tile + 3 W) x 8 packets, or
// 2 tile + 8 W numbers; W + 1 numbers a channel of every sequence. Parallel over sequences x blocks of
// channels; the same bits for any number of threads. Throws shape_error, std::bad_alloc, before
// anything is written.
// Source of the forward form: van den Oord et al. 2016, arXiv 1609.03499; reverse accumulation.
#pragma once

#include <algorithm>
#include <array>

#include "heed/core/target.hpp"
#include "heed/linear/channel_gradient.hpp"
#include "heed/linear/convolution/channel_block.hpp"
#include "heed/linear/convolution/naive_backward.hpp"
#include "heed/parallel/openmp.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

template <class T>
class convolution_gradient {
  using A = accumulate_t<T>;
  using packet = simd::packet<A>;
  static constexpr index lanes = simd::lanes<A>;

 public:
  /// Channels of a block, where lanes run along them.
  static constexpr index part = 8 * lanes;

  convolution_gradient(const convolution_backward_inputs<T>& in, const convolution_gradients<T>& to,
                       const gradient_blocks& blocks, bool along_tokens)
      : in_(in),
        to_(to),
        x_(tokens_second(in.x)),
        d_out_(tokens_second(in.d_out)),
        dx_(tokens_second(to.x)),
        blocks_(blocks),
        along_tokens_(along_tokens),
        taps_(in.weight.extent(1)),
        past_(taps_ - 1),
        tile_(std::min<index>(round_up((std::max)(blocks.longest(), index{1}), lanes),
                              along_tokens ? 1024 : 64)) {}

  struct scratch_type {
    A *weight, *reversed, *bias;  // rows of the columns
    A *x, *d;    // W-1 inputs before a tile, the tile, W-1 after it; d without the first
    A* sums;     // of the task: W rows of the weights', one of the bias'
    index used;  // columns that hold channels, whole packets
  };

  [[nodiscard]] index tasks() const noexcept { return blocks_.plan.blocks(); }
  void allocate_sums(arena& c) noexcept { sums_ = c.allocate<A>(tasks(), taps_ + 1, width()); }
  [[nodiscard]] scratch_type allocate(arena& c) const noexcept {
    scratch_type s{};
    for (A** x : {&s.weight, &s.reversed}) *x = c.allocate<A>(taps_, columns());
    s.bias = c.allocate<A>(columns());
    // Packets of tokens run past the end.
    s.x = c.allocate<A>(tile_ + 2 * past_ + 2 * lanes, columns());
    s.d = c.allocate<A>(tile_ + past_ + 2 * lanes, columns());
    return s;
  }

  void run(index task, scratch_type& s) const noexcept {
    const channel_block c = blocks_.plan.at(task);
    s.sums = sums_ + task * (taps_ + 1) * width();
    std::fill_n(s.sums, (taps_ + 1) * width(), A(0));
    for (index first = 0; first < c.count; first += along_tokens_ ? 1 : part) {
      channel_block some = c;
      some.first += first;
      some.count = along_tokens_ ? 1 : (std::min)(part, c.count - first);
      run_channels(some, first, s);
    }
  }

  [[nodiscard]] index sum_tasks() const noexcept { return blocks_.plan.blocks_per_sequence(); }
  /// Of a block of channels, over the sequences.
  void sum(index block) const noexcept {
    const channel_block c = blocks_.plan.at(block);
    for (index i = 0; i < c.count; ++i) {
      const auto total = [&](index j) noexcept {
        A sum = A(0);
        for (index task = block; task < tasks(); task += sum_tasks()) {
          sum += sums_[(task * (taps_ + 1) + j) * width() + i];
        }
        return sum;
      };
      for (index j = 0; has_data(to_.weight) && j < taps_; ++j)
        to_.weight(c.first + i, j) = total(j);
      if (has_data(to_.bias)) to_.bias(c.first + i) = total(taps_);
    }
  }

 private:
  static constexpr int group = simd::vector_registers == 32 ? 8 : 4;

  template <class S>
  [[nodiscard]] static view<S, 3> tokens_second(const view<S, 3>& x) noexcept {
    return has_data(x) ? x.swap_axes(1, 2) : x;
  }
  [[nodiscard]] index width() const noexcept { return blocks_.plan.width; }
  /// Channels side by side in scratch.
  [[nodiscard]] index columns() const noexcept { return along_tokens_ ? 1 : part; }

  void run_channels(const channel_block& c, index column, scratch_type& s) const noexcept {
    s.used = round_up(c.count, lanes);
    for (index j = 0; j < taps_; ++j) {
      std::fill_n(s.weight + j * columns(), columns(), A(0));
      for (index i = 0; i < c.count; ++i) s.weight[j * columns() + i] = in_.weight(c.first + i, j);
    }
    for (index j = 0; j < taps_; ++j) {
      std::copy_n(s.weight + (past_ - j) * columns(), columns(), s.reversed + j * columns());
    }
    load_numbers_of(has_data(in_.bias), c, columns(), s.bias, [&](index i) { return in_.bias(i); });
    const range all = blocks_.tokens_of(c);
    for (index t = all.begin; t < all.end; t += tile_) {
      const range own{t, (std::min)(t + tile_, all.end)};
      load(c, all, own, s);
      slopes(own.size() + past_, s);
      add_sums(own.size(), column, s);
      if (t == all.begin) store_past(c, all, s);
      if (!has_data(dx_)) continue;
      correlate(s.d, s.reversed, own.size(), s.used, s.d);
      add_final_state(c, all, own, s);
      store_tokens(s.d, dx_, c, own);
    }
    if (all.empty()) store_past(c, all, s);
  }

  /// x of the tokens from W-1 before the tile to W-1 after it, the cotangents of those in and after it;
  /// zeros past the sequence's end, and on to the last packet's.
  void load(const channel_block& c, range all, range own, const scratch_type& s) const noexcept {
    const index before = (std::min)(own.begin - all.begin, past_);
    const index missing = past_ - before;
    const range tokens{own.begin - before, (std::min)(own.end + past_, all.end)};
    for (index i = 0; i < missing; ++i) {
      A* const row = s.x + i * columns();
      std::fill_n(row, columns(), A(0));
      // `own.begin - all.begin` of the past have gone by.
      const index at = own.begin - all.begin + i;
      for (index k = 0; has_data(in_.past) && k < c.count; ++k) {
        row[k] = in_.past(c.sequence, c.first + k, at);
      }
    }
    load_tokens(x_, c, tokens, s.x + missing * columns());
    clear(s.x, missing + tokens.size(), own.size() + 2 * past_ + 2 * lanes);
    const range later{own.begin, tokens.end};
    clear(s.d, 0, own.size() + past_ + 2 * lanes);
    if (has_data(d_out_)) load_tokens(d_out_, c, later, s.d);
  }
  void clear(A* rows, index first, index last) const noexcept {
    std::fill(rows + first * columns(), rows + last * columns(), A(0));
  }
  void load_tokens(const view<const T, 3>& x, const channel_block& c, range t,
                   A* to) const noexcept {
    if (t.empty()) return;
    if (along_tokens_) {
      gather_row(&x(c.batch, t.begin, c.first), x.stride(1), t.size(), to);
    } else {
      load_channels(x, c, t, to, part, part);
    }
  }
  void store_tokens(const A* from, const view<T, 3>& x, const channel_block& c,
                    range t) const noexcept {
    if (along_tokens_) {
      scatter_row(from, &x(c.batch, t.begin, c.first), x.stride(1), t.size());
    } else {
      store_channels(from, part, x, c, t);
    }
  }

  /// f(packets, of the first one, apart by, a tap's packet) over the packets of some tokens.
  template <class F>
  HEED_INLINE void each_packets(index tokens, index used, F&& f) const noexcept {
    if (along_tokens_) {
      f(index{0}, ceil_div(tokens, lanes), lanes, index{1},
        [](const A* at) HEED_INLINE_LAMBDA { return simd::broadcast(*at); });
      return;
    }
    for (index c = 0; c < used; c += lanes) {
      f(c, tokens, part, part, [](const A* at) HEED_INLINE_LAMBDA { return simd::load(at); });
    }
  }

  /// d = ds of the tokens.
  HEED_NOINLINE void slopes(index tokens, const scratch_type& s) const noexcept {
    if (!in_.silu) return;
    each_packets(tokens, s.used, [&](index c, index count, index step, index tap, auto load) {
      const packet bias = load(s.bias + c);
      in_steps<group>(count, [&](auto packets, index i) HEED_INLINE_LAMBDA {
        constexpr int n = decltype(packets)::value;
        const A* const x = s.x + c + i * step;
        A* const d = s.d + c + i * step;
        packet y[std::size_t{n}];
        simd::unroll<n>([&](auto p) HEED_INLINE_LAMBDA { y[p] = bias; });
        for (index j = 0; j < taps_; ++j) {
          const packet factor = load(s.weight + c + j * columns());
          simd::unroll<n>([&](auto p) HEED_INLINE_LAMBDA {
            y[p] = simd::fmadd(factor, simd::load<A>(x + p * step + j * tap), y[p]);
          });
        }
        simd::unroll<n>([&](auto p) HEED_INLINE_LAMBDA {
          A* const at = d + p * step;
          simd::store(at, simd::mul(simd::load<A>(at), silu_slope<A>(y[p])));
        });
      });
    });
  }

  /// to_t = sum_j weight_j x_(t + j); `to` may be x.
  HEED_NOINLINE void correlate(const A* x, const A* weight, index tokens, index used,
                               A* to) const noexcept {
    each_packets(tokens, used, [&](index c, index count, index step, index tap, auto load) {
      in_steps<group>(count, [&](auto packets, index i) HEED_INLINE_LAMBDA {
        constexpr int n = decltype(packets)::value;
        const A* const from = x + c + i * step;
        packet y[std::size_t{n}];
        simd::unroll<n>([&](auto p) HEED_INLINE_LAMBDA { y[p] = simd::zero<A>(); });
        for (index j = 0; j < taps_; ++j) {
          const packet factor = load(weight + c + j * columns());
          simd::unroll<n>([&](auto p) HEED_INLINE_LAMBDA {
            y[p] = simd::fmadd(factor, simd::load<A>(from + p * step + j * tap), y[p]);
          });
        }
        simd::unroll<n>([&](auto p)
                            HEED_INLINE_LAMBDA { simd::store(to + c + (i + p) * step, y[p]); });
      });
    });
  }

  /// The tile's own tokens' terms of the weights' and the bias' gradients.
  HEED_NOINLINE void add_sums(index tokens, index column, const scratch_type& s) const noexcept {
    each_packets(tokens, s.used, [&](index c, index count, index step, index tap, auto) {
      const A* const x = s.x + c;
      const A* const d = s.d + c;
      const auto add = [&](index row, const packet& sum) HEED_INLINE_LAMBDA {
        A* const to = s.sums + row * width() + column + c;
        if (along_tokens_) {
          *to += simd::sum(sum);
        } else {
          simd::store(to, simd::add(simd::load<A>(to), sum));
        }
      };
      packet total = simd::zero<A>();
      for (index i = 0; i < count; ++i) total = simd::add(total, simd::load<A>(d + i * step));
      add(taps_, total);
      in_steps<4>(taps_, [&](auto some, index j) HEED_INLINE_LAMBDA {
        constexpr int n = decltype(some)::value;
        packet sums[std::size_t{n}];
        simd::unroll<n>([&](auto k) HEED_INLINE_LAMBDA { sums[k] = simd::zero<A>(); });
        for (index i = 0; i < count; ++i) {
          const packet ds = simd::load<A>(d + i * step);
          simd::unroll<n>([&](auto k) HEED_INLINE_LAMBDA {
            sums[k] = simd::fmadd(ds, simd::load<A>(x + i * step + (j + k) * tap), sums[k]);
          });
        }
        simd::unroll<n>([&](auto k) HEED_INLINE_LAMBDA { add(j + k, sums[k]); });
      });
    });
  }

  /// Input i of the next state is input tokens + i of [past, x].
  void add_final_state(const channel_block& c, range all, range own,
                       const scratch_type& s) const noexcept {
    if (!has_data(in_.d_final_state)) return;
    for (index i = 0; i < past_; ++i) {
      const index t = all.end + i - past_;
      if (t < own.begin || t >= own.end) continue;
      for (index k = 0; k < c.count; ++k) {
        s.d[(t - own.begin) * columns() + k] += in_.d_final_state(c.sequence, c.first + k, i);
      }
    }
  }
  /// From ds of the first W-1 tokens.
  void store_past(const channel_block& c, range all, const scratch_type& s) const noexcept {
    if (!has_data(to_.past)) return;
    for (index u = 0; u < past_; ++u) {
      for (index k = 0; k < c.count; ++k) {
        A sum = A(0);
        for (index t = 0; t <= u && t < all.size(); ++t) {
          sum += s.weight[(u - t) * columns() + k] * s.d[t * columns() + k];
        }
        if (has_data(in_.d_final_state) && u >= all.size()) {
          sum += in_.d_final_state(c.sequence, c.first + k, u - all.size());
        }
        to_.past(c.sequence, c.first + k, u) = sum;
      }
    }
  }

  const convolution_backward_inputs<T>& in_;
  const convolution_gradients<T>& to_;
  view<const T, 3> x_, d_out_;  // batch, tokens, channels
  view<T, 3> dx_;
  const gradient_blocks& blocks_;
  bool along_tokens_;
  index taps_, past_, tile_;
  A* sums_ = nullptr;  // of the tasks
};

}  // namespace detail

/// The gradients `to` of what the forward pass read, from those of what it wrote.
template <executor E, class T>
void causal_convolution_backward(E&& exec, const convolution_backward_inputs<T>& in,
                                 const convolution_gradients<T>& to,
                                 const gradient_options& options = {}) {
  using gradient_type = detail::convolution_gradient<T>;
  const auto e = in.x.extents();
  // Lanes lie where memory is contiguous; a few tokens do not fill a packet.
  const bool along_tokens =
      e[2] >= simd::lanes<accumulate_t<T>> && (in.x.stride(2) == 1 || in.x.stride(1) != 1);
  const auto blocks = detail::blocks_of_channels("x", std::array<index, 3>{e[0], e[2], e[1]},
                                                 options.sequence_bounds, 1,
                                                 along_tokens ? 8 : gradient_type::part);
  detail::check_convolution_backward(in, to, blocks.sequences());
  gradient_type gradient(in, to, blocks, along_tokens);
  detail::run_channel_gradient(exec, gradient, options.scratch);
}
template <class T>
void causal_convolution_backward(const convolution_backward_inputs<T>& in,
                                 const convolution_gradients<T>& to,
                                 const gradient_options& options = {}) {
  causal_convolution_backward(default_executor{}, in, to, options);
}

}  // namespace heed::inline HEED_TARGET
