// SPDX-License-Identifier: MIT
// What the gradient of a chunk of tokens works on: the chunk's rows and decays, the weights of its
// pairs, and the state after it. The arithmetic of the gradient is in chunk_gradient.hpp.
#pragma once

#include <algorithm>
#include <array>

#include "heed/core/target.hpp"
#include "heed/core/workspace.hpp"
#include "heed/linear/matrix_state/backward/chunk_products.hpp"
#include "heed/linear/matrix_state/backward/gradient_call.hpp"

namespace heed::inline HEED_TARGET::detail {

/// Chunks of so many tokens at most: 16 where decays differ by channel, as in the forward pass.
inline constexpr int channel_chunk = 16;
inline constexpr int token_chunk = 64;

/// A chunk of a task: its tokens, and the row of the first among those of its sequence.
struct chunk_place {
  index batch = 0, head = 0;
  range tokens;
  index row = 0;
};

template <class A>
class gradient_chunks {
 public:
  explicit gradient_chunks(const gradient_call<A>& call)
      : in_(call),
        by_channel_(call.gate.present() && call.gate.channels() != 1),
        delta_(call.beta.present()),
        low_(call.a.present()),
        longest_(call.longest()),
        step_(std::clamp<index>(call.chunk, 1, by_channel_ ? channel_chunk : token_chunk)),
        keep_(round_up(std::clamp(call.chunk, step_, (std::max)(longest_, step_)), step_)),
        rows_(padded(step_)),
        d_(padded(call.key_channels())),
        c_(padded(call.value_channels())) {}

  struct scratch_type {
    matrix_rows<A> q, k, a, x, kt, xt;  // of the tokens; kt, xt: as columns
    matrix_rows<A> w, b, decay;         // of pairs; decay: of the channels, where they differ
    matrix_rows<A> dq, dk, dx;
    matrix_rows<A> past, carry, rect;  // gates: S to queries, keys to H, pairs; rect of tokens
    A *step, *beta, *prefix_number, *suffix_number, *column, *whole, *ones, *through, *parts;
    row_decays<A> prefix, suffix;        // P_i and P_Cj
    matrix_rows<A> left, right;          // products left_i right_i' that H is to receive
    index waiting;                       // so many
    matrix_rows<A> state, back;          // S, H
    matrix_rows<A> turned, back_turned;  // and their transposes
    matrix_rows<A> state_low, back_low;  // what roundings have taken from S and H
    A* kept;                             // S every keep_ tokens
    A* inner;                            // and S' every step_ tokens of one of these
    matrix_rows<A> solved, met;  // of all tokens: what the triangular system gave, its matrix
    matrix_rows<A> r, m, e;      // a chunk's rows of solved and met, and some of right
  };

  [[nodiscard]] index tasks() const noexcept { return in_.tasks(); }

  [[nodiscard]] scratch_type allocate(arena& c) const noexcept {
    const auto take = [&c](index rows, index columns) {
      return matrix_rows<A>{c.allocate<A>(rows, columns), columns};
    };
    scratch_type s{};
    // The low rank's second pair follows the first at once.
    const index pairs = low_ ? 2 : 1;
    for (matrix_rows<A>* x : {&s.q, &s.a, &s.dq, &s.dk, &s.past, &s.carry}) *x = take(rows_, d_);
    s.k = take(pairs * rows_, d_);
    s.x = take(pairs * rows_, c_);
    s.dx = take(rows_, c_);
    s.kt = take(d_, rows_);
    s.xt = take(c_, rows_);
    for (matrix_rows<A>* x : {&s.w, &s.b}) *x = take(rows_, rows_);
    s.decay = take(rows_, by_channel_ ? d_ : rows_);
    s.rect = take(rows_, by_channel_ ? d_ : simd::lanes<A>);
    for (A** x : {&s.step, &s.beta, &s.prefix_number, &s.suffix_number, &s.column}) {
      *x = c.allocate<A>(rows_);
    }
    for (A** x : {&s.whole, &s.ones, &s.through}) *x = c.allocate<A>(d_);
    s.parts = c.allocate<A>(by_channel_ ? pair_numbers<A>(step_) : 0);
    s.prefix = {by_channel_, s.prefix_number, take(by_channel_ ? rows_ : 0, d_)};
    s.suffix = {by_channel_, s.suffix_number, take(by_channel_ ? rows_ : 0, d_)};
    s.left = take(token_chunk, d_);
    s.right = take(token_chunk, c_);
    s.state = take(d_, c_);
    s.back = take(d_, c_);
    s.back_turned = take(c_, d_);
    // As in the forward pass, where a sequence is long enough to lose digits.
    if (longest_ > 16 * step_) {
      s.state_low = take(d_, c_);
      s.back_low = take(d_, c_);
    }
    s.kept = c.allocate<A>(ceil_div(longest_, keep_), d_, c_);
    s.inner = c.allocate<A>(keep_ / step_, d_, c_);
    const index tokens = delta_ || low_ ? round_up(longest_, rows_) : 0;
    s.solved = take(tokens, c_);
    s.met = take(tokens, rows_);
    return s;
  }

 protected:
  [[nodiscard]] static constexpr index padded(index n) noexcept {
    return round_up((std::max)(n, index{1}), simd::lanes<A>);
  }
  [[nodiscard]] static matrix_rows<const A> in(matrix_rows<A> x) noexcept {
    return {x.data, x.stride};
  }
  /// No roundings so far.
  void clear_low(matrix_rows<A> low) const noexcept {
    if (low.data != nullptr) std::fill_n(low.data, d_ * c_, A(0));
  }
  void load_state(const view<const A, 4>& from, index sequence, index h, matrix_rows<A> to,
                  matrix_rows<A> low) const noexcept {
    clear_low(low);
    std::fill_n(to.data, d_ * c_, A(0));
    if (!has_data(from)) return;
    for (index f = 0; f < from.extent(2); ++f) {
      for (index c = 0; c < from.extent(3); ++c) to[f][c] = from(sequence, h, f, c);
    }
  }
  void store_state(index sequence, index h, matrix_rows<A> from) const noexcept {
    const view<A, 4>& to = in_.d_initial_state;
    if (!has_data(to)) return;
    for (index f = 0; f < to.extent(2); ++f) {
      for (index c = 0; c < to.extent(3); ++c) to(sequence, h, f, c) = from[f][c];
    }
  }
  /// Rows of head h of x.
  static void load(const token_input<A>& x, const chunk_place& at, index h,
                   matrix_rows<A> to) noexcept {
    x.load(at.batch, h, x.heads(), at.tokens, to);
  }
  static void store(const token_output<A>& x, const chunk_place& at, index h,
                    matrix_rows<A> from) noexcept {
    if (x.copy != nullptr) x.store(at.batch, h, at.tokens, in(from));
  }

  /// Calls advance(place, again, write) for the chunks of a task and reverse(place) for them, the last
  /// one first. advance leaves the state after a chunk in s.state where `write`; it is called for all
  /// chunks once, and for some `again`. reverse finds the transpose of the state before in s.turned.
  template <class Advance, class Reverse>
  void run_chunks(index task, scratch_type& s, const Advance& advance,
                  const Reverse& reverse) const noexcept {
    const index sequence = task / in_.heads(), h = task % in_.heads(), size = d_ * c_;
    const range all = in_.tokens_of(sequence);
    const index tokens = all.size();
    const index last = (ceil_div((std::max)(tokens, index{1}), keep_) - 1) * keep_;
    const auto place = [&](index row) {
      return chunk_place{in_.batch_of(sequence),
                         h,
                         {all.begin + row, all.begin + (std::min)(row + step_, tokens)},
                         row};
    };
    const auto inner = [&](index row) { return matrix_rows<A>{s.inner + row / step_ * size, d_}; };
    if (tokens <= 16 * step_) s.state_low = s.back_low = {};
    std::fill_n(s.ones, d_, A(1));
    load_state(in_.initial_state, sequence, h, s.state, s.state_low);
    for (index row = 0; row < tokens; row += step_) {
      if (row % keep_ == 0) std::copy_n(s.state.data, size, s.kept + row / keep_ * size);
      if (row >= last) transpose_rows(in(s.state), d_, c_, inner(row - last));
      advance(place(row), false, row + step_ < tokens);
    }
    load_state(in_.d_final_state, sequence, h, s.back, s.back_low);
    for (index first = last; first >= 0; first -= keep_) {
      const index end = (std::min)(tokens, first + keep_);
      if (first < last) {
        std::copy_n(s.kept + first / keep_ * size, size, s.state.data);
        clear_low(s.state_low);
        for (index row = first; row < end; row += step_) {
          transpose_rows(in(s.state), d_, c_, inner(row - first));
          if (row + step_ < end) advance(place(row), true, true);
        }
      }
      for (index row = first + (ceil_div(end - first, step_) - 1) * step_; row >= first;
           row -= step_) {
        s.turned = inner(row - first);
        reverse(place(row));
      }
    }
    store_state(sequence, h, s.back);
  }

  /// The rows of `solved` and `met` that are the chunk's.
  void find_solved(const chunk_place& at, scratch_type& s) const noexcept {
    s.r = {s.solved[at.row], c_};
    s.m = {s.met[at.row], rows_};
  }
  /// Keys and decays.
  void load_keys(const chunk_place& at, scratch_type& s) const noexcept {
    load(in_.k, at, at.head, s.k);
    load_decays(at, s);
  }
  /// What is written: values, or those of the delta rule as once solved.
  void load_written(const chunk_place& at, scratch_type& s) const noexcept {
    if (!delta_) return load(in_.v, at, at.head, s.x);
    find_solved(at, s);
    in_.beta.load_numbers(at.batch, at.head, in_.beta.heads(), at.tokens, s.beta);
    for (index i = 0; i < at.tokens.size(); ++i) {
      std::copy_n(s.r[i], c_, s.x[i]);
      multiply_by(s.x[i], s.beta[i], c_);
    }
  }
  /// The delta rule's a_ij, r and x.
  void solve_written(const chunk_place& at, scratch_type& s) const noexcept {
    const index n = at.tokens.size();
    find_solved(at, s);
    load(in_.v, at, at.head, s.r);
    in_.beta.load_numbers(at.batch, at.head, in_.beta.heads(), at.tokens, s.beta);
    if (!by_channel_) transpose_rows(in(s.k), round_up(n, simd::lanes<A>), d_, s.kt);
    pair_weights(in(s.k), A(1), true, n, s.m, s);
    for (index i = 0; i < n; ++i) std::copy_n(s.k[i], d_, s.a[i]);
    s.prefix.apply(s.a, n, d_);
    prefetch_stream none;
    solve_rows<A, false>(in(s.a), in(s.state), in_.key_channels(), in(s.m), {}, {}, n, c_, s.x,
                         none, [&](index i, index c, const simd::packet<A>& u) HEED_INLINE_LAMBDA {
                           const auto rest = simd::sub(simd::load<A>(s.r[i] + c), u);
                           simd::store(s.r[i] + c, rest);
                           return simd::mul(simd::broadcast(s.beta[i]), rest);
                         });
  }
  void load_decays(const chunk_place& at, scratch_type& s) const noexcept {
    const index n = at.tokens.size();
    if (by_channel_) {
      load(in_.gate, at, at.head, s.decay);
      for (index i = 0; i < n; ++i) exponentials(s.decay[i], d_, s.decay[i]);
      const matrix_rows<A> p = s.prefix.channel, q = s.suffix.channel;
      for (index i = 0; i < n; ++i) {
        std::copy_n(s.decay[i], d_, p[i]);
        if (i > 0) multiply_by(p[i], static_cast<const A*>(p[i - 1]), d_);
      }
      std::fill_n(q[n - 1], d_, A(1));
      for (index i = n - 1; i-- > 0;) {
        std::copy_n(q[i + 1], d_, q[i]);
        multiply_by(q[i], static_cast<const A*>(s.decay[i + 1]), d_);
      }
      std::copy_n(p[n - 1], d_, s.whole);
      return;
    }
    std::fill_n(s.step, rows_, A(0));
    if (in_.gate.present()) {
      in_.gate.load_numbers(at.batch, at.head, in_.gate.heads(), at.tokens, s.step);
    }
    exponentials(s.step, n, s.step);
    cumulative_decays<A>(s.step, n, s.decay);
    A product = A(1);
    for (index i = 0; i < n; ++i) {
      product *= s.step[i];
      s.prefix_number[i] = product;
      s.suffix_number[i] = s.decay[n - 1][i];
    }
    std::fill_n(s.whole, d_, product);
  }
  /// w_ij = scale x_i.(P_ij k_j) for j <= i, j < i where `strict`; 0 elsewhere.
  void pair_weights(matrix_rows<const A> x, A scale, bool strict, index n, matrix_rows<A> w,
                    scratch_type& s) const noexcept {
    prefetch_stream none;
    if (by_channel_) {
      const std::array<meeting_rows<A>, 1> meet{meeting_rows<A>{x, w}};
      decayed_pairs<A, false, 1>(meet, in(s.k), in(s.decay), d_, n, s.dq, s.parts);
    } else {
      causal_weights<A>(x, in(s.kt), in_.key_channels(), n, w, none);
    }
    scale_pairs(w, scale, strict, n, s);
  }
  /// Pairs j <= i times `scale` and, of one number a token, P_ij; 0 elsewhere.
  void scale_pairs(matrix_rows<A> w, A scale, bool strict, index n,
                   const scratch_type& s) const noexcept {
    for (index i = 0; i < n; ++i) {
      const index end = strict ? i : i + 1;
      multiply_by(w[i], scale, end);
      if (!by_channel_) multiply_by(w[i], static_cast<const A*>(s.decay[i]), end);
      std::fill_n(w[i] + end, w.stride - end, A(0));
    }
  }

  /// The state after a chunk from that before it, as run_chunks calls it.
  void advance(const chunk_place& at, bool again, bool write, scratch_type& s) const noexcept {
    if (!write && !delta_) return;
    load_keys(at, s);
    if (delta_ && !again) {
      solve_written(at, s);
    } else {
      load_written(at, s);
    }
    if (!write) return;
    s.suffix.apply(s.k, at.tokens.size(), d_);
    write_state(s.k, s.x, s.whole, at.tokens.size(), s.state, s.state_low);
  }
  void write_state(matrix_rows<A> k, matrix_rows<A> x, const A* decay, index n,
                   matrix_rows<A> state, matrix_rows<A> low) const noexcept {
    prefetch_stream none;
    decay_and_write<A>(in(k), in(x), decay, n, in_.key_channels(), in_.value_channels(), state, low,
                       none);
  }

  // A pass over H costs as much as products of some tokens: those of several streams wait for one.

  /// H is to be decayed once.
  static void begin_writes(scratch_type& s) noexcept { s.waiting = 0; }
  /// s.e and the rows returned are `n` more that H is to receive products of.
  [[nodiscard]] matrix_rows<A> more_writes(index n, const A*& decay,
                                           scratch_type& s) const noexcept {
    if (s.waiting + n > token_chunk) write_waiting(decay, s);
    const index at = s.waiting;
    s.waiting += n;
    s.e = {s.right[at], c_};
    return {s.left[at], d_};
  }
  /// `decay` is that of H, and then ones.
  void write_waiting(const A*& decay, scratch_type& s) const noexcept {
    if (s.waiting == 0 && decay == s.ones) return;
    write_state(s.left, s.right, decay, s.waiting, s.back, s.back_low);
    decay = s.ones;
    s.waiting = 0;
  }

  const gradient_call<A>& in_;
  bool by_channel_, delta_, low_;
  index longest_;       // tokens of a sequence
  index step_, keep_;   // tokens of a chunk, and from one kept state to the next
  index rows_, d_, c_;  // step_, Dk and Dv in whole packets
};

}  // namespace heed::inline HEED_TARGET::detail
