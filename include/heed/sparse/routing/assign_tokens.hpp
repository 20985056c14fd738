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
// numbers a token, and for each worker 4 windows for each of 64 centroids. The same for any number
// of threads. Throws shape_error, option_error, std::bad_alloc. Roy, Saffar, Vaswani, Grangier
// 2021, arXiv 2003.05997, section 4.1.
#pragma once

#include <algorithm>
#include <string>
#include <type_traits>

#include "heed/api/overloads.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/top_k/qk_tiles.hpp"
#include "heed/kernel/top_k/streaming_top_k.hpp"
#include "heed/parallel/scratch_tasks.hpp"
#include "heed/sparse/select/token_norms.hpp"
#include "heed/sparse/select/top_k.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

inline void check_centroids(const std::array<index, 4>& x, const std::array<index, 3>& centroids) {
  require_equal("centroids", "head dim", centroids[2], "the tokens", x[3]);
  if (centroids[0] == 0 ? x[1] != 0 : x[1] % centroids[0] != 0) {
    fail<shape_error>("the tokens have " + std::to_string(x[1]) + " heads, not a multiple of the " +
                      std::to_string(centroids[0]) + " of the centroids");
  }
  check_listed("the tokens", x[2]);
}

/// scores[i] = c.x[i] become c.x'[i], n <= tile_plan<A>::group; `sum` is that of c's channels.
template <class A>
HEED_INLINE void centre_scores(A* scores, const A* mean, const A* inverse, A sum,
                               index n) noexcept {
  using plan = tile_plan<A>;
  if (n < plan::group) {
    for (index i = 0; i < n; ++i) scores[i] = (scores[i] - mean[i] * sum) * inverse[i];
    return;
  }
  const auto all = simd::broadcast(sum);
  simd::unroll<plan::packets>([&](auto p) HEED_INLINE_LAMBDA {
    constexpr index i = p * plan::lanes;
    const auto shift = simd::mul(simd::load(mean + i), all);
    simd::store(scores + i,
                simd::mul(simd::sub(simd::load(scores + i), shift), simd::load(inverse + i)));
  });
}

}  // namespace detail

namespace detail {

struct route_tokens_method : api::method<index> {
  template <class E, tensor_like X, tensor_like C>
  [[nodiscard]] static tensor<index, 4> call(E& exec, const X& x, const C& centroids,
                                             index window) {
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

    // Centroids meet the tokens as rows meet keys: the more of them at once, the less often tokens
    // are packed, but their lists stay in the second-level cache, and no thread is left without.
    constexpr index most_rows = 64;
    const index wanted = ceil_div(static_cast<index>(exec.concurrency()), heads);
    const index rows = (std::min)(most_rows, ceil_div(clusters, wanted));
    struct scratch_type {
      kernel::scored_rows_scratch<A> scored;
      kernel::running_largest<A> largest;
      A* sums = nullptr;  // of each centroid's channels
    };
    const index steps = ceil_div(clusters, rows);
    const auto allocate = [&](arena& c) noexcept {
      scratch_type s;
      s.scored.allocate(c, d);
      s.largest.allocate(c, rows, taken);
      s.sums = c.allocate<A>(rows);
      return s;
    };
    workspace memory;
    for_each_with_scratch(
        exec, heads * steps, memory, allocate, [&](scratch_type& s, index t) noexcept {
          const index b = t / steps / x4.extent(1);
          const index h = t / steps % x4.extent(1);
          const range m = intersect({0, clusters}, {t % steps * rows, (t % steps + 1) * rows});
          const kernel::rectangle<const A> centroid{&of(h / group, m.begin, 0), of.stride(1),
                                                    of.stride(2)};
          for (index r = 0; r < m.size(); ++r) {
            s.sums[r] = A(0);
            for (index i = 0; i < d; ++i) s.sums[r] += *centroid.at(r, i);
          }
          const A* const mean = &norms.mean(b, h, 0);
          const A* const inverse = &norms.inverse(b, h, 0);
          s.largest.start(m.size());
          kernel::each_scored_group(
              s.scored, centroid, m.size(),
              kernel::rectangle<const std::remove_const_t<scalar_of<const X&>>>{
                  &x4(b, h, 0, 0), x4.stride(2), x4.stride(3)},
              d, n, [&](range at, A* scores) noexcept {
                for (index r = 0; r < m.size(); ++r, scores += kernel::tile_plan<A>::group) {
                  detail::centre_scores(scores, mean + at.begin, inverse + at.begin, s.sums[r],
                                        at.size());
                  s.largest.take(r, scores, at.begin, at.size());
                }
              });
          for (index r = 0; r < m.size(); ++r) s.largest.ascending(r, &lists(b, h, m.begin + r, 0));
        });
    return lists;
  }
};

}  // namespace detail

/// route_tokens([executor,] x, centroids, window): centroids [kv heads, clusters, head dim] in the
/// accumulator type of x. A window of 0 is tokens / clusters, rounded up.
inline constexpr api::function<detail::route_tokens_method,
                               api::form<detail::route_tokens_method, 2>>
    route_tokens{};

}  // namespace heed::inline HEED_TARGET
