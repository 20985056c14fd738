// SPDX-License-Identifier: MIT
// The pages of keys that may score highest, by their bounds: for decode over a long cache.
//
//   bound_n = sum_c q_c (q_c > 0 ? M_nc : m_nc)   >= q.k_j   for j in page n
//
// Each channel reads the one bound that counts, half of what `page_bounds` holds. Tang et al. 2024,
// arXiv 2406.10774 (Quest), section 3.3.
#pragma once

#include <algorithm>
#include <optional>

#include "heed/api/overloads.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/top_k/streaming_top_k.hpp"
#include "heed/parallel/scratch_tasks.hpp"
#include "heed/sparse/select/page_bounds.hpp"

namespace heed::inline HEED_TARGET {

/// How the query heads that share a KV head select: each for itself, or together by the sum or by
/// the largest of their bounds. Together they read each selected page once.
enum class group_choice { each, sum, largest };

struct page_options {
  index count = 16;  ///< pages a row; 0 selects nothing
  group_choice group = group_choice::each;
  bool newest = true;   ///< the newest page a row sees is selected, whatever its bound, and first
  bool causal = false;  ///< select among pages that hold a key up to the row's own position alone
  /// Position of row 0; where absent the queries are the newest tokens, as in `decode`.
  std::optional<index> offset = std::nullopt;
};

namespace detail {

/// The bounds on q.k of a group of pages: `group` is [maxima and then minima of each
/// channel][pages].
template <class A, class T>
HEED_INLINE void bound_scores(const A* q, const T* group, index head_dim, A* to) noexcept {
  using plan = tile_plan<A>;
  using P = simd::packet<A>;
  // Two sums a page: one would wait for itself.
  P sum[2][std::size_t{plan::packets}];
  for (auto& half : sum) {
    for (P& s : half) s = simd::zero<A>();
  }
  const auto add = [&](index c, P* s) HEED_INLINE_LAMBDA {
    const T* const bound = group + (q[c] > A(0) ? c : head_dim + c) * plan::group;
    const P x = simd::broadcast(q[c]);
    simd::unroll<plan::packets>([&](auto p) HEED_INLINE_LAMBDA {
      s[p] = simd::fmadd(x, simd::load_widened<A>(bound + p * plan::lanes), s[p]);
    });
  };
  index c = 0;
  for (; c + 2 <= head_dim; c += 2) {
    add(c, sum[0]);
    add(c + 1, sum[1]);
  }
  if (c < head_dim) add(c, sum[0]);
  simd::unroll<plan::packets>([&](auto p) HEED_INLINE_LAMBDA {
    simd::store(to + p * plan::lanes, simd::add(sum[0][p], sum[1][p]));
  });
}

/// Scores of one head more for a group of heads that select together.
template <class A>
HEED_INLINE void join_scores(group_choice how, const A* x, A* all) noexcept {
  for (index p = 0; p < tile_plan<A>::group; ++p) {
    const bool larger = x[p] > all[p] || !(all[p] == all[p]);
    all[p] = how == group_choice::sum ? all[p] + x[p] : larger ? x[p] : all[p];
  }
}

}  // namespace detail

namespace detail {

struct select_pages_method : api::method<page_options> {
  template <class E, tensor_like Q, class T, class Bound>
  [[nodiscard]] static tensor<index, 4> call(E& exec, const Q& q,
                                             const page_bounds<T, Bound>& bounds,
                                             const page_options& o) {
    using A = accumulate_t<T>;
    using TQ = std::remove_const_t<scalar_of<const Q&>>;
    using plan = kernel::tile_plan<A>;
    static_assert(std::is_same_v<A, accumulate_t<TQ>>,
                  "heed: q and the bounds accumulate in different types");
    const auto q4 = detail::selection_input(q);
    detail::check_selection_call(q4.extents(),
                                 {bounds.batch(), bounds.kv_heads(), 0, bounds.head_dim()},
                                 {.count = o.count, .block = bounds.page()});
    detail::check_row_positions(o.offset.value_or(0), q4.extent(2));
    kernel::check_listed("the pages", ceil_div(bounds.capacity(), bounds.page()));
    const index n = q4.extent(2);
    const index d = q4.extent(3);
    const index kv_heads = bounds.kv_heads();
    const index group = kv_heads > 0 ? q4.extent(1) / kv_heads : 1;
    const bool together = o.group != group_choice::each;
    tensor<index, 4> selection({q4.extent(0), together ? kv_heads : q4.extent(1), n, o.count});
    if (group == 0 || n == 0) {
      std::fill_n(selection.data(), selection.size(), index{-1});
      return selection;
    }
    const auto places = as_view(selection);
    // The newest page is selected without a look at its bound.
    const index newest = o.newest && o.count > 0 ? 1 : 0;
    // All heads of a KV head, and some of their rows, while its bounds pass by.
    const index queries = (std::min)(n, std::max<index>(1, 16 / group));
    const index steps = ceil_div(n, queries);
    const index lists = together ? 1 : group;  // of a query

    struct scratch_type {
      A* q = nullptr;       // [queries][group][head dim]
      A* scores = nullptr;  // [2][pages side by side]
      kernel::running_largest<A> largest;
    };
    const auto allocate = [&](arena& c) noexcept {
      scratch_type s;
      s.q = c.allocate<A>(queries * group * d);
      s.scores = c.allocate<A>(2 * plan::group);
      s.largest.allocate(c, queries * lists, o.count - newest);
      return s;
    };
    workspace memory;
    for_each_with_scratch(
        exec, q4.extent(0) * kv_heads * steps, memory, allocate,
        [&](scratch_type& s, index t) noexcept {
          const index b = t / steps / kv_heads;
          const index h = t / steps % kv_heads;
          const range i = intersect({0, n}, {t % steps * queries, (t % steps + 1) * queries});
          const index length = bounds.length(b);
          const index offset = o.offset.value_or(length - n);
          const auto pages = [&](index row) {
            const index keys =
                o.causal ? intersect({0, length}, {0, offset + row + 1}).size() : length;
            return ceil_div(keys, bounds.page());
          };
          for (index g = 0; g < group; ++g) {
            kernel::copy_tile(kernel::rectangle<const TQ>{&q4(b, h * group + g, i.begin, 0),
                                                          q4.stride(2), q4.stride(3)},
                              kernel::rectangle<A>{s.q + g * d, group * d, 1}, i.size(), d);
          }
          s.largest.start(i.size() * lists);
          A* const scores = s.scores;
          const index most = pages(i.end - 1);
          for (index first = 0; first < most; first += plan::group) {
            const Bound* const bound = bounds.of_group(b, h, first / plan::group);
            for (index row = 0; row < i.size(); ++row) {
              const index free = pages(i.begin + row) - newest - first;
              for (index g = 0; g < group && free > 0; ++g) {
                A* const to = together && g > 0 ? scores + plan::group : scores;
                detail::bound_scores(s.q + (row * group + g) * d, bound, d, to);
                if (to != scores) detail::join_scores(o.group, to, scores);
                if (together && g + 1 < group) continue;
                s.largest.take(row * lists + (together ? 0 : g), scores, first,
                               (std::min)(plan::group, free));
              }
            }
          }
          for (index row = 0; row < i.size(); ++row) {
            for (index g = 0; g < lists; ++g) {
              index* const to = detail::selected_of(places, b, h * lists + g, i.begin + row);
              if (newest > 0) to[0] = pages(i.begin + row) - 1;
              s.largest.descending(row * lists + g, to + newest);
            }
          }
        });
    return selection;
  }
};

}  // namespace detail

/// select_pages([executor,] q, bounds, options): the `count` pages of largest bound on q.k, best
/// first, -1 where there are fewer, for `selected_attention` with block `bounds.page()`. q [batch,
/// heads, queries, head dim]; the result is [batch, heads, queries, count], or [batch, kv heads,
/// ...] where a group selects together. Not scaled: a scale above 0 changes no index. Ties to the
/// lower index; a NaN is never preferred; the same indices for any number of threads.
///
/// Bounds are sums of head dim products in the accumulator type. A page with an infinite bound that
/// counts is the first or the last; one with a channel of NaNs alone is never preferred. Of a page
/// that a causal row sees in part the bound is of all its keys. Cost 2 head dim FLOPs a query row
/// and page; memory O(count) a worker and row of a task beside the result. Throws shape_error,
/// option_error, std::bad_alloc.
inline constexpr api::function<detail::select_pages_method,
                               api::form<detail::select_pages_method, 2>>
    select_pages{};

}  // namespace heed::inline HEED_TARGET
