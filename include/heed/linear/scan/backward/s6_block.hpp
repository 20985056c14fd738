// SPDX-License-Identifier: MIT
// What the gradient of the selective scan works on: a block of channels, the rows of a chunk of its
// tokens, and the sums that its tasks leave. The arithmetic is in s6_gradient.hpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "heed/core/target.hpp"
#include "heed/linear/channel_gradient.hpp"
#include "heed/linear/scan/backward/naive_s6_backward.hpp"
#include "heed/simd/softplus.hpp"

namespace heed::inline HEED_TARGET::detail {

template <class T>
class s6_block {
 protected:
  using A = accumulate_t<T>;
  using packet = simd::packet<A>;
  static constexpr index lanes = simd::lanes<A>;
  static constexpr index together = 4;  // states

 public:
  static constexpr index width = 16 * lanes;

  s6_block(const selective_scan_backward_inputs<T>& in, const selective_scan_gradients<T>& to,
           const gradient_blocks& blocks)
      : in_(in),
        to_(to),
        blocks_(blocks),
        states_(in.a.extent(1)),
        longest_(blocks.longest()),
        chunk_(std::clamp<index>(in.chunk, 1, (std::max)(longest_, index{1}))),
        weighted_(has_data(to.b) || has_data(to.c)) {}

  struct scratch_type {
    A *state, *back, *kept;          // h, H: of each packet of channels states_ rows
    A *rate, *a, *skip, *bias;       // rate: a log2 e; a: 0 where it is not finite
    A *x, *raw, *step, *d, *gate;    // rows one token each: raw is dt + bias, step dt'
    A *dy, *y, *of_x, *of_step;      // sum_n H B, and sum_n H a e h
    A *b, *c;                        // states_ a token
    A *e, *old;                      // of each token, `together` packets
    A *db, *dc;                      // the same, of all packets of the block
    A *sum_a, *sum_skip, *sum_bias;  // of the task
    A *sum_b, *sum_c;                // of the block's share, of all tokens
    bool stable;                     // no a is positive
  };

  [[nodiscard]] index tasks() const noexcept { return blocks_.plan.blocks(); }
  void allocate_sums(arena& m) noexcept {
    channel_sums_ = m.allocate<A>(tasks(), states_ + 2, width);
    const index shares = weighted_ ? blocks_.plan.blocks_per_group() : 0;
    for (A** sums : {&b_sums_, &c_sums_}) *sums = m.allocate<A>(shares, share());
  }
  [[nodiscard]] scratch_type allocate(arena& m) const noexcept {
    scratch_type s{};
    for (A** x : {&s.state, &s.back, &s.rate, &s.a}) *x = m.allocate<A>(states_, width);
    s.kept = m.allocate<A>(ceil_div(longest_, chunk_), states_, width);
    for (A** x : {&s.skip, &s.bias}) *x = m.allocate<A>(width);
    for (A** x : {&s.x, &s.raw, &s.step, &s.d, &s.gate, &s.dy, &s.y, &s.of_x, &s.of_step}) {
      *x = m.allocate<A>(chunk_, row);
    }
    for (A** x : {&s.b, &s.c}) *x = m.allocate<A>(chunk_, states_);
    for (A** x : {&s.e, &s.old, &s.db, &s.dc}) *x = m.allocate<A>(chunk_, together, lanes);
    return s;
  }

  [[nodiscard]] index sum_tasks() const noexcept {
    return blocks_.plan.blocks_per_sequence() + (weighted_ ? in_.b.extent(0) * token_blocks() : 0);
  }
  void sum(index task) const noexcept {
    const index channels = blocks_.plan.blocks_per_sequence();
    if (task < channels) return sum_channels(task);
    const index batch = (task - channels) / token_blocks();
    const index first = (task - channels) % token_blocks() * sum_tokens;
    const range t{first, (std::min)(first + sum_tokens, in_.b.extent(1))};
    sum_weights(b_sums_, to_.b, batch, t);
    sum_weights(c_sums_, to_.c, batch, t);
  }

 protected:
  /// Not a power of two, which would lay a packet of all tokens on the same few sets of the cache.
  static constexpr index row = width + lanes;
  static constexpr index sum_tokens = 64;

  [[nodiscard]] index token_blocks() const noexcept {
    return ceil_div(in_.b.extent(1), sum_tokens);
  }
  /// Numbers of the sums of b or of c of one block of a group.
  [[nodiscard]] index share() const noexcept {
    return in_.b.extent(0) * in_.b.extent(1) * in_.b.extent(2) * states_;
  }
  [[nodiscard]] index weight_at(index batch, index token, index group) const noexcept {
    return ((batch * in_.b.extent(1) + token) * in_.b.extent(2) + group) * states_;
  }
  [[nodiscard]] bool gated() const noexcept { return has_data(in_.gate); }

  template <class F>
  static void each_packet(const channel_block& k, const F& f) noexcept {
    for (index first = 0; first < k.count; first += lanes) f(first);
  }
  /// Channels x states, or zeros, as packets of channels.
  template <class View, class F>
  void load_states(const View& from, const channel_block& k, A* to, const F& at) const noexcept {
    std::fill_n(to, states_ * width, A(0));
    if (from.data() == nullptr) return;
    for (index i = 0; i < k.count; ++i) {
      A* const row_of = to + i / lanes * lanes * states_ + i % lanes;
      for (index n = 0; n < states_; ++n) row_of[n * lanes] = at(k.first + i, n);
    }
  }

  void prepare(index task, const channel_block& k, scratch_type& s) const noexcept {
    load_states(in_.initial_state, k, s.state,
                [&](index c, index n) { return in_.initial_state(k.sequence, c, n); });
    load_states(in_.d_final_state, k, s.back,
                [&](index c, index n) { return in_.d_final_state(k.sequence, c, n); });
    load_states(in_.a, k, s.a, [&](index c, index n) { return in_.a(c, n); });
    s.stable = !any_positive(s.a, width, states_, width);
    constexpr A log2e = A(1.4426950408889634073599246810018921L);
    constexpr A largest = (std::numeric_limits<A>::max)();
    for (index i = 0; i < states_ * width; ++i) {
      const bool finite = std::isfinite(s.a[i]);
      s.rate[i] = finite ? std::clamp(s.a[i] * log2e, -largest, largest) : s.a[i];
      if (!finite) s.a[i] = A(0);
    }
    load_numbers_of(has_data(in_.skip), k, width, s.skip, [&](index c) { return in_.skip(c); });
    load_numbers_of(has_data(in_.dt_bias), k, width, s.bias,
                    [&](index c) { return in_.dt_bias(c); });
    s.sum_a = channel_sums_ + task * (states_ + 2) * width;
    s.sum_skip = s.sum_a + states_ * width;
    s.sum_bias = s.sum_skip + width;
    std::fill_n(s.sum_a, (states_ + 2) * width, A(0));
    const index block = (k.first - k.group * blocks_.plan.group_size()) / width;
    s.sum_b = b_sums_ + (weighted_ ? block * share() : 0);
    s.sum_c = c_sums_ + (weighted_ ? block * share() : 0);
  }

  /// x, dt' and b of the tokens.
  void load(const channel_block& k, range t, const scratch_type& s) const noexcept {
    load_channels(in_.x, k, t, s.x, row, lanes);
    load_channels(in_.dt, k, t, s.raw, row, lanes);
    load_weights(in_.b, k, t, s.b);
    each_packet(k, [&](index first) {
      const packet bias = simd::load<A>(s.bias + first);
      for (index at = first; at < t.size() * row; at += row) {
        const packet raw = simd::add(simd::load<A>(s.raw + at), bias);
        simd::store(s.raw + at, raw);
        simd::store(s.step + at, in_.softplus ? simd::softplus<A>(raw) : raw);
      }
    });
  }
  void load_weights(const view<const T, 4>& from, const channel_block& k, range t,
                    A* to) const noexcept {
    const T* const first = from.data() + k.batch * from.stride(0) + t.begin * from.stride(1) +
                           k.group * from.stride(2);
    copy_tile(rectangle<const T>{first, from.stride(1), from.stride(3)},
              rectangle<A>{to, states_, 1}, t.size(), states_);
  }

  /// Over the sequences, of a block of channels.
  void sum_channels(index block) const noexcept {
    const channel_block k = blocks_.plan.at(block);
    const auto total = [&](index offset) noexcept {
      A sum = A(0);
      for (index task = block; task < tasks(); task += blocks_.plan.blocks_per_sequence()) {
        sum += channel_sums_[task * (states_ + 2) * width + offset];
      }
      return sum;
    };
    for (index i = 0; i < k.count; ++i) {
      const index channel = k.first + i, at = i / lanes * lanes * states_ + i % lanes;
      for (index n = 0; has_data(to_.a) && n < states_; ++n) {
        to_.a(channel, n) = total(at + n * lanes);
      }
      if (has_data(to_.skip)) to_.skip(channel) = total(states_ * width + i);
      if (has_data(to_.dt_bias)) to_.dt_bias(channel) = total((states_ + 1) * width + i);
    }
  }
  /// Over the blocks of each group.
  void sum_weights(const A* sums, const view<T, 4>& to, index batch, range t) const noexcept {
    if (!has_data(to)) return;
    const index shares = blocks_.plan.blocks_per_group();
    for (index at = t.begin; at < t.end; ++at) {
      for (index g = 0; g < in_.b.extent(2); ++g) {
        for (index n = 0; n < states_; ++n) {
          A total = A(0);
          for (index block = 0; block < shares; ++block) {
            total += sums[block * share() + weight_at(batch, at, g) + n];
          }
          to(batch, at, g, n) = static_cast<T>(total);
        }
      }
    }
  }

  const selective_scan_backward_inputs<T>& in_;
  const selective_scan_gradients<T>& to_;
  const gradient_blocks& blocks_;
  index states_, longest_, chunk_;
  bool weighted_;
  A *channel_sums_ = nullptr, *b_sums_ = nullptr, *c_sums_ = nullptr;
};

}  // namespace heed::inline HEED_TARGET::detail
