// SPDX-License-Identifier: MIT
// Kernelised attention by segments: what tokens do to S and z is to add their own.
#pragma once

#include <algorithm>
#include <utility>

#include "heed/core/target.hpp"
#include "heed/linear/kernelised/forward.hpp"
#include "heed/linear/parallel_scan.hpp"
#include "heed/linear/recurrence.hpp"

namespace heed::inline HEED_TARGET::detail {

template <class R>
class kernelised_segments {
 public:
  using scalar = typename decltype(R::state)::scalar;
  using scratch_type = typename R::scratch_type;

  /// The caller's state is read by one pass and written by another: never worked on where it lies.
  explicit kernelised_segments(const R& r) noexcept : r_(r) { r_.in_place = false; }

  [[nodiscard]] index heads() const noexcept { return r_.heads(); }
  [[nodiscard]] range span_of(index) const noexcept { return {0, r_.tokens()}; }
  [[nodiscard]] scratch_type allocate(arena& c) const noexcept { return r_.allocate(c); }
  void load_state(index head, scratch_type& s) const noexcept { r_.load_state(head, s); }
  void store_state(index head, scratch_type& s) const noexcept { r_.store_state(head, s); }
  void compute_span(index head, range t, scratch_type& s) const noexcept {
    each_chunk(t, [&](range c) noexcept { r_.chunk(head, c, s); });
  }

  [[nodiscard]] index kept_size() const noexcept {
    return r_.features * columns() + padded(r_.features);
  }
  void summarise(index head, range t, scratch_type& s, scalar* kept) const noexcept {
    each_number(s, kept,
                [](scalar* own, scalar*, index n, scalar*) { std::fill_n(own, n, scalar(0)); });
    r_.clear_low(s);
    each_chunk(t, [&](range c) noexcept { r_.update_state(head, c, s); });
    each_number(s, kept,
                [](scalar* own, scalar* to, index n, scalar*) { std::copy_n(own, n, to); });
  }
  void carry(scalar* kept, scratch_type& s) const noexcept {
    each_number(s, kept, [](scalar* own, scalar* to, index n, scalar* low) {
      for (index i = 0; i < n; i += simd::lanes<scalar>) {
        auto total = simd::load<scalar>(own + i);
        auto lost = low != nullptr ? simd::load<scalar>(low + i) : simd::zero<scalar>();
        const auto added = simd::load<scalar>(to + i);
        simd::store(to + i, total);
        add_compensated<scalar>(total, lost, added);
        simd::store(own + i, total);
        if (low != nullptr) simd::store(low + i, lost);
      }
    });
  }
  void resume(index, scalar* kept, scratch_type& s) const noexcept {
    each_number(s, kept,
                [](scalar* own, scalar* from, index n, scalar*) { std::copy_n(from, n, own); });
    r_.clear_low(s);
  }

 private:
  [[nodiscard]] static index padded(index n) noexcept { return round_up(n, simd::lanes<scalar>); }
  [[nodiscard]] index columns() const noexcept { return padded(r_.v.extent(3)); }

  template <class F>
  void each_chunk(range t, F&& f) const noexcept {
    for_each_chunk(t.size(), r_.chunk_size(),
                   [&](range c) noexcept { f(range{t.begin + c.begin, t.begin + c.end}); });
  }
  /// f(the scratch's numbers, those kept, how many, their low parts or null): the rows of S, then z.
  template <class F>
  void each_number(scratch_type& s, scalar* kept, F&& f) const noexcept {
    s.sum = s.own_sum;
    s.normaliser = s.own_normaliser;
    const bool has_low = s.low.data != nullptr;
    for (index i = 0; i < r_.features; ++i) {
      f(s.sum[i], kept + i * columns(), columns(), has_low ? s.low[i] : nullptr);
    }
    f(s.normaliser, kept + r_.features * columns(), padded(r_.features),
      has_low ? s.low_normaliser : nullptr);
  }

  R r_;
};

}  // namespace heed::inline HEED_TARGET::detail
