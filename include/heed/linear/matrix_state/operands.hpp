// SPDX-License-Identifier: MIT
// What a recurrence with a matrix state reads and writes: its inputs and output, its state, and the
// scratch of a worker. The arithmetic on them is in forward.hpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/core/workspace.hpp"
#include "heed/kernel/chunk/decayed_gemm.hpp"
#include "heed/linear/matrix_state/token_input.hpp"
#include "heed/tensor/view.hpp"

namespace heed::inline HEED_TARGET::detail {

enum class gate_kind { none, per_token, per_channel };
enum class write_kind { outer, delta, low_rank };

template <class A>
struct matrix_tokens {
  token_input<A> q, k, v;
  token_input<A> gate;         // natural logs
  token_input<A> gate_factor;  // of a head, times its gates; may be absent, as all below
  token_input<A> value_scale;  // beta of the delta rule, dt of SSD
  token_input<A> a, b;         // low rank
  token_input<A> bonus;        // u, read before the write
  token_input<A> skip;         // D of a head: out += D v
  token_output<A> out;
  view<A, 4> state{};  // null data where the caller keeps none
  std::span<const index> bounds{};
  A scale = A(1);
  index chunk_tokens = 1;
  gate_kind gates = gate_kind::none;
  write_kind writes = write_kind::outer;
  bool read_before = false;
  bool keep_pairs = true;  ///< scratch has a number of each pair of tokens of a chunk

  struct scratch_type {
    matrix_rows<A> sum;  // S
    matrix_rows<A> low;  // what the roundings of S have lost; null data where nothing is kept
    bool low_is_zero;    // true where it is known to be
    matrix_rows<A> k, kt, a, b, bt, q, v, x, out, raw;  // kt, bt: keys as columns
    matrix_rows<A> written_k, written_b;                // those decayed to the chunk's end
    matrix_rows<A> w, w2, m, n;  // weights of pairs: q k', q b', and those of x
    matrix_rows<A> decay;        // of pairs, or of channels
    A *step, *prefix, *beta, *bonus, *parts;
    A* logs;                      // sums of the chunk's gates: of each channel, or one number
    matrix_rows<const A> keys;    // k, where it lies or copied
    matrix_rows<const A> values;  // v, where it lies or scaled
  };

  [[nodiscard]] index state_heads() const noexcept { return (std::max)(k.heads(), v.heads()); }
  [[nodiscard]] index sequences() const noexcept {
    return bounds.empty() ? q.extents[0] : static_cast<index>(bounds.size()) - 1;
  }
  [[nodiscard]] index heads() const noexcept { return sequences() * state_heads(); }
  [[nodiscard]] index chunk_size() const noexcept { return chunk_tokens; }
  /// The tokens of a head's sequence.
  [[nodiscard]] range span_of(index head) const noexcept {
    if (bounds.empty()) return {0, q.extents[2]};
    const auto at = static_cast<std::size_t>(head / state_heads());
    return {bounds[at], bounds[at + 1]};
  }

  [[nodiscard]] scratch_type allocate(arena& c) const noexcept {
    const index rows = padded(chunk_tokens);
    const index d = padded(k.channels());
    const index members = gates == gate_kind::per_channel ? std::max<index>(group(), 1) : 1;
    const bool low = writes == write_kind::low_rank;
    const index pairs = keep_pairs ? rows : 0;
    const auto take = [&c](index r, index columns) {
      return matrix_rows<A>{c.allocate<A>(r * padded(columns)), padded(columns)};
    };
    scratch_type s{};
    s.sum = take(d, v.channels());
    if (keep_pairs) s.low = take(d, v.channels());
    s.k = take(rows, d);
    s.a = take(rows, d);
    if (low) s.b = take(rows, d);
    if (gates == gate_kind::per_channel) {
      s.written_k = take(rows, d);
      if (low) s.written_b = take(rows, d);
    } else {  // decayed where they lie
      s.kt = take(d, rows);
      if (low) s.bt = take(d, rows);
      s.written_k = s.k;
      s.written_b = s.b;
    }
    s.q = take(members * rows, d);
    s.v = take(rows, v.channels());
    s.x = take(rows, v.channels());
    s.out = take(rows, v.channels());
    s.raw = take(rows, v.channels());
    s.w = take(members * pairs, pairs);
    s.w2 = take(low ? members * pairs : 0, pairs);
    s.m = take(pairs, pairs);
    s.n = take(low ? pairs : 0, pairs);
    // Of one number a token: a chunk's running products, or a step's number once a key channel.
    s.decay = take(rows, gates == gate_kind::per_channel ? d : (std::max)(pairs, d));
    s.step = c.allocate<A>(rows);
    s.prefix = c.allocate<A>(d);
    s.logs = c.allocate<A>(d);
    s.beta = c.allocate<A>(rows);
    s.bonus = c.allocate<A>(d);
    const index met = writes == write_kind::outer ? 1 : 2;
    const bool decayed = gates == gate_kind::per_channel && keep_pairs;
    s.parts = c.allocate<A>(decayed ? met * pair_numbers<A>(chunk_tokens) : 0);
    return s;
  }

  void load_state(index head, scratch_type& s) const noexcept {
    // Up to 16 chunks need no low parts, nor 64 tokens.
    if (span_of(head).size() <= std::max<index>(64, 16 * chunk_tokens)) s.low = {};
    clear(s.sum);
    clear(s.low);
    if (state.data() != nullptr) {
      const auto stored = state_at(head);
      copy_tile(rectangle<const A>{stored.data, stored.row, stored.column},
                rectangle<A>{s.sum.data, s.sum.stride, 1}, k.channels(), v.channels());
    }
    load_bonus(head, s);
  }
  /// Zeros in S or its low parts.
  void clear(matrix_rows<A> x) const noexcept {
    if (x.data == nullptr) return;
    for (index f = 0; f < padded(k.channels()); ++f) std::fill_n(x[f], x.stride, A(0));
  }
  void load_bonus(index head, scratch_type& s) const noexcept {
    if (bonus.present()) bonus.load(0, head_of(head), state_heads(), {0, 1}, {s.bonus, 0});
  }
  void store_state(index head, scratch_type& s) const noexcept {
    if (state.data() == nullptr) return;
    copy_tile(rectangle<const A>{s.sum.data, s.sum.stride, 1}, state_at(head), k.channels(),
              v.channels());
  }

  [[nodiscard]] index group() const noexcept {
    return state_heads() == 0 ? 0 : out.extents[1] / state_heads();
  }
  /// Of the inputs and the output: the sequences of a ragged batch all lie in the first.
  [[nodiscard]] index batch_of(index head) const noexcept {
    return bounds.empty() ? head / state_heads() : 0;
  }
  [[nodiscard]] index head_of(index head) const noexcept { return head % state_heads(); }
  [[nodiscard]] rectangle<A> state_at(index head) const noexcept {
    return {state.data() + head / state_heads() * state.stride(0) + head_of(head) * state.stride(1),
            state.stride(2), state.stride(3)};
  }
  [[nodiscard]] A number(const token_input<A>& x, index head) const noexcept {
    A value{};
    x.load_numbers(0, head_of(head), state_heads(), {0, 1}, &value);
    return value;
  }
  void load_query(index head, index g, range t, matrix_rows<A> to) const noexcept {
    q.load(batch_of(head), head_of(head) * group() + g, out.extents[1], t, to);
  }

  /// Keys, values, gates and whatever else of the tokens.
  void load(index head, range t, scratch_type& s) const noexcept {
    const index bt = batch_of(head), h = head_of(head), of = state_heads(), n = t.size();
    if (gates == gate_kind::per_channel) {
      s.keys = k.rows(bt, h, of, t, s.k);
    } else {
      k.load(bt, h, of, t, s.k);
      s.keys = in(s.k);
    }
    if (a.present()) a.load(bt, h, of, t, s.a);
    if (b.present()) b.load(bt, h, of, t, s.b);
    s.values = v.rows(bt, h, of, t, s.v);
    if (value_scale.present()) {
      value_scale.load_numbers(bt, h, of, t, s.beta);
      if (writes == write_kind::outer) {
        if (v.packets_fit) v.load(bt, h, of, t, s.v);
        for (index i = 0; i < n; ++i) multiply_by(s.v[i], s.beta[i], padded(v.channels()));
        s.values = in(s.v);
      }
    } else {
      std::fill_n(s.beta, n, A(1));
    }
    const A factor = gate_factor.present() ? number(gate_factor, head) : A(1);
    if (gates == gate_kind::per_token) {
      std::fill_n(s.step, padded(n), A(0));
      gate.load_numbers(bt, h, of, t, s.step);
      if (gate_factor.present()) multiply_by(s.step, factor, padded(n));
      s.logs[0] = A(0);
      for (index i = 0; s.low.data != nullptr && i < n; ++i) s.logs[0] += s.step[i];
      exponentials(s.step, n, s.step);
    } else if (gates == gate_kind::per_channel) {
      const auto logs = gate.rows(bt, h, of, t, s.decay);
      if (s.low.data != nullptr) {
        for (index f = 0; f < padded(k.channels()); f += lanes) {
          auto sum = simd::zero<A>();
          for (index i = 0; i < n; ++i) sum = simd::add(sum, simd::load<A>(logs[i] + f));
          simd::store(s.logs + f, sum);
        }
      }
      for (index i = 0; i < n; ++i) exponentials(logs[i], k.channels(), s.decay[i]);
    }
  }

  /// What rounding has taken from `decay`, which is exp(log) of a gate or of a chunk's; 0 where the
  /// past is forgotten sooner than that adds up, and in double.
  [[nodiscard]] static A lost_of_decay(A log, A decay) noexcept {
    if (std::is_same_v<A, double> || !(std::abs(log) < slow_log)) return A(0);
    // exp(log) - 1
    const A less =
        log * (A(1) + log / A(2) * (A(1) + log / A(3) * (A(1) + log / A(4) * (A(1) + log / A(5)))));
    return less - (decay - A(1));
  }
  [[nodiscard]] A log_of(index channel, const scratch_type& s) const noexcept {
    return gates == gate_kind::per_channel ? s.logs[channel]
           : gates == gate_kind::per_token ? s.logs[0]
                                           : A(0);
  }
  /// by x, and 0 where x is infinite: an infinite state stays one.
  [[nodiscard]] static simd::packet<A> finite_multiple(A by, const A* x) noexcept {
    const auto value = simd::load<A>(x);
    const auto largest = simd::broadcast((std::numeric_limits<A>::max)());
    return simd::mul(simd::broadcast(by), simd::both(simd::less(simd::abs(value), largest), value));
  }

  /// The low parts that a chunk's writes go to: none where every row forgets soon enough and has no
  /// low part from before.
  [[nodiscard]] matrix_rows<A> low_parts(scratch_type& s) const noexcept {
    if (s.low.data == nullptr) return {};
    bool slow = writes == write_kind::low_rank;  // writes twice, and the second time nothing decays
    for (index r = 0; r < k.channels(); ++r) slow = slow || s.prefix[r] >= adds_up_from<A>;
    if (slow) keep_slow_decays(s);
    const bool none = !slow && s.low_is_zero;
    s.low_is_zero = !slow;
    return none ? matrix_rows<A>{} : s.low;
  }
  /// Low parts take what rounding the chunk's decays will lose. A gate of -1e-6 is 17 units of the
  /// last place of its exponential, which rounds by up to half a unit: 3 % of it, each time.
  void keep_slow_decays(const scratch_type& s) const noexcept {
    for (index r = 0; r < k.channels(); ++r) {
      const A lost = lost_of_decay(log_of(r, s), s.prefix[r]);
      if (lost == A(0)) continue;
      for (index c = 0; c < padded(v.channels()); c += lanes) {
        simd::store(s.low[r] + c,
                    simd::add(simd::load<A>(s.low[r] + c), finite_multiple(lost, s.sum[r] + c)));
      }
    }
  }

  /// The output's last additions, and its store where the rows are scratch.
  void finish(index head, index h, range t, matrix_rows<A> o, scratch_type& s) const noexcept {
    if (skip.present()) {
      const A factor = number(skip, head);
      const auto raw = v.rows(batch_of(head), head_of(head), state_heads(), t, s.raw);
      for (index i = 0; i < t.size(); ++i) add_multiple(factor, raw[i], o[i], padded(v.channels()));
    }
    if (!out.packets_fit) out.store(batch_of(head), h, t, in(o));
  }

  /// y += by x, whole packets.
  static void add_multiple(A by, const A* x, A* y, index count) noexcept {
    const auto factor = simd::broadcast(by);
    for (index c = 0; c < count; c += lanes) {
      simd::store(y + c, simd::fmadd(factor, simd::load<A>(x + c), simd::load<A>(y + c)));
    }
  }

 protected:
  /// Gates of a chunk that add up to less are slow: rounded decays would drift.
  static constexpr A slow_log = A(1) / A(32);
  static constexpr index lanes = simd::lanes<A>;
  [[nodiscard]] static constexpr index padded(index n) noexcept { return round_up(n, lanes); }
  [[nodiscard]] static matrix_rows<const A> in(matrix_rows<A> x) noexcept {
    return {x.data, x.stride};
  }
};

}  // namespace heed::inline HEED_TARGET::detail
