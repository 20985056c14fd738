// SPDX-License-Identifier: MIT
// What each query row selects: the keys, or the blocks of keys, with the largest scores.
//
// | function          | a row's indices                                                   | from |
// |-------------------|-------------------------------------------------------------------|------|
// | top_k_keys        | the `count` keys of largest q.k                                   | 1    |
// | mixture_of_blocks | its own block, and the best `count - 1` earlier by q.mean(block)  | 2    |
//
// The result is a tensor [batch, heads, queries, count] of indices, best first or ascending, -1
// where there are fewer, for `selected_attention` (heed/attention.hpp), which takes them in any
// order, and ascending at the least cost. It is new memory, or with `_into` the caller's, of 32- or
// 64-bit integers: a prompt's indices may be gigabytes, and to be given them by the system may take
// longer than to select. Ties go to the lower index, so that a selection is the same on every run
// and for any number of threads. Scores accumulate in float (double for double); a NaN is never
// preferred. As in `attention`, nothing is causal unless wanted, and row i is at position
// offset + i, offset being 0 where it is not given: causal rows select among keys j <= offset + i
// alone. mixture_of_blocks is causal by its definition. Cost 2 N M D FLOPs a head for
// keys, 1 / block of that for blocks; beside the result a worker holds O(count) numbers for each of
// some rows, and O(M) for few queries. Throws shape_error, option_error, std::bad_alloc.
//
// Sources: 1 Gupta et al. 2021, arXiv 2106.06899; 2 Lu et al. 2025, arXiv 2502.13189 (MoBA), eq. 4
// to 6.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>

#include "heed/api/overloads.hpp"
#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/online_softmax.hpp"
#include "heed/kernel/top_k/top_k_scores.hpp"
#include "heed/parallel/openmp.hpp"
#include "heed/tensor/layout.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

struct selection_options {
  index count = 16;     ///< indices a row; 0 selects nothing
  index block = 1;      ///< keys a block, where blocks are selected
  bool causal = false;  ///< select among keys up to the row's own position alone
  index offset = 0;     ///< position of row 0
  index_order order = index_order::best_first;  ///< of a row's indices
};

namespace detail {

template <class T>
[[nodiscard]] auto selection_input(const T& t) {
  using S = std::remove_const_t<scalar_of<const T&>>;
  static_assert(attention_scalar<S>,
                "heed: a selection is made from float, double, half, bfloat16");
  return view<const S, 4>(as_rank4(as_view(t)));
}

/// Throws option_error where positions offset + row cannot be counted.
inline void check_row_positions(index offset, index rows) {
  constexpr index most = largest_index / 4;
  if (offset < -most || offset > most || rows > most) {
    fail<option_error>("offset is " + std::to_string(offset) + " for " + std::to_string(rows) +
                       " rows, must be within " + std::to_string(most));
  }
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
  check_row_positions(o.offset, q[2]);
}

/// For the indices of all heads, or none where the options will be refused.
[[nodiscard]] inline tensor<index, 4> new_selection(const std::array<index, 4>& q,
                                                    const selection_options& o) {
  return tensor<index, 4>({q[0], q[1], q[2], std::max<index>(o.count, 0)});
}

/// How many of `keys` keys row i may select among.
[[nodiscard]] constexpr index choosable(const selection_options& o, index i, index keys) noexcept {
  return o.causal ? intersect({0, keys}, {0, o.offset + i + 1}).size() : keys;
}

/// Where the indices of `heads` heads go, [batch, heads, queries, count], a row's next to each
/// other.
template <class Selection>
[[nodiscard]] auto selection_output(Selection& selection, const std::array<index, 4>& q,
                                    index heads, const selection_options& o) {
  const auto view4 = as_rank4(as_view(selection));
  using I = typename decltype(view4)::scalar;
  static_assert(std::is_same_v<I, std::int32_t> || std::is_same_v<I, std::int64_t>,
                "heed: selected indices are written to a tensor of 32- or 64-bit signed integers");
  const std::array<index, 4> expected{q[0], heads, q[2], o.count};
  if (view4.extents() != expected) {
    fail<shape_error>("selection has extents " + format_extents(view4.extents()) +
                      ", the selected indices have " + format_extents(expected));
  }
  if (view4.stride(3) != 1 && o.count > 1) {
    fail<shape_error>("selection has the indices of a row " + std::to_string(view4.stride(3)) +
                      " numbers apart, must have them next to each other");
  }
  return view4;
}

/// Where a row's indices go.
template <class I>
[[nodiscard]] I* selected_of(const view<I, 4>& selection, index b, index h, index i) noexcept {
  return selection.data() + b * selection.stride(0) + h * selection.stride(1) +
         i * selection.stride(2);
}

}  // namespace detail

namespace detail {

struct top_k_method : api::method<selection_options> {
  template <class Q, class K>
  [[nodiscard]] static auto result(const Q& q, const K&, const selection_options& o) {
    return new_selection(selection_input(q).extents(), o);
  }
  template <class E, tensor_like C, tensor_like Q, tensor_like K>
  static void write(E& exec, C&& selection, const Q& q, const K& k, const selection_options& o) {
    const auto q4 = detail::selection_input(q);
    const auto k4 = detail::selection_input(k);
    detail::check_selection_call(q4.extents(), k4.extents(), o);
    const auto to = detail::selection_output(selection, q4.extents(), q4.extent(1), o);
    kernel::largest_scores(
        exec, q4, k4, o.count, o.order,
        [&](index i) { return detail::choosable(o, i, k4.extent(2)); },
        [&](index b, index h, index i) { return detail::selected_of(to, b, h, i); });
  }
};

}  // namespace detail

/// top_k_keys_into([executor,] selection, q, k, options): for `selected_attention` with block 1.
inline constexpr api::writing<detail::top_k_method, 2> top_k_keys_into{};
/// top_k_keys([executor,] q, k, options)
inline constexpr api::returning<detail::top_k_method, 2> top_k_keys{};
namespace detail {

struct block_means_method : api::method<api::no_options> {
  template <class E, tensor_like K>
  [[nodiscard]] static auto call(E& exec, const K& k, index block, const api::no_options&) {
    const auto k4 = detail::selection_input(k);
    if (block < 1) fail<option_error>("block is " + std::to_string(block) + ", must be at least 1");
    using A = accumulate_t<scalar_of<const K&>>;
    block = (std::min)(block, std::max<index>(k4.extent(2), 1));
    const index blocks = ceil_div(k4.extent(2), block);
    tensor<A, 4> means({k4.extent(0), k4.extent(1), blocks, k4.extent(3)});
    const index tasks = k4.extent(0) * k4.extent(1) * blocks;
    if (tasks == 0) return means;
    const index workers = worker_count(exec, tasks);
    for_each_task(exec, workers, tasks, [&](index, index t) noexcept {
      const index b = t / blocks / k4.extent(1);
      const index h = t / blocks % k4.extent(1);
      const range j = intersect({0, k4.extent(2)}, {t % blocks * block, (t % blocks + 1) * block});
      mean_row(k4, b, h, j, &means(b, h, t % blocks, 0));
    });
    return means;
  }

 private:
  /// The mean of some keys of a head, a few channels at a time: 64 keys are added up from 0, and join
  /// the sum with a compensation term (kernel/online_softmax.hpp).
  template <class A, class T>
  static void mean_row(const view<T, 4>& k, index b, index h, range j, A* to) noexcept {
    constexpr index wide = 64, together = 64;
    const index step = k.stride(3);
    for (index first = 0; first < k.extent(3); first += wide) {
      const index count = (std::min)(wide, k.extent(3) - first);
      A sum[wide] = {}, lost[wide] = {};
      for (index from = j.begin; from < j.end; from += together) {
        A part[wide] = {};
        for (index i = from; i < (std::min)(from + together, j.end); ++i) {
          const T* const row = &k(b, h, i, first);
          if (step == 1) {
            for (index c = 0; c < count; ++c) part[c] += static_cast<A>(row[c]);
          } else {
            for (index c = 0; c < count; ++c) part[c] += static_cast<A>(row[c * step]);
          }
        }
        add_to_past(sum, lost, A(1), part, count);
      }
      add_lost(sum, lost, count);
      for (index c = 0; c < count; ++c) to[first + c] = sum[c] / static_cast<A>(j.size());
    }
  }
};

}  // namespace detail

/// block_means([executor,] k, block): the means of blocks of keys, [batch, kv heads, blocks, head
/// dim] in the accumulator type; the last block's is of what it holds.
inline constexpr api::function<detail::block_means_method,
                               api::form<detail::block_means_method, 1, index>>
    block_means{};

namespace detail {

struct mixture_of_blocks_method : api::method<selection_options> {
  template <class Q, class K>
  [[nodiscard]] static auto result(const Q& q, const K&, const selection_options& o) {
    return new_selection(selection_input(q).extents(), o);
  }
  template <class E, tensor_like C, tensor_like Q, tensor_like K>
  static void write(E& exec, C&& selection, const Q& q, const K& k, const selection_options& o) {
    const auto q4 = detail::selection_input(q);
    detail::check_selection_call(q4.extents(), detail::selection_input(k).extents(), o);
    const auto to = detail::selection_output(selection, q4.extents(), q4.extent(1), o);
    if (o.count == 0) return;
    // A block of more keys than there are is one of all.
    const index block =
        (std::min)(o.block, std::max<index>(detail::selection_input(k).extent(2), 1));
    const auto means = block_means(exec, k, block);
    using A = accumulate_t<scalar_of<const Q&>>;
    const view<const A, 4> m = as_view(means);
    const auto own = [&](index i) { return (std::min)((o.offset + i) / block, m.extent(2) - 1); };
    // Each row's own block, and the best before it.
    kernel::largest_scores(exec, q4, m, o.count - 1, o.order, own, [&](index b, index h, index i) {
      auto* const row = detail::selected_of(to, b, h, i);
      *row = static_cast<std::remove_reference_t<decltype(*row)>>(own(i));
      return row + 1;
    });
    if (o.order == index_order::best_first) return;
    // Its own is the last of them.
    for (index row = 0; row < q4.extent(0) * q4.extent(1) * q4.extent(2); ++row) {
      const index head = row / q4.extent(2);
      auto* const first =
          detail::selected_of(to, head / q4.extent(1), head % q4.extent(1), row % q4.extent(2));
      const index earlier = std::min<index>(o.count - 1, std::max<index>(*first, 0));
      std::rotate(first, first + 1, first + 1 + earlier);
    }
  }
};

}  // namespace detail

/// mixture_of_blocks_into([executor,] selection, q, k, options): for `selected_attention` with the
/// same block, and `causal()`. Causal by definition, whatever `options.causal`: a row selects among
/// blocks that end before its own begins.
inline constexpr api::writing<detail::mixture_of_blocks_method, 2> mixture_of_blocks_into{};
/// mixture_of_blocks([executor,] q, k, options)
inline constexpr api::returning<detail::mixture_of_blocks_method, 2> mixture_of_blocks{};
}  // namespace heed::inline HEED_TARGET
