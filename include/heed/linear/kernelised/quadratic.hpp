// SPDX-License-Identifier: MIT
// Kernelised attention by its definition, every pair visited: the oracle of the linear forms.
//
//   out_i = sum_j (phi(q_i).phi(k_j)) v_j / (sum_j phi(q_i).phi(k_j) + eps),   j <= i when causal,
//
// both sums beginning with what the incoming state gives. Plain loops, no packets, no chunks.
#pragma once

#include <algorithm>
#include <span>

#include "heed/core/target.hpp"
#include "heed/linear/kernelised/forward.hpp"

namespace heed::inline HEED_TARGET::detail {

/// The parallel form of a kernelised recurrence, one head of its state a task.
template <class R, class A>
class quadratic_form {
 public:
  explicit quadratic_form(const R& r) noexcept : r_(r) {}

  /// Numbers of scratch a worker: phi(k) of all keys, phi(q) of one query, sums of one row.
  struct buffers {
    A* keys = nullptr;
    A* query = nullptr;
    A* sums = nullptr;
    A* channels = nullptr;
  };
  [[nodiscard]] buffers allocate(arena& c) const noexcept {
    buffers b;
    b.keys = c.allocate<A>(r_.keys() * r_.features);
    b.query = c.allocate<A>(r_.features);
    b.sums = c.allocate<A>(r_.v.extent(3));
    b.channels = c.allocate<A>(r_.q.extent(3));
    return b;
  }

  void head(index b, index kv, bool causal, const buffers& s) const noexcept {
    const index group = r_.q.extent(1) / r_.k.extent(1);
    for (index j = 0; j < r_.keys(); ++j) features(r_.k, b, kv, j, s.keys + j * r_.features, s);
    for (index h = kv * group; h < (kv + 1) * group; ++h) {
      for (index i = 0; i < r_.tokens(); ++i) {
        features(r_.q, b, h, i, s.query, s);
        row(b, kv, h, i, causal ? i + 1 : r_.keys(), s);
      }
    }
    write_state(b, kv, s);
  }

 private:
  template <class T>
  void features(const view<const T, 4>& x, index b, index h, index token, A* to,
                const buffers& s) const noexcept {
    const index d = x.extent(3);
    for (index c = 0; c < d; ++c) s.channels[c] = static_cast<A>(x(b, h, token, c));
    if constexpr (vector_feature_map<std::remove_cvref_t<decltype(r_.map)>, A>) {
      r_.map(std::span<const A>(s.channels, static_cast<std::size_t>(d)),
             std::span<A>(to, static_cast<std::size_t>(r_.features)));
    } else {
      map_row(r_.map, s.channels, to, d);
    }
  }

  void row(index b, index kv, index h, index i, index visible, const buffers& s) const noexcept {
    const index f_count = r_.features;
    const index channels = r_.v.extent(3);
    A normaliser = A(0);
    std::fill_n(s.sums, channels, A(0));
    if (r_.state.sum.data() != nullptr) {
      for (index f = 0; f < f_count; ++f) {
        for (index c = 0; c < channels; ++c) s.sums[c] += s.query[f] * r_.state.sum(b, kv, f, c);
        if (r_.normalise) normaliser += s.query[f] * r_.state.normaliser(b, kv, f);
      }
    }
    for (index j = 0; j < visible; ++j) {
      A weight = A(0);
      for (index f = 0; f < f_count; ++f) weight += s.query[f] * s.keys[j * f_count + f];
      normaliser += weight;
      for (index c = 0; c < channels; ++c) s.sums[c] += weight * static_cast<A>(r_.v(b, kv, j, c));
    }
    const A factor = r_.normalise ? A(1) / (normaliser + r_.eps) : r_.scale;
    using TO = typename decltype(r_.out)::scalar;
    for (index c = 0; c < channels; ++c) r_.out(b, h, i, c) = static_cast<TO>(s.sums[c] * factor);
  }

  void write_state(index b, index kv, const buffers& s) const noexcept {
    if (r_.state.sum.data() == nullptr) return;
    for (index j = 0; j < r_.keys(); ++j) {
      for (index f = 0; f < r_.features; ++f) {
        const A key = s.keys[j * r_.features + f];
        if (r_.state.normaliser.data() != nullptr) r_.state.normaliser(b, kv, f) += key;
        for (index c = 0; c < r_.v.extent(3); ++c) {
          r_.state.sum(b, kv, f, c) += key * static_cast<A>(r_.v(b, kv, j, c));
        }
      }
    }
  }

  const R& r_;
};

}  // namespace heed::inline HEED_TARGET::detail
