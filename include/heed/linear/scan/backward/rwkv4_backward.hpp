// SPDX-License-Identifier: MIT
// The backward pass of RWKV-4's time mixing, packets of channels at a time.
//
//   With m_t, den_t the maximum and the denominator of out_t, W_t = e^(-m_t) / den_t, the sums over
//   later tokens of d_out_t W_t e^((t - 1 - j) w) (values), of those times out_t (means), and of both
//   times t - 1 - j (aged), from the last token back:
//   dv_j = e^k_j values + own d_out_j,  own = e^(u + k_j - m_j) / den_j
//   dk_j = e^k_j (v_j values - means) + own (v_j - out_j) d_out_j;  du is the sum of the latter
//   d_decay = w sum_j e^k_j (v_j aged values - aged means)
//
// The sums are kept less the largest exponent, so that no exponential is above 1.
//
//   heed::rwkv4_backward([executor,] heed::rwkv4_backward_inputs<float>{k, v, decay, bonus, d_out},
//                        {dk, dv, d_decay, d_bonus}, [options]);
//
// Axes: naive_rwkv4_backward, which is the oracle and takes the same arguments; any strides; scalars
// float, double, half, bfloat16. States as there. Sums in the accumulator type, gradients
// rounded once; those of decay and bonus are summed chunk by chunk, then over sequences, in the
// accumulator type. No gradient overlaps an input. A key of -inf has no weight and gradient 0. A NaN
// stays in its channel; a sequence without tokens passes the final state's gradient on.
//
// Cost a token and channel: 3 exp and 29 FLOPs, and the forward pass (4 exp, a division, 14 FLOPs)
// once more. States are kept every `chunk` tokens: scratch a worker 3 tokens / chunk + 7 chunk numbers
// for each of 16 packets of channels, and 2 numbers a channel of every sequence. Parallel over
// sequences x blocks of channels; the same bits for any number of threads. Throws shape_error,
// option_error, std::bad_alloc, before anything is written.
// Source of the forward form: Peng et al. 2023, arXiv 2305.13048, eq. 16; reverse accumulation.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "heed/core/target.hpp"
#include "heed/linear/channel_gradient.hpp"
#include "heed/linear/scan/backward/naive_rwkv4_backward.hpp"
#include "heed/linear/scan/channel_lines.hpp"
#include "heed/parallel/openmp.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

template <class T>
class rwkv4_gradient {
  using A = accumulate_t<T>;
  using packet = simd::packet<A>;
  static constexpr int packets = 2;
  static constexpr auto n = std::size_t{packets};
  static constexpr index lanes = simd::lanes<A>;
  static constexpr index unit = packets * lanes;
  static constexpr index state_rows = 3;  // numerator, denominator, maximum
  static constexpr index later_rows = 5;  // values, means, both aged, their exponent

 public:
  static constexpr index width = 16 * lanes;

  rwkv4_gradient(const rwkv4_backward_inputs<T>& in, const rwkv4_gradients<T>& to,
                 const gradient_blocks& blocks)
      : in_(in),
        to_(to),
        blocks_(blocks),
        longest_(blocks.longest()),
        chunk_(std::clamp<index>(in.chunk, 1, (std::max)(longest_, index{1}))) {}

  struct scratch_type {
    A *state, *kept, *later;  // rows of `width` numbers
    A *w, *u, *d_w, *d_u;     // of the channels
    A *k, *v, *d;             // rows one token each
    A *out, *most, *weight;   // out_t, -m_t, 1 / den_t
    A* own;
  };

  [[nodiscard]] index tasks() const noexcept { return blocks_.plan.blocks(); }
  void allocate_sums(arena& c) noexcept {
    d_w_ = c.allocate<A>(tasks(), width);
    d_u_ = c.allocate<A>(tasks(), width);
  }
  [[nodiscard]] scratch_type allocate(arena& c) const noexcept {
    scratch_type s{};
    s.state = c.allocate<A>(state_rows, width);
    s.kept = c.allocate<A>(ceil_div(longest_, chunk_), state_rows, width);
    s.later = c.allocate<A>(later_rows, width);
    for (A** row : {&s.w, &s.u}) *row = c.allocate<A>(width);
    for (A** tile : {&s.k, &s.v, &s.d, &s.out, &s.most, &s.weight, &s.own}) {
      *tile = c.allocate<A>(chunk_, width);
    }
    return s;
  }

  void run(index task, scratch_type& s) const noexcept {
    const channel_block c = blocks_.plan.at(task);
    s.d_w = d_w_ + task * width;
    s.d_u = d_u_ + task * width;
    for (A* row : {s.d_w, s.d_u}) std::fill_n(row, width, A(0));
    load_numbers_of(true, c, width, s.w, [&](index i) { return -std::exp(in_.decay(i)); });
    load_numbers_of(true, c, width, s.u, [&](index i) { return in_.bonus(i); });
    std::fill_n(s.state, state_rows * width, A(0));
    std::fill_n(s.later, later_rows * width, A(0));
    std::fill_n(s.state + 2 * width, width, none);
    std::fill_n(s.later + 4 * width, width, none);
    load_states(c, s);
    const range all = blocks_.tokens_of(c);
    reverse_chunks(
        all, chunk_, s.state, state_rows * width, s.kept,
        [&](range t) noexcept { forward<false>(c, t, {t.end, all.end}, s); },
        [&](range t) noexcept {
          forward<true>(c, t, {(std::max)(all.begin, t.begin - chunk_), t.begin}, s);
          if (t.end == all.end) load_final_state(c, s);
          load_given(in_.d_out, c, t, s.d, width, unit);
          for (index first = 0; first < c.count; first += unit) step_back(t.size(), first, s);
          store_wanted(s.k, width, to_.k, c, t);
          store_wanted(s.v, width, to_.v, c, t);
        });
    if (all.empty()) load_final_state(c, s);
    finish_states(c, s);
    for (index i = 0; i < width; ++i) s.d_w[i] *= s.w[i];
  }

  [[nodiscard]] index sum_tasks() const noexcept { return blocks_.plan.blocks_per_sequence(); }
  /// Of a block of channels, over the sequences.
  void sum(index block) const noexcept {
    for (index i = 0; i < blocks_.plan.at(block).count; ++i) {
      A of_w = A(0), of_u = A(0);
      for (index task = block; task < tasks(); task += sum_tasks()) {
        of_w += d_w_[task * width + i];
        of_u += d_u_[task * width + i];
      }
      const index channel = block * width + i;
      if (has_data(to_.decay)) to_.decay(channel) = of_w;
      if (has_data(to_.bonus)) to_.bonus(channel) = of_u;
    }
  }

 private:
  static constexpr A none = -std::numeric_limits<A>::infinity();

  /// The initial state; one without weights is empty.
  void load_states(const channel_block& c, const scratch_type& s) const noexcept {
    for (index i = 0; has_data(in_.initial_state) && i < c.count; ++i) {
      if (in_.initial_state(c.sequence, 1, c.first + i) == A(0)) continue;
      for (index r = 0; r < state_rows; ++r) {
        s.state[r * width + i] = in_.initial_state(c.sequence, r, c.first + i);
      }
    }
  }
  /// The final state, in s.state, is read by what follows the sequence.
  void load_final_state(const channel_block& c, const scratch_type& s) const noexcept {
    for (index i = 0; has_data(in_.d_final_state) && i < c.count; ++i) {
      if (s.state[width + i] == A(0)) continue;
      s.later[i] = in_.d_final_state(c.sequence, 0, c.first + i);
      s.later[width + i] = -in_.d_final_state(c.sequence, 1, c.first + i);
      s.later[4 * width + i] = -s.state[2 * width + i];
    }
  }
  /// What the initial state gives to the decay, and its own gradient.
  void finish_states(const channel_block& c, const scratch_type& s) const noexcept {
    for (index i = 0; i < c.count; ++i) {
      const auto state = [&](index r) {
        return has_data(in_.initial_state) ? in_.initial_state(c.sequence, r, c.first + i) : A(0);
      };
      const auto later = [&](index r) { return s.later[r * width + i]; };
      const bool read = state(1) != A(0) && later(4) != none;
      const A reach = read ? std::exp((std::min)(state(2) + later(4), A(0))) : A(0);
      s.d_w[i] += reach * (state(0) * later(2) - state(1) * later(3));
      if (!has_data(to_.initial_state)) continue;
      const A da = reach * later(0), db = -reach * later(1);
      to_.initial_state(c.sequence, 0, c.first + i) = da;
      to_.initial_state(c.sequence, 1, c.first + i) = db;
      to_.initial_state(c.sequence, 2, c.first + i) = state(0) * da + state(1) * db;
    }
  }

  static void load(const A* from, packet* to) noexcept {
    simd::unroll<packets>([&](auto i)
                              HEED_INLINE_LAMBDA { to[i] = simd::load<A>(from + i * lanes); });
  }
  static void store(const packet* from, A* to) noexcept {
    simd::unroll<packets>([&](auto i) HEED_INLINE_LAMBDA { simd::store(to + i * lanes, from[i]); });
  }

  /// The exponentials of x and y less their maximum, which becomes m; not below the lowest number, so
  /// that two infinities do not make a NaN.
  HEED_INLINE static void relative(const packet* x, const packet* y, packet* ex, packet* ey,
                                   packet* m) noexcept {
    const packet lowest = simd::broadcast(std::numeric_limits<A>::lowest());
    packet e[2 * n];
    simd::unroll<packets>([&](auto i) HEED_INLINE_LAMBDA {
      m[i] = (simd::max)((simd::max)(x[i], y[i]), lowest);
      e[i] = simd::sub(x[i], m[i]);
      e[packets + i] = simd::sub(y[i], m[i]);
    });
    simd::exp_nonpositive<A, 2 * packets>(e);
    simd::unroll<packets>([&](auto i) HEED_INLINE_LAMBDA {
      ex[i] = e[i];
      ey[i] = e[packets + i];
    });
  }

  /// `ahead` is read next.
  template <bool Outputs>
  void forward(const channel_block& c, range t, range ahead, const scratch_type& s) const noexcept {
    const channel_ahead at{c, ahead.begin};
    channel_lines next(at, chunk_, ahead.end);
    next.add(in_.k, at);
    next.add(in_.v, at);
    if (ahead.begin < t.begin) next.add(in_.d_out, at);
    load_channels(in_.k, c, t, s.k, width, unit);
    load_channels(in_.v, c, t, s.v, width, unit);
    for (index first = 0; first < c.count; first += unit)
      advance<Outputs>(t.size(), first, s, next);
  }

  /// The state after the tokens; with Outputs also what their gradients need.
  template <bool Outputs>
  HEED_NOINLINE static void advance(index tokens, index first, const scratch_type& s,
                                    channel_lines& next) noexcept {
    using simd::unroll;
    const packet zero = simd::zero<A>();
    packet a[n], b[n], p[n], w[n], u[n], key[n], value[n], x[n];
    load(s.state + first, a);
    load(s.state + width + first, b);
    load(s.state + 2 * width + first, p);
    load(s.w + first, w);
    load(s.u + first, u);
    for (index t = 0; t < tokens; ++t) {
      const index at = t * width + first;
      load(s.k + at, key);
      load(s.v + at, value);
      if constexpr (Outputs) {
        packet old[n], own[n], m[n];
        unroll<packets>([&](auto i) HEED_INLINE_LAMBDA { x[i] = simd::add(u[i], key[i]); });
        relative(p, x, old, own, m);
        unroll<packets>([&](auto i) HEED_INLINE_LAMBDA {
          const packet den = simd::fmadd(old[i], b[i], own[i]);
          const packet seen = simd::mul(own[i], value[i]);
          const packet num = simd::fmadd(old[i], a[i], unless_forgotten(own[i], seen, zero));
          const packet empty = simd::equal(den, zero);
          const packet weight = simd::select(empty, zero, simd::div(simd::broadcast(A(1)), den));
          const index to = at + i * lanes;
          simd::store(s.weight + to, weight);
          simd::store(s.out + to, simd::select(empty, zero, simd::mul(num, weight)));
          simd::store(s.most + to,
                      simd::select(empty, simd::broadcast(none), simd::sub(zero, m[i])));
          simd::store(s.own + to, simd::mul(own[i], weight));
        });
      }
      packet older[n], newer[n];
      unroll<packets>([&](auto i) HEED_INLINE_LAMBDA { x[i] = simd::add(p[i], w[i]); });
      relative(x, key, older, newer, p);
      unroll<packets>([&](auto i) HEED_INLINE_LAMBDA {
        const packet seen = unless_forgotten(newer[i], simd::mul(newer[i], value[i]), zero);
        a[i] = simd::fmadd(older[i], a[i], seen);
        b[i] = simd::fmadd(older[i], b[i], newer[i]);
      });
      next.issue();
    }
    store(a, s.state + first);
    store(b, s.state + width + first);
    store(p, s.state + 2 * width + first);
  }

  /// s.k becomes dk, s.v dv.
  HEED_NOINLINE static void step_back(index tokens, index first, const scratch_type& s) noexcept {
    using simd::unroll;
    const packet zero = simd::zero<A>();
    packet values[n], means[n], aged_values[n], aged_means[n], most[n], w[n], d_w[n], d_u[n];
    load(s.later + first, values);
    load(s.later + width + first, means);
    load(s.later + 2 * width + first, aged_values);
    load(s.later + 3 * width + first, aged_means);
    load(s.later + 4 * width + first, most);
    load(s.w + first, w);
    unroll<packets>([&](auto i) HEED_INLINE_LAMBDA { d_w[i] = d_u[i] = zero; });
    for (index t = tokens; t-- > 0;) {
      const index at = t * width + first;
      packet later[n], x[n], y[n], keep[n], add[n];
      load(s.k + at, later);
      unroll<packets>([&](auto i) HEED_INLINE_LAMBDA {
        // At most 0 but for rounding: no weight is above the sum of all.
        const packet e = simd::add(later[i], most[i]);
        later[i] = simd::select(simd::less(zero, e), zero, e);
      });
      simd::exp_nonpositive<A, packets>(later);
      load(s.most + at, y);
      unroll<packets>([&](auto i) HEED_INLINE_LAMBDA { x[i] = simd::add(most[i], w[i]); });
      relative(x, y, keep, add, most);
      unroll<packets>([&](auto i) HEED_INLINE_LAMBDA {
        const index to = at + i * lanes;
        const packet key = simd::load<A>(s.k + to), value = simd::load<A>(s.v + to);
        const packet d = simd::load<A>(s.d + to), out = simd::load<A>(s.out + to);
        const packet own = simd::load<A>(s.own + to);
        const packet absent = simd::equal(key, simd::broadcast(none));
        const packet of_own = simd::mul(own, d);
        const packet of_bonus =
            simd::select(absent, zero, simd::mul(of_own, simd::sub(value, out)));
        const packet dv = simd::fmadd(later[i], values[i], of_own);
        const packet past = simd::sub(simd::mul(value, values[i]), means[i]);
        const packet aged = simd::sub(simd::mul(value, aged_values[i]), aged_means[i]);
        simd::store(s.v + to, simd::select(absent, zero, dv));
        simd::store(s.k + to, simd::select(absent, zero, simd::fmadd(later[i], past, of_bonus)));
        d_u[i] = simd::add(d_u[i], of_bonus);
        d_w[i] = simd::add(d_w[i], simd::select(absent, zero, simd::mul(later[i], aged)));

        const packet fresh = simd::mul(simd::mul(add[i], simd::load<A>(s.weight + to)), d);
        aged_values[i] = simd::mul(keep[i], simd::add(aged_values[i], values[i]));
        aged_means[i] = simd::mul(keep[i], simd::add(aged_means[i], means[i]));
        values[i] = simd::fmadd(keep[i], values[i], fresh);
        means[i] = simd::fmadd(keep[i], means[i], simd::mul(fresh, out));
      });
    }
    store(values, s.later + first);
    store(means, s.later + width + first);
    store(aged_values, s.later + 2 * width + first);
    store(aged_means, s.later + 3 * width + first);
    store(most, s.later + 4 * width + first);
    unroll<packets>([&](auto i) HEED_INLINE_LAMBDA {
      A* const of_w = s.d_w + first + i * lanes;
      A* const of_u = s.d_u + first + i * lanes;
      simd::store(of_w, simd::add(simd::load<A>(of_w), d_w[i]));
      simd::store(of_u, simd::add(simd::load<A>(of_u), d_u[i]));
    });
  }

  const rwkv4_backward_inputs<T>& in_;
  const rwkv4_gradients<T>& to_;
  const gradient_blocks& blocks_;
  index longest_, chunk_;
  A *d_w_ = nullptr, *d_u_ = nullptr;  // of the tasks
};

}  // namespace detail

/// The gradients `to` of what the forward pass read.
template <executor E, class T>
void rwkv4_backward(E&& exec, const rwkv4_backward_inputs<T>& in, const rwkv4_gradients<T>& to,
                    const gradient_options& options = {}) {
  const auto blocks = detail::blocks_of_channels("k", in.k.extents(), options.sequence_bounds, 1,
                                                 detail::rwkv4_gradient<T>::width);
  detail::check_rwkv4_backward(in, to, blocks.sequences());
  detail::rwkv4_gradient<T> gradient(in, to, blocks);
  detail::run_channel_gradient(exec, gradient, options.scratch);
}
template <class T>
void rwkv4_backward(const rwkv4_backward_inputs<T>& in, const rwkv4_gradients<T>& to,
                    const gradient_options& options = {}) {
  rwkv4_backward(default_executor{}, in, to, options);
}

}  // namespace heed::inline HEED_TARGET
