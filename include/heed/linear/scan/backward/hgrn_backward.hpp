// SPDX-License-Identifier: MIT
// The backward pass of HGRN, packets of channels at a time.
//
//   h_t = e^g_t h_(t-1) + x_t, out_t = h_t.  With H the gradient of h_t, from the last token back:
//   H += d_out_t;  dx_t = H;  dg_t = H e^g_t h_(t-1);  H = e^g_t H
//
//   heed::hgrn_backward([executor,] heed::hgrn_backward_inputs<float>{x, g, initial, d_out, d_final},
//                       {dx, dg, d_initial}, [options]);
//
// x, g and their gradients, d_out: [batch, tokens, channels], any strides; states [sequences,
// channels], in the accumulator type. Scalars float, double, half, bfloat16; sums in the
// accumulator type, gradients rounded once. No gradient overlaps an input. A gate of -inf has
// gradient 0; gates of 0 and of -60 are finite, and gates above 0 are computed too. A NaN stays in its
// channel; a sequence without tokens passes the final state's gradient on.
//
// A gradient is off by at most eps times sum_t (6 + |G_t|) (t - j + 1) |d_out_t| exp(G_t), G_t the sum
// of the gates between, times |h| for a gate. naive_hgrn_backward takes the same arguments and is
// the oracle.
//
// Cost 3 FLOPs a token and channel, and the forward pass (2 and an exp) once more: x and g are read
// twice, d_out once. States are kept every `chunk` tokens: scratch a worker tokens / chunk + 3 chunk
// numbers for each of 16 packets of channels. Parallel over sequences x blocks of channels; the same
// bits for any number of threads and any batch. Throws shape_error, option_error, std::bad_alloc,
// before anything is written.
// Source of the forward form: Qin, Yang, Zhong 2023, arXiv 2311.04823; reverse accumulation.
#pragma once

#include <algorithm>

#include "heed/core/target.hpp"
#include "heed/linear/channel_gradient.hpp"
#include "heed/linear/scan/backward/naive_hgrn_backward.hpp"
#include "heed/linear/scan/channel_lines.hpp"
#include "heed/parallel/openmp.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

template <class T>
class hgrn_gradient {
  using A = accumulate_t<T>;
  using packet = simd::packet<A>;
  static constexpr int packets = 4;
  static constexpr index lanes = simd::lanes<A>;
  static constexpr index unit = packets * lanes;

 public:
  static constexpr index width = 16 * lanes;

  hgrn_gradient(const hgrn_backward_inputs<T>& in, const hgrn_gradients<T>& to,
                const gradient_blocks& blocks)
      : in_(in),
        to_(to),
        blocks_(blocks),
        longest_(blocks.longest()),
        chunk_(std::clamp<index>(in.chunk, 1, (std::max)(longest_, index{1}))) {}

  struct scratch_type {
    A *state, *back, *kept;  // h, H, and h every `chunk` tokens
    A *x, *g, *d;            // rows one token each
  };

  [[nodiscard]] index tasks() const noexcept { return blocks_.plan.blocks(); }
  static void allocate_sums(arena&) noexcept {}
  [[nodiscard]] static index sum_tasks() noexcept { return 0; }
  static void sum(index) noexcept {}
  [[nodiscard]] scratch_type allocate(arena& c) const noexcept {
    scratch_type s{};
    for (A** row : {&s.state, &s.back}) *row = c.allocate<A>(width);
    s.kept = c.allocate<A>(ceil_div(longest_, chunk_), width);
    for (A** tile : {&s.x, &s.g, &s.d}) *tile = c.allocate<A>(chunk_, width);
    return s;
  }

  void run(index task, const scratch_type& s) const noexcept {
    const channel_block c = blocks_.plan.at(task);
    load_numbers_of(has_data(in_.initial_state), c, width, s.state,
                    [&](index i) { return in_.initial_state(c.sequence, i); });
    load_numbers_of(has_data(in_.d_final_state), c, width, s.back,
                    [&](index i) { return in_.d_final_state(c.sequence, i); });
    const range all = blocks_.tokens_of(c);
    reverse_chunks(
        all, chunk_, s.state, width, s.kept,
        [&](range t) noexcept { forward(c, t, {t.end, all.end}, s); },
        [&](range t) noexcept {
          forward(c, t, {(std::max)(all.begin, t.begin - chunk_), t.begin}, s);
          load_given(in_.d_out, c, t, s.d, width, unit);
          for (index first = 0; first < c.count; first += unit) {
            step_back(t.size(),
                      {nullptr, s.back + first, nullptr, s.x + first, s.g + first, s.d + first});
          }
          store_wanted(s.d, width, to_.x, c, t);
          store_wanted(s.x, width, to_.g, c, t);
        });
    for (index i = 0; has_data(to_.initial_state) && i < c.count; ++i) {
      to_.initial_state(c.sequence, c.first + i) = s.back[i];
    }
  }

 private:
  /// The state after the tokens; s.x becomes e^g h, s.g e^g. `ahead` is read next.
  void forward(const channel_block& c, range t, range ahead, const scratch_type& s) const noexcept {
    const channel_ahead at{c, ahead.begin};
    channel_lines next(at, chunk_, ahead.end);
    next.add(in_.x, at);
    next.add(in_.g, at);
    if (has_data(in_.d_out) && ahead.begin < t.begin) next.add(in_.d_out, at);
    load_channels(in_.x, c, t, s.x, width, unit);
    load_channels(in_.g, c, t, s.g, width, unit);
    for (index first = 0; first < c.count; first += unit) {
      const scratch_type part{s.state + first, nullptr, nullptr, s.x + first, s.g + first, nullptr};
      if (any_positive(part.g, width, t.size(), unit)) {
        advance<false>(t.size(), part, next);
      } else {
        advance<true>(t.size(), part, next);
      }
    }
  }

  template <bool Decaying>
  HEED_NOINLINE static void advance(index tokens, const scratch_type& s,
                                    channel_lines& next) noexcept {
    using simd::unroll;
    const packet zero = simd::zero<A>();
    packet h[std::size_t{packets}], e[std::size_t{packets}];
    unroll<packets>([&](auto p) HEED_INLINE_LAMBDA { h[p] = simd::load<A>(s.state + p * lanes); });
    for (index t = 0; t < tokens; ++t) {
      A* const x = s.x + t * width;
      A* const g = s.g + t * width;
      unroll<packets>([&](auto p) HEED_INLINE_LAMBDA { e[p] = simd::load<A>(g + p * lanes); });
      scan_exp<A, packets, Decaying>(e);
      unroll<packets>([&](auto p) HEED_INLINE_LAMBDA {
        const packet old = unless_forgotten(e[p], simd::mul(e[p], h[p]), zero);
        h[p] = simd::add(old, simd::load<A>(x + p * lanes));
        simd::store(x + p * lanes, old);
        simd::store(g + p * lanes, e[p]);
      });
      unroll<packets / 2>([&](auto) HEED_INLINE_LAMBDA { next.issue(); });
    }
    unroll<packets>([&](auto p) HEED_INLINE_LAMBDA { simd::store(s.state + p * lanes, h[p]); });
  }

  /// s.d becomes dx, s.x dg.
  HEED_NOINLINE static void step_back(index tokens, const scratch_type& s) noexcept {
    using simd::unroll;
    const packet zero = simd::zero<A>();
    packet h[std::size_t{packets}];
    unroll<packets>([&](auto p) HEED_INLINE_LAMBDA { h[p] = simd::load<A>(s.back + p * lanes); });
    for (index t = tokens; t-- > 0;) {
      A* const d = s.d + t * width;
      A* const old = s.x + t * width;
      const A* const g = s.g + t * width;
      unroll<packets>([&](auto p) HEED_INLINE_LAMBDA {
        const packet e = simd::load<A>(g + p * lanes);
        const packet all = simd::add(h[p], simd::load<A>(d + p * lanes));
        simd::store(d + p * lanes, all);
        simd::store(old + p * lanes, simd::mul(all, simd::load<A>(old + p * lanes)));
        h[p] = unless_forgotten(e, simd::mul(e, all), zero);
      });
    }
    unroll<packets>([&](auto p) HEED_INLINE_LAMBDA { simd::store(s.back + p * lanes, h[p]); });
  }

  const hgrn_backward_inputs<T>& in_;
  const hgrn_gradients<T>& to_;
  const gradient_blocks& blocks_;
  index longest_, chunk_;
};

}  // namespace detail

/// The gradients `to` of what the forward pass read, from those of what it wrote.
template <executor E, class T>
void hgrn_backward(E&& exec, const hgrn_backward_inputs<T>& in, const hgrn_gradients<T>& to,
                   const gradient_options& options = {}) {
  const auto blocks = detail::blocks_of_channels("x", in.x.extents(), options.sequence_bounds, 1,
                                                 detail::hgrn_gradient<T>::width);
  detail::check_hgrn_backward(in, to, blocks.sequences());
  detail::hgrn_gradient<T> gradient(in, to, blocks);
  detail::run_channel_gradient(exec, gradient, options.scratch);
}
template <class T>
void hgrn_backward(const hgrn_backward_inputs<T>& in, const hgrn_gradients<T>& to,
                   const gradient_options& options = {}) {
  hgrn_backward(default_executor{}, in, to, options);
}

}  // namespace heed::inline HEED_TARGET
