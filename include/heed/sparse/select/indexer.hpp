// SPDX-License-Identifier: MIT
// The keys an indexer selects: small heads with one narrow key a token score them for all heads of
// attention.
//
//   I_ij = sum_h w_hi max(qi_hi.ki_j, 0)
//
// DeepSeek-AI 2025, DeepSeek-V3.2 (sparse attention with a lightning indexer), eq. 1.
#pragma once

#include <algorithm>
#include <type_traits>

#include "heed/api/overloads.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/top_k/qk_tiles.hpp"
#include "heed/kernel/top_k/sampled_top_k.hpp"
#include "heed/sparse/select/top_k.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// The scores [heads][group] of a query's index heads become one row, in place of the first: their
/// positive parts, weighted and summed in the order of the heads.
template <class A>
HEED_INLINE void weigh_heads(A* scores, const A* weight, index heads) noexcept {
  using plan = tile_plan<A>;
  simd::packet<A> sum[std::size_t{plan::packets}];
  for (auto& s : sum) s = simd::zero<A>();
  for (index h = 0; h < heads; ++h) {
    const auto w = simd::broadcast(weight[h]);
    simd::unroll<plan::packets>([&](auto p) HEED_INLINE_LAMBDA {
      const auto s = simd::load(scores + h * plan::group + p * plan::lanes);
      const auto positive = simd::select(simd::less(simd::zero<A>(), s), s, simd::zero<A>());
      sum[p] = simd::fmadd(w, positive, sum[p]);
    });
  }
  simd::unroll<plan::packets>(
      [&](auto p) HEED_INLINE_LAMBDA { simd::store(scores + p * plan::lanes, sum[p]); });
}

}  // namespace detail

namespace detail {

struct indexer_method : api::method<selection_options> {
  template <class Q, class K, class W>
  [[nodiscard]] static auto result(const Q& qi, const K&, const W&, const selection_options& o) {
    std::array<index, 4> of_one_head = selection_input(qi).extents();
    of_one_head[1] = 1;
    return new_selection(of_one_head, o);
  }
  template <class E, tensor_like C, tensor_like Q, tensor_like K, tensor_like W>
  static void write(E& exec, C&& selection, const Q& qi, const K& ki, const W& w,
                    const selection_options& o) {
    const auto q4 = detail::selection_input(qi);
    const auto k4 = detail::selection_input(ki);
    detail::check_selection_call(q4.extents(), k4.extents(), o);
    require_equal("ki", "heads", k4.extent(1), "one key for all index heads", 1);
    const auto weights = as_view(w);
    static_assert(rank_of<const W&> == 3, "heed: w has axes batch, index heads, queries");
    require_equal("w", "batch", weights.extent(0), "qi", q4.extent(0));
    require_equal("w", "heads", weights.extent(1), "qi", q4.extent(1));
    require_equal("w", "queries", weights.extent(2), "qi", q4.extent(2));
    kernel::check_listed("ki's keys", k4.extent(2));
    using TQ = std::remove_const_t<scalar_of<const Q&>>;
    using TK = std::remove_const_t<scalar_of<const K&>>;
    using A = accumulate_t<TQ>;
    using plan = kernel::tile_plan<A>;
    const index n = q4.extent(2);
    const index heads = q4.extent(1);
    const index d = q4.extent(3);
    const auto to = detail::selection_output(selection, q4.extents(), 1, o);
    if (q4.extent(0) * n == 0) return;

    // All heads of some queries meet the keys together.
    const index queries = (std::min)(
        n, std::max<index>(1, kernel::scored_rows_scratch<A>::rows / std::max<index>(1, heads)));
    const auto seen = [&](index row) { return detail::choosable(o, row, k4.extent(2)); };
    const index steps = ceil_div(n, queries);
    struct scratch_type {
      kernel::scored_rows_scratch<A> scored;
      kernel::sampled_largest<A> largest;
      A* q = nullptr;       // [queries][heads][Di]
      A* weight = nullptr;  // [queries][heads]
    };
    const auto allocate = [&](arena& c) noexcept {
      scratch_type s;
      s.scored.allocate(c, d, std::max<index>(1, queries * heads));
      s.largest.allocate(c, queries, o.count, seen(n - 1));
      s.q = c.allocate<A>(queries * heads * d);
      s.weight = c.allocate<A>(queries * heads);
      return s;
    };
    workspace memory;
    for_each_with_scratch(
        exec, q4.extent(0) * steps, memory, allocate, [&](scratch_type& s, index t) noexcept {
          const index b = t / steps;
          // The last rows may see the most: long tasks first.
          const index first = (steps - 1 - t % steps) * queries;
          const range i{first, (std::min)(first + queries, n)};
          for (index h = 0; h < heads; ++h) {
            kernel::copy_tile(
                kernel::rectangle<const TQ>{&q4(b, h, i.begin, 0), q4.stride(2), q4.stride(3)},
                kernel::rectangle<A>{s.q + h * d, heads * d, 1}, i.size(), d);
            for (index r = 0; r < i.size(); ++r) {
              s.weight[r * heads + h] = static_cast<A>(weights(b, h, i.begin + r));
            }
          }
          const TK* const keys = k4.data() + b * k4.stride(0);
          s.largest.list(
              i, o.order, seen,
              [&](range rows, index step, index most, const auto& take) noexcept {
                const index passed = (rows.begin - i.begin) * heads;
                kernel::each_scored_group(
                    s.scored, kernel::rectangle<const A>{s.q + passed * d, d, 1},
                    rows.size() * heads,
                    kernel::rectangle<const TK>{keys, step * k4.stride(2), k4.stride(3)}, d, most,
                    [&](range at, A* scores) noexcept {
                      const A* weight = s.weight + passed;
                      for (index row = rows.begin; row < rows.end; ++row) {
                        detail::weigh_heads(scores, weight, heads);
                        take(row, scores, at);
                        scores += heads * plan::group;
                        weight += heads;
                      }
                    });
              },
              [&](index row) { return detail::selected_of(to, b, 0, row); });
        });
  }
};

}  // namespace detail

/// indexer_keys_into([executor,] selection, qi, ki, w, options): the `count` keys of largest I_ij in
/// their order, -1 where there are fewer, [batch, 1, queries, count]: one selection, which
/// `selected_attention` with block 1 takes for all heads. qi [batch, index heads, queries, Di], ki
/// [batch, 1, keys, Di], w [batch, index heads, queries].
///
/// Scores accumulate in float (double for double). A score that is NaN counts as 0; an I_ij that
/// is, for its weights are, as -inf. Ties to the lower key; the same indices for any number of
/// threads. Cost 2 N M Di FLOPs an index head; a worker holds the scores of some rows against a
/// few keys, and O(count) numbers for each of their queries. Throws shape_error, option_error,
/// std::bad_alloc.
inline constexpr api::writing<detail::indexer_method, 3> indexer_keys_into{};
/// indexer_keys([executor,] qi, ki, w, options)
inline constexpr api::returning<detail::indexer_method, 3> indexer_keys{};
}  // namespace heed::inline HEED_TARGET
