// SPDX-License-Identifier: MIT
// Matrix states by segments: what tokens do to a state is S -> T S + L.
//
// T is diagonal where a token only decays and adds: then the product of the decays. The delta rules
// and low rank updates mix rows: their T is what the same tokens make of the identity, with values
// of zero. L is what they make of an empty state.
#pragma once

#include <algorithm>
#include <utility>

#include "heed/core/target.hpp"
#include "heed/linear/matrix_state/forward.hpp"
#include "heed/linear/parallel_scan.hpp"

namespace heed::inline HEED_TARGET::detail {

template <class A>
class matrix_segments {
 public:
  using scalar = A;
  struct scratch_type {
    typename matrix_recurrence<A>::scratch_type rows;
    typename matrix_recurrence<A>::scratch_type moves;
  };

  explicit matrix_segments(const matrix_recurrence<A>& r) noexcept : whole_(r), adds_(r) {
    adds_.out.extents[1] = 0;  // no output is computed
    moves_ = adds_;
    moves_.v.extents[3] = whole_.k.channels();
    moves_.v.packets_fit = false;
    moves_.v.bytes = 0;
    moves_.v.copy = [](const void*, index, index, index, matrix_rows<A> to, index rows,
                       index columns) noexcept {
      for (index i = 0; i < rows; ++i) std::fill_n(to[i], columns, A(0));
    };
  }

  /// The transition costs tokens too: as many as repay its products.
  [[nodiscard]] index least_tokens() const noexcept {
    return std::max<index>(tuning<kernel::segmented, A>::fewest_tokens,
                           mixes() ? 4 * whole_.k.channels() : 0);
  }
  [[nodiscard]] index heads() const noexcept { return whole_.heads(); }
  [[nodiscard]] range span_of(index head) const noexcept { return whole_.span_of(head); }

  [[nodiscard]] scratch_type allocate(arena& c) const noexcept {
    scratch_type s{};
    s.rows = whole_.allocate(c);
    if (mixes()) s.moves = moves_.allocate(c);
    return s;
  }
  void load_state(index head, scratch_type& s) const noexcept { whole_.load_state(head, s.rows); }
  void store_state(index head, scratch_type& s) const noexcept { whole_.store_state(head, s.rows); }
  void compute_span(index head, range t, scratch_type& s) const noexcept {
    run(whole_, head, t, s.rows, [](const auto&) {});
  }

  [[nodiscard]] index kept_size() const noexcept { return features() * (columns() + moved()); }

  void summarise(index head, range t, scratch_type& s, A* kept) const noexcept {
    adds_.clear(s.rows.sum);
    adds_.clear(s.rows.low);
    const matrix_rows<A> move{kept + features() * columns(), moved()};
    if (mixes()) {
      moves_.clear(s.moves.sum);
      moves_.clear(s.moves.low);
      for (index f = 0; f < features(); ++f) s.moves.sum[f][f] = A(1);
      run(moves_, head, t, s.moves, [](const auto&) {});
      for (index f = 0; f < features(); ++f) std::copy_n(s.moves.sum[f], moved(), move[f]);
    } else {
      std::fill_n(move.data, features(), A(1));
    }
    run(adds_, head, t, s.rows, [&](const auto& rows) {
      for (index f = 0; !mixes() && f < features(); ++f) move.data[f] *= rows.prefix[f];
    });
    for (index f = 0; f < features(); ++f) {
      std::copy_n(s.rows.sum[f], columns(), kept + f * columns());
    }
  }

  void carry(A* kept, scratch_type& s) const noexcept {
    const matrix_rows<A> before{kept, columns()};
    const matrix_rows<const A> move{kept + features() * columns(), moved()};
    for (index f = 0; f < features(); ++f) {
      if (!mixes()) {
        for (index c = 0; c < columns(); c += simd::lanes<A>) {
          const auto added = simd::load<A>(before[f] + c);
          const auto sum = simd::load<A>(s.rows.sum[f] + c);
          simd::store(before[f] + c, sum);
          if (s.rows.low.data != nullptr) {
            decay_and_add(move.data[f], s.rows.sum[f] + c, s.rows.low[f] + c, added);
          } else {
            simd::store(s.rows.sum[f] + c, simd::fmadd(simd::broadcast(move.data[f]), sum, added));
          }
        }
      } else {
        std::swap_ranges(s.rows.sum[f], s.rows.sum[f] + columns(), before[f]);
      }
    }
    for (index f = 0; mixes() && f < features(); ++f) {
      for (index j = 0; j < features(); ++j) add(move[f][j], before[j], s.rows.sum[f]);
    }
  }

  void resume(index head, A* kept, scratch_type& s) const noexcept {
    whole_.load_bonus(head, s.rows);
    whole_.clear(s.rows.low);
    for (index f = 0; f < features(); ++f) {
      std::copy_n(kept + f * columns(), columns(), s.rows.sum[f]);
    }
    for (index f = features(); f < padded(features()); ++f) {
      std::fill_n(s.rows.sum[f], columns(), A(0));
    }
  }

 private:
  [[nodiscard]] static index padded(index n) noexcept { return round_up(n, simd::lanes<A>); }
  [[nodiscard]] bool mixes() const noexcept { return whole_.writes != write_kind::outer; }
  [[nodiscard]] index features() const noexcept { return whole_.k.channels(); }
  [[nodiscard]] index columns() const noexcept { return padded(whole_.v.channels()); }
  /// Numbers a row of T has.
  [[nodiscard]] index moved() const noexcept { return mixes() ? padded(features()) : 1; }

  void add(A by, const A* x, A* y) const noexcept {
    matrix_recurrence<A>::add_multiple(by, x, y, columns());
  }
  template <class Each>
  static void run(const matrix_recurrence<A>& r, index head, range t,
                  typename matrix_recurrence<A>::scratch_type& s, Each&& each_chunk) noexcept {
    for (index first = t.begin; first < t.end; first += r.chunk_size()) {
      r.chunk(head, {first, (std::min)(first + r.chunk_size(), t.end)}, s);
      each_chunk(s);
    }
  }

  matrix_recurrence<A> whole_, adds_, moves_;
};

}  // namespace heed::inline HEED_TARGET::detail
