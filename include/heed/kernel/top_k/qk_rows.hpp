// SPDX-License-Identifier: MIT
// Scores of a few query rows against all keys, for selections: q.k, not scaled, a row at a time and
// never N x M.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/core/workspace.hpp"
#include "heed/kernel/copy_strided.hpp"
#include "heed/kernel/split_kv/microkernel.hpp"
#include "heed/kernel/tiled/tuning.hpp"
#include "heed/parallel/scratch_tasks.hpp"
#include "heed/simd/exponential.hpp"
#include "heed/tensor/scalar.hpp"
#include "heed/tensor/view.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// The scratch of one worker, for `rows` query rows at a time.
template <class A>
struct row_scores_scratch {
  A* q = nullptr;       // [rows, padded][head dim]
  A* tile = nullptr;    // [rows, padded][keys of a block]
  A* k = nullptr;       // a copied block of keys
  A* scores = nullptr;  // [rows][keys], and what lists may read behind the last
  index keys = 0;

  [[nodiscard]] static constexpr index padded(index rows) noexcept {
    return split_plan<A>::padded(rows);
  }
  void allocate(arena& c, index rows, index keys_in_all, index head_dim) noexcept {
    q = c.allocate<A>(padded(rows) * head_dim);
    tile = c.allocate<A>(padded(rows) * split_plan<A>::keys);
    k = c.allocate<A>(split_plan<A>::keys * head_dim);
    scores = c.allocate<A>(rows * keys_in_all + tile_plan<A>::group);
    keys = keys_in_all;
  }
  [[nodiscard]] A* row(index r) const noexcept { return scores + r * keys; }

  /// Query row r of the next `score`.
  template <class T>
  void load(index r, const T* from, index channel_stride, index head_dim) noexcept {
    for (index c = 0; c < head_dim; ++c) {
      q[r * head_dim + c] = static_cast<A>(from[c * channel_stride]);
    }
  }

  /// Scores of the `rows` loaded rows against keys [0, count) of a head.
  template <class T>
  void score(index rows, const view<const T, 4>& keys_of, index b, index h, index count) noexcept {
    using plan = split_plan<A>;
    const index d = keys_of.extent(3);
    for (index r = rows; r < padded(rows); ++r) std::fill_n(q + r * d, d, A(0));
    for (index first = 0; first < count; first += plan::keys) {
      const index n = (std::min)(plan::keys, count - first);
      const T* const from = keys_of.data() + b * keys_of.stride(0) + h * keys_of.stride(1) +
                            first * keys_of.stride(2);
      if (keys_of.stride(3) == 1) {
        split_scores<A>(q, d, rows, strided_rows<T>{from, keys_of.stride(2), count - first}, n, d,
                        tile);
      } else {
        copy_tile(rectangle<const T>{from, keys_of.stride(2), keys_of.stride(3)},
                  rectangle<A>{k, d, 1}, n, d);
        split_scores<A>(q, d, rows, strided_rows<A>{k, d}, n, d, tile);
      }
      for (index r = 0; r < rows; ++r) std::copy_n(tile + r * plan::keys, n, row(r) + first);
    }
  }
};

/// Runs `task(scratch, t)` for t in [0, tasks), each worker with scratch of its own.
template <class A, executor E, class Task>
void for_each_scored(E& exec, index tasks, index rows, index keys, index head_dim, Task&& task) {
  workspace memory;
  const auto allocate = [&](arena& c) noexcept {
    row_scores_scratch<A> scratch;
    scratch.allocate(c, rows, keys, head_dim);
    return scratch;
  };
  for_each_with_scratch(exec, tasks, memory, allocate, task);
}

/// x[0 .. n) become exp(scale x - their largest), a row's probabilities not yet divided by their
/// sum: relative error 2.5e-7 and eps of the argument in float. Where there is a NaN, one stays.
template <class A>
void softmax_weights(A* x, index n, A scale) noexcept {
  constexpr index w = simd::lanes<A>;
  constexpr int at_once = 4;
  constexpr A lowest = -std::numeric_limits<A>::infinity();
  const auto factor = simd::broadcast(scale);
  auto tops = simd::broadcast(lowest);
  const index whole = n / w * w;
  for (index i = 0; i < whole; i += w) {
    const auto s = simd::mul(simd::load(x + i), factor);
    simd::store(x + i, s);
    tops = (simd::max)(tops, s);
  }
  A rest[std::size_t{w}];
  std::fill_n(rest, w, lowest);
  for (index i = whole; i < n; ++i) rest[i - whole] = x[i] * scale;
  const A top = simd::largest((simd::max)(tops, simd::load(rest)));
  const auto shift = simd::broadcast(top == lowest ? A(0) : top);
  index i = 0;
  for (; i + at_once * w <= n; i += at_once * w) {
    simd::packet<A> e[std::size_t{at_once}];
    for (int p = 0; p < at_once; ++p) e[p] = simd::sub(simd::load(x + i + p * w), shift);
    simd::exp_nonpositive<A, at_once>(e);
    for (int p = 0; p < at_once; ++p) simd::store(x + i + p * w, e[p]);
  }
  for (; i < whole; i += w) {
    simd::store(x + i, simd::exp_nonpositive<A>(simd::sub(simd::load(x + i), shift)));
  }
  simd::store(rest, simd::exp_nonpositive<A>(simd::sub(simd::load(rest), shift)));
  std::copy_n(rest, n - whole, x + whole);
}

}  // namespace heed::inline HEED_TARGET::kernel
