// SPDX-License-Identifier: MIT
// Balanced clusters of tokens: each centroid takes the tokens nearest to it, as many as any other.
//
// | function     | result                                                                |
// |--------------|-----------------------------------------------------------------------|
// | route_tokens | [batch, heads, clusters, window] of tokens, for `routing_attention`   |
//
// Tokens are compared by c.x', x' the token minus its mean, of length 1 (layer normalisation
// without scale and shift). A cluster's tokens ascend, -1 where there are fewer than `window`; of
// equal scores the lower tokens are taken; NaN is never preferred. A token may be in several
// clusters or in none. Query heads that share a KV head share its centroids. Queries and keys are
// routed by one call each:
//
//   const auto keys = heed::route_tokens(pool, k, centroids, window);
//   const auto queries = heed::route_tokens(pool, q, centroids, window);
//   const auto out = heed::routing_attention(pool, q, k, v, queries, keys, {}, heed::causal());
//
// Scores accumulate in float (double for double). Cost 2 N clusters D FLOPs a head; memory 2
// numbers a token, and for each worker the scores of 16 centroids. The same for any number of
// threads. Throws shape_error, option_error, std::bad_alloc. Roy, Saffar, Vaswani, Grangier 2021,
// arXiv 2003.05997, section 4.1.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "heed/parallel/scratch_tasks.hpp"
#include "heed/sparse/largest_ascending.hpp"
#include "heed/sparse/selection.hpp"
#include "heed/sparse/token_norms.hpp"

namespace heed {

namespace detail {

inline void check_centroids(const std::array<index, 4>& x, const std::array<index, 3>& centroids) {
  require_equal("centroids", "head dim", centroids[2], "the tokens", x[3]);
  if (centroids[0] == 0 ? x[1] != 0 : x[1] % centroids[0] != 0) {
    fail<shape_error>("the tokens have " + std::to_string(x[1]) + " heads, not a multiple of the " +
                      std::to_string(centroids[0]) + " of the centroids");
  }
  if (x[2] > std::numeric_limits<std::int32_t>::max()) {
    fail<shape_error>("the tokens are " + std::to_string(x[2]) + ", lists hold at most " +
                      std::to_string(std::numeric_limits<std::int32_t>::max()));
  }
}

}  // namespace detail

/// route_tokens(executor, x, centroids, window): centroids [kv heads, clusters, head dim] in the
/// accumulator type of x. A window of 0 is tokens / clusters, rounded up.
template <executor E, tensor_like X, tensor_like C>
[[nodiscard]] tensor<index, 4> route_tokens(E& exec, const X& x, const C& centroids,
                                            index window = 0) {
  const auto x4 = detail::selection_input(x);
  using A = accumulate_t<scalar_of<const X&>>;
  static_assert(rank_of<const C&> == 3, "heed: centroids have axes heads, clusters, channels");
  static_assert(std::is_same_v<std::remove_const_t<scalar_of<const C&>>, A>,
                "heed: centroids have the accumulator type of the tokens");
  const auto of = as_view(centroids);
  detail::check_centroids(x4.extents(), of.extents());
  if (window < 0) fail<option_error>("window is " + std::to_string(window) + ", below 0");
  const index n = x4.extent(2);
  const index d = x4.extent(3);
  const index clusters = of.extent(1);
  const index taken = window > 0 ? window : clusters > 0 ? ceil_div(n, clusters) : 0;
  tensor<index, 4> lists({x4.extent(0), x4.extent(1), clusters, taken});
  const index heads = x4.extent(0) * x4.extent(1);
  if (heads * clusters == 0 || taken == 0) return lists;
  const index group = x4.extent(1) / of.extent(0);
  const token_norms<A> norms(exec, x4);

  constexpr index rows = 16;
  const index steps = ceil_div(clusters, rows);
  const index tasks = heads * steps;
  struct scratch_type {
    row_scores_scratch<A> scores;
    detail::largest_scratch<A> largest;
  };
  const auto carve = [&](carver& c) noexcept {
    scratch_type s;
    s.scores.carve(c, rows, n, d);
    s.largest.carve(c, n);
    return s;
  };
  workspace memory;
  for_each_with_scratch(exec, tasks, memory, carve, [&](scratch_type& own, index t) noexcept {
    row_scores_scratch<A>& s = own.scores;
    detail::largest_scratch<A>& largest = own.largest;
    const index b = t / steps / x4.extent(1);
    const index h = t / steps % x4.extent(1);
    const range m = intersect({0, clusters}, {t % steps * rows, (t % steps + 1) * rows});
    for (index r = 0; r < m.size(); ++r) {
      s.load(r, &of(h / group, m.begin + r, 0), of.stride(2), d);
    }
    s.score(m.size(), x4, b, h, n);
    const A* const mean = &norms.mean(b, h, 0);
    const A* const inverse = &norms.inverse(b, h, 0);
    for (index r = 0; r < m.size(); ++r) {
      A sum = A(0);
      for (index i = 0; i < d; ++i) sum += s.q[r * d + i];
      A* const score = s.row(r);
      for (index i = 0; i < n; ++i) score[i] = (score[i] - mean[i] * sum) * inverse[i];
      detail::largest_ascending(score, n, taken, &lists(b, h, m.begin + r, 0), largest);
    }
  });
  return lists;
}

}  // namespace heed
