// SPDX-License-Identifier: MIT
// What each query row selects: the keys, or the blocks of keys, with the largest scores.
//
// | function          | a row's choices                                                   | from |
// |-------------------|-------------------------------------------------------------------|------|
// | top_k_keys        | the `count` keys of largest q.k                                   | 1    |
// | mixture_of_blocks | its own block, and the best `count - 1` earlier by q.mean(block)  | 2    |
//
// The result is a tensor [batch, heads, queries, count] of indices, best first or ascending, -1
// where there are fewer, for `selected_attention` (heed/attention.hpp), which takes them in any
// order, and ascending at the least cost. Ties go to
// the lower index, so that a selection is the same on every run and for any number of threads.
// Scores accumulate in float (double for double); a NaN is never preferred. Causal rows choose
// among keys j <= offset + i alone. Cost 2 N M D FLOPs a head for keys, 1 / block of that for
// blocks; beside the result a worker holds O(count) numbers for each of some rows, and O(M) for few
// queries. Throws shape_error, option_error, std::bad_alloc.
//
// Sources: 1 Gupta et al. 2021, arXiv 2106.06899; 2 Lu et al. 2025, arXiv 2502.13189 (MoBA), eq. 4
// to 6.
#pragma once

#include <algorithm>
#include <string>

#include "heed/core/errors.hpp"
#include "heed/parallel/openmp.hpp"
#include "heed/sparse/largest_scores.hpp"
#include "heed/tensor/layout.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed {

struct selection_options {
  index count = 16;    ///< choices a row
  index block = 1;     ///< keys a block, where blocks are chosen
  bool causal = true;  ///< choose among keys up to the row's own position
  index offset = 0;    ///< position of row 0
  choice_order order = choice_order::best_first;  ///< of a row's choices
};

namespace detail {

template <class T>
[[nodiscard]] auto selection_input(const T& t) {
  using S = std::remove_const_t<scalar_of<const T&>>;
  static_assert(attention_scalar<S>,
                "heed: a selection is made from float, double, half, bfloat16");
  return view<const S, 4>(as_rank4(as_view(t)));
}

inline void check_selection_call(const std::array<index, 4>& q, const std::array<index, 4>& k,
                                 const selection_options& o) {
  require_equal("k", "batch", k[0], "q", q[0]);
  require_equal("k", "head dim", k[3], "q", q[3]);
  if (k[1] == 0 ? q[1] != 0 : q[1] % k[1] != 0) {
    fail<shape_error>("q has " + std::to_string(q[1]) + " heads, not a multiple of k's " +
                      std::to_string(k[1]));
  }
  if (o.count < 0 || o.block < 1) {
    fail<option_error>("selection of " + std::to_string(o.count) + " blocks of " +
                       std::to_string(o.block));
  }
}

/// How many of `keys` keys row i may choose among.
[[nodiscard]] constexpr index choosable(const selection_options& o, index i, index keys) noexcept {
  return o.causal ? intersect({0, keys}, {0, o.offset + i + 1}).size() : keys;
}

/// Where a row's choices go.
[[nodiscard]] inline index* choices_of(tensor<index, 4>& chosen, index b, index h,
                                       index i) noexcept {
  return chosen.data() + ((b * chosen.extent(1) + h) * chosen.extent(2) + i) * chosen.extent(3);
}

}  // namespace detail

/// top_k_keys(executor, q, k, options): for `selected_attention` with block 1.
template <executor E, tensor_like Q, tensor_like K>
[[nodiscard]] tensor<index, 4> top_k_keys(E& exec, const Q& q, const K& k,
                                          const selection_options& o = {}) {
  const auto q4 = detail::selection_input(q);
  const auto k4 = detail::selection_input(k);
  detail::check_selection_call(q4.extents(), k4.extents(), o);
  tensor<index, 4> chosen({q4.extent(0), q4.extent(1), q4.extent(2), o.count});
  detail::largest_scores(
      exec, q4, k4, o.count, o.order,
      [&](index i) { return detail::choosable(o, i, k4.extent(2)); },
      [&](index b, index h, index i) { return detail::choices_of(chosen, b, h, i); });
  return chosen;
}

/// The means of blocks of keys, [batch, kv heads, blocks, head dim] in the accumulator type; the
/// last block's is of what it holds.
template <executor E, tensor_like K>
[[nodiscard]] auto block_means(E& exec, const K& k, index block) {
  const auto k4 = detail::selection_input(k);
  if (block < 1) fail<option_error>("block is " + std::to_string(block) + ", must be at least 1");
  using A = accumulate_t<scalar_of<const K&>>;
  const index blocks = ceil_div(k4.extent(2), block);
  tensor<A, 4> means({k4.extent(0), k4.extent(1), blocks, k4.extent(3)});
  const index tasks = k4.extent(0) * k4.extent(1) * blocks;
  if (tasks == 0) return means;
  const index workers = std::clamp<index>(static_cast<index>(exec.concurrency()), index{1}, tasks);
  for_each_task(exec, workers, tasks, [&](index, index t) noexcept {
    const index b = t / blocks / k4.extent(1);
    const index h = t / blocks % k4.extent(1);
    const range j = intersect({0, k4.extent(2)}, {t % blocks * block, (t % blocks + 1) * block});
    A* const to = &means(b, h, t % blocks, 0);
    std::fill_n(to, k4.extent(3), A(0));
    const index d = k4.extent(3);
    const index step = k4.stride(3);
    for (index i = j.begin; i < j.end; ++i) {
      const auto* const row = &k4(b, h, i, 0);
      if (step == 1) {
        for (index c = 0; c < d; ++c) to[c] += static_cast<A>(row[c]);
      } else {
        for (index c = 0; c < d; ++c) to[c] += static_cast<A>(row[c * step]);
      }
    }
    for (index c = 0; c < d; ++c) to[c] /= static_cast<A>(j.size());
  });
  return means;
}

/// mixture_of_blocks(executor, q, k, options): for `selected_attention` with the same block, and
/// `causal()`. Always causal: a row chooses among blocks that end before its own begins.
template <executor E, tensor_like Q, tensor_like K>
[[nodiscard]] tensor<index, 4> mixture_of_blocks(E& exec, const Q& q, const K& k,
                                                 const selection_options& o) {
  const auto q4 = detail::selection_input(q);
  detail::check_selection_call(q4.extents(), detail::selection_input(k).extents(), o);
  const auto means = block_means(exec, k, o.block);
  using A = accumulate_t<scalar_of<const Q&>>;
  const view<const A, 4> m = as_view(means);
  tensor<index, 4> chosen({q4.extent(0), q4.extent(1), q4.extent(2), o.count});
  if (o.count == 0) return chosen;
  const auto own = [&](index i) { return std::min((o.offset + i) / o.block, m.extent(2) - 1); };
  // Each row's own block, and the best before it.
  detail::largest_scores(exec, q4, m, o.count - 1, o.order, own, [&](index b, index h, index i) {
    index* const to = detail::choices_of(chosen, b, h, i);
    *to = own(i);
    return to + 1;
  });
  if (o.order == choice_order::best_first) return chosen;
  // Its own is the last of them.
  for (index row = 0; row < chosen.extent(0) * chosen.extent(1) * chosen.extent(2); ++row) {
    index* const to = chosen.data() + row * o.count;
    std::rotate(to, to + 1, to + 1 + std::min(o.count - 1, std::max<index>(*to, 0)));
  }
  return chosen;
}

}  // namespace heed
