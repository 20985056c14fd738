// SPDX-License-Identifier: MIT
// Kernelised attention as a recurrence: S += phi(k) v', z += phi(k); the output reads phi(q)'S.
//
// A chunk of C tokens, S and z being those before it, is four matrix products:
//
//   W = tril(phi(Q) phi(K)')                      weights of the chunk's own pairs
//   O = diag(factor) (phi(Q) S + W V)             factor_i = 1 / (phi(q_i)'z + sum_j W_ij + eps)
//   S += phi(K)'V,  z += phi(K)'1
//
// In a call of more than 16 chunks S and z carry low parts: each chunk is summed from zero and added
// to the past with a compensated sum, so that no digits go however many the tokens. Several query
// heads read one state: it is written once for all of them.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/core/workspace.hpp"
#include "heed/kernel/chunk/gemm.hpp"
#include "heed/linear/kernelised/feature_map.hpp"
#include "heed/linear/kernelised/state.hpp"
#include "heed/linear/kernelised/state_rows.hpp"
#include "heed/linear/recurrence.hpp"
#include "heed/tensor/view.hpp"

namespace heed::inline HEED_TARGET::detail {

template <class A, class TQ, class TK, class TV, class TO, class Map>
struct kernelised_recurrence {
  view<const TQ, 4> q;
  view<const TK, 4> k;
  view<const TV, 4> v;
  view<TO, 4> out;
  linear_state_view<A> state;  // null data where the caller keeps none
  const Map& map;
  index features;
  index chunk_tokens;
  bool normalise;
  A eps;
  A scale;
  bool in_place = true;        // a state whose layout allows it is worked on where it lies
  linear_state_view<A> low{};  // of a state that goes through several calls; null data: none

  struct scratch_type {
    matrix_rows<A> sum;  // S of the head at work: here, or in the caller's memory
    A* normaliser = nullptr;
    matrix_rows<A> own_sum;
    A* own_normaliser = nullptr;
    matrix_rows<A> low;  // what the roundings of S have lost; null data where nothing is kept
    A* low_normaliser = nullptr;
    matrix_rows<A> q, k, kt, w, v, out;
    A* factor = nullptr;
    A* channels = nullptr;
  };

  [[nodiscard]] index heads() const noexcept { return k.extent(0) * k.extent(1); }
  [[nodiscard]] index tokens() const noexcept { return q.extent(2); }
  [[nodiscard]] index keys() const noexcept { return k.extent(2); }
  [[nodiscard]] index chunk_size() const noexcept { return chunk_tokens; }

  [[nodiscard]] scratch_type allocate(arena& c) const noexcept {
    const index rows = padded(chunk_tokens);
    const auto take = [&c](index r, index columns) {
      return matrix_rows<A>{c.allocate<A>(r * padded(columns)), padded(columns)};
    };
    scratch_type s;
    s.own_sum = take(features, value_dim());
    s.own_normaliser = c.allocate<A>(padded(features));
    s.low = take(features, value_dim());
    s.low_normaliser = c.allocate<A>(padded(features));
    if (!compensated()) s.low = {};
    s.q = take(rows, features);
    s.k = take(rows, features);
    s.kt = take(padded(features), rows);
    s.w = take(rows, rows);
    s.v = take(rows, value_dim());
    s.out = take(rows, value_dim());
    s.factor = c.allocate<A>(rows);
    s.channels = c.allocate<A>(padded(q.extent(3)));
    return s;
  }

  void load_state(index head, scratch_type& s) const noexcept {
    s.sum = sum_in_place() ? sum_at(head) : s.own_sum;
    s.normaliser = normaliser_in_place() ? normaliser_at(head) : s.own_normaliser;
    const index b = batch_of(head), h = head_of(head);
    if (!sum_in_place()) load_sum(state, b, h, s.sum, features, value_dim());
    if (!normaliser_in_place()) load_normaliser(state, b, h, s.normaliser, features);
    if (s.low.data == nullptr) return;
    load_sum(low, b, h, s.low, features, value_dim());
    load_normaliser(low, b, h, s.low_normaliser, features);
  }

  void store_state(index head, scratch_type& s) const noexcept {
    const index b = batch_of(head), h = head_of(head);
    if (!sum_in_place()) store_sum(s.sum, state, b, h, features, value_dim());
    if (!normaliser_in_place()) store_normaliser(s.normaliser, state, b, h, features);
    if (s.low.data == nullptr) return;
    store_sum(s.low, low, b, h, features, value_dim());
    store_normaliser(s.low_normaliser, low, b, h, features);
  }

  /// Low parts of 0, of a state that is a rounded number.
  void clear_low(scratch_type& s) const noexcept {
    if (s.low.data == nullptr) return;
    for (index f = 0; f < features; ++f) std::fill_n(s.low[f], s.low.stride, A(0));
    std::fill_n(s.low_normaliser, padded(features), A(0));
  }

  /// One token: written, then read.
  void step(index head, index token, scratch_type& s) const noexcept {
    update_state(head, {token, token + 1}, s);
    compute_output(head, {token, token + 1}, s);
  }

  /// A chunk: its outputs from the state before it and from its own pairs, then its write.
  void chunk(index head, range t, scratch_type& s) const noexcept {
    const index n = t.size();
    const range next{t.end, (std::min)(t.end + n, tokens())};
    load_features(k, batch_of(head), head_of(head), t, s.k, s);
    transpose_keys(n, s);
    const matrix_rows<const A> values = load_values(head, t, s);
    prefetch_stream stream;
    for (index g = 0; g < group(); ++g) {
      const index h = head_of(head) * group() + g;
      stream = prefetch_stream();
      if (g + 1 < group()) {
        prefetch_queries(stream, head, h + 1, t);
      } else {
        prefetch_keys(stream, head, next);
        prefetch_queries(stream, head, head_of(head) * group(), next);
      }
      load_features(q, batch_of(head), h, t, s.q, s);
      causal_weights<A>(in(s.q), in(s.kt), features, n, s.w, stream);
      factors<true>(n, s);
      output_into(head, h, t, s, [&](matrix_rows<A> o) {
        output_rows<A, true>(in(s.q), in(s.sum), features, in(s.w), values, s.factor, n,
                             value_dim(), o, stream);
      });
    }
    write(n, values, s, stream);
  }

  void update_state(index head, range t, scratch_type& s) const noexcept {
    prefetch_stream stream;
    prefetch_keys(stream, head, {t.end, (std::min)(t.end + t.size(), keys())});
    load_features(k, batch_of(head), head_of(head), t, s.k, s);
    write(t.size(), load_values(head, t, s), s, stream);
  }

  void compute_output(index head, range t, scratch_type& s) const noexcept {
    for (index g = 0; g < group(); ++g) {
      const index h = head_of(head) * group() + g;
      prefetch_stream stream;
      if (g + 1 < group()) {
        prefetch_queries(stream, head, h + 1, t);
      } else {
        prefetch_queries(stream, head, head_of(head) * group(),
                         {t.end, (std::min)(t.end + t.size(), tokens())});
      }
      load_features(q, batch_of(head), h, t, s.q, s);
      factors<false>(t.size(), s);
      output_into(head, h, t, s, [&](matrix_rows<A> o) {
        output_rows<A, false>(in(s.q), in(s.sum), features, {}, {}, s.factor, t.size(), value_dim(),
                              o, stream);
      });
    }
  }

 private:
  static constexpr index lanes = simd::lanes<A>;

  [[nodiscard]] static constexpr index padded(index n) noexcept { return round_up(n, lanes); }
  [[nodiscard]] static matrix_rows<const A> in(matrix_rows<A> m) noexcept {
    return {m.data, m.stride};
  }
  [[nodiscard]] index value_dim() const noexcept { return v.extent(3); }
  [[nodiscard]] index group() const noexcept { return q.extent(1) / k.extent(1); }
  [[nodiscard]] index batch_of(index head) const noexcept { return head / k.extent(1); }
  [[nodiscard]] index head_of(index head) const noexcept { return head % k.extent(1); }

  [[nodiscard]] bool sum_in_place() const noexcept {
    return in_place && state.sum.data() != nullptr &&
           packets_fit<A, A>(state.sum.stride(2), state.sum.stride(3), value_dim());
  }
  [[nodiscard]] bool normaliser_in_place() const noexcept {
    return in_place && state.normaliser.data() != nullptr && state.normaliser.stride(2) == 1 &&
           features % lanes == 0;
  }
  /// Up to 16 chunks need no low parts, nor 64 tokens.
  [[nodiscard]] bool compensated() const noexcept {
    return keys() > std::max<index>(64, 16 * chunk_tokens) || low.sum.data() != nullptr;
  }
  [[nodiscard]] matrix_rows<A> sum_at(index head) const noexcept {
    return {head_rows(state.sum, batch_of(head), head_of(head), 0).data, state.sum.stride(2)};
  }
  [[nodiscard]] A* normaliser_at(index head) const noexcept {
    return head_normaliser(state, batch_of(head), head_of(head));
  }

  template <class T>
  static void prefetch_rows(prefetch_stream& stream, const view<T, 4>& x, index b, index h,
                            range t) noexcept {
    if (t.empty() || x.stride(3) != 1) return;
    constexpr auto size = static_cast<index>(sizeof(T));
    stream.add(head_rows(x, b, h, t.begin).data, x.stride(2) * size, x.extent(3) * size, t.size());
  }
  void prefetch_keys(prefetch_stream& stream, index head, range t) const noexcept {
    prefetch_rows(stream, k, batch_of(head), head_of(head), t);
    prefetch_rows(stream, v, batch_of(head), head_of(head), t);
  }
  void prefetch_queries(prefetch_stream& stream, index head, index h, range t) const noexcept {
    prefetch_rows(stream, q, batch_of(head), h, t);
    prefetch_rows(stream, out, batch_of(head), h, t);
  }

  /// Features of the tokens of one head, the padding of each row zero.
  template <class T>
  void load_features(const view<const T, 4>& x, index b, index h, range t, matrix_rows<A> to,
                     scratch_type& s) const noexcept {
    const index d = x.extent(3);
    const auto from = head_rows(x, b, h, t.begin);
    if constexpr (vector_feature_map<Map, A>) {
      for (index i = 0; i < t.size(); ++i) {
        copy_tile(rectangle<const T>{from.at(i, 0), from.row, from.column},
                  rectangle<A>{s.channels, d, 1}, 1, d);
        map(std::span<const A>(s.channels, static_cast<std::size_t>(d)),
            std::span<A>(to[i], static_cast<std::size_t>(features)));
      }
    } else {
      if (from.column == 1) {
        map_rows(from, to, t.size(), d);
      } else {
        copy_tile(from, rectangle<A>{to.data, to.stride, 1}, t.size(), d);
        map_rows(rectangle<const A>{to.data, to.stride, 1}, to, t.size(), d);
      }
    }
    for (index i = 0; i < t.size(); ++i) std::fill(to[i] + features, to[i] + to.stride, A(0));
  }

  template <class T>
  HEED_NOINLINE void map_rows(rectangle<const T> from, matrix_rows<A> to, index rows,
                              index channels) const noexcept {
    for (index i = 0; i < rows; ++i) map_row(map, from.at(i, 0), to[i], channels);
  }

  /// kt = phi(K)', with zeros for the tokens that fill the last packet.
  void transpose_keys(index n, scratch_type& s) const noexcept {
    for (index j = n; j < padded(n); ++j) std::fill_n(s.k[j], s.k.stride, A(0));
    for (index j = 0; j < n; j += lanes) {
      for (index f = 0; f < features; f += lanes) {
        simd::transpose(s.k[j] + f, s.k.stride, s.kt[f] + j, s.kt.stride);
      }
    }
  }

  [[nodiscard]] matrix_rows<const A> load_values(index head, range t,
                                                 scratch_type& s) const noexcept {
    const auto from = head_rows(v, batch_of(head), head_of(head), t.begin);
    if constexpr (std::is_same_v<TV, A>) {
      if (packets_fit<A, TV>(from.row, from.column, value_dim())) return {from.data, from.row};
    }
    copy_tile(from, rectangle<A>{s.v.data, s.v.stride, 1}, t.size(), value_dim());
    // The padding is computed with: stale bits there could be slow (denormals), though never seen.
    for (index i = 0; i < t.size(); ++i) std::fill(s.v[i] + value_dim(), s.v[i] + s.v.stride, A(0));
    return in(s.v);
  }

  /// What each row's sum is multiplied by: from q and z and, in a chunk, the weights of its own
  /// pairs.
  template <bool Causal>
  HEED_NOINLINE void factors(index n, scratch_type& s) const noexcept {
    if (!normalise) {
      std::fill_n(s.factor, n, scale);
      return;
    }
    for (index i = 0; i < n; i += lanes) {
      simd::packet<A> total[std::size_t{lanes}];
      for (index r = 0; r < lanes; ++r) {
        total[r] = i + r < n ? normaliser_terms<Causal>(i + r, s) : simd::zero<A>();
      }
      const auto sums = simd::add(simd::sum_each<A>(total), simd::broadcast(eps));
      simd::store(s.factor + i, simd::div(simd::broadcast(A(1)), sums));
    }
  }

  /// A packet whose lanes add up to the normaliser of row i.
  template <bool Causal>
  [[nodiscard]] HEED_INLINE simd::packet<A> normaliser_terms(index i,
                                                             const scratch_type& s) const noexcept {
    simd::packet<A> total = simd::zero<A>();
    for (index f = 0; f < features; f += lanes) {
      total = simd::fmadd(simd::load(s.q[i] + f), simd::load(s.normaliser + f), total);
    }
    if constexpr (Causal) {
      const index count = i + 1;
      index j = 0;
      for (; j + lanes <= count; j += lanes) total = simd::add(total, simd::load(s.w[i] + j));
      if (j < count) {
        const auto inside = simd::less(simd::load(lane_numbers), simd::broadcast(A(count - j)));
        total = simd::add(total, simd::both(inside, simd::load(s.w[i] + j)));
      }
    }
    return total;
  }

  static constexpr auto make_lane_numbers() noexcept {
    std::array<A, std::size_t{lanes}> n{};
    for (std::size_t i = 0; i < n.size(); ++i) n[i] = static_cast<A>(i);
    return n;
  }
  static constexpr std::array<A, std::size_t{lanes}> lane_number_array = make_lane_numbers();
  static constexpr const A* lane_numbers = lane_number_array.data();

  /// f(rows) writes the outputs, to the tensor itself where packets fit it.
  template <class F>
  void output_into(index head, index h, range t, scratch_type& s, F&& f) const noexcept {
    const auto to = head_rows(out, batch_of(head), h, t.begin);
    if constexpr (std::is_same_v<TO, A>) {
      if (to.column == 1 && value_dim() % lanes == 0) return f(matrix_rows<A>{to.data, to.row});
    }
    f(s.out);
    copy_tile(rectangle<const A>{s.out.data, s.out.stride, 1}, to, t.size(), value_dim());
  }

  void write(index n, matrix_rows<const A> values, scratch_type& s,
             prefetch_stream& stream) const noexcept {
    write_rows<A>(in(s.k), values, n, features, value_dim(), s.sum, s.low, stream);
    for (index f = 0; f < features; f += lanes) {
      simd::packet<A> sum = simd::zero<A>();
      for (index j = 0; j < n; ++j) sum = simd::add(sum, simd::load(s.k[j] + f));
      simd::packet<A> total = simd::load(s.normaliser + f);
      if (s.low.data == nullptr) {
        simd::store(s.normaliser + f, simd::add(total, sum));
        continue;
      }
      simd::packet<A> lost = simd::load(s.low_normaliser + f);
      add_compensated<A>(total, lost, sum);
      simd::store(s.normaliser + f, total);
      simd::store(s.low_normaliser + f, lost);
    }
  }
};

}  // namespace heed::inline HEED_TARGET::detail
