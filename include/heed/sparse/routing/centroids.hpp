// SPDX-License-Identifier: MIT
// Centroids of routing: spherical k-means on tokens, moved by an exponential average.
//
//   x' = (x - mean(x)) / |x - mean(x)|,  c(x) = argmax_c m_c.x'   (ties to the lower cluster)
//   m_c <- unit(decay m_c + (1 - decay) mean of the x' of cluster c), where it has any
//
// | function          | does                                                                    |
// |-------------------|-------------------------------------------------------------------------|
// | routing_centroids | draws centroids from the tokens and makes `steps` steps                 |
// | update_centroids  | one step, with the tokens of a batch: an average over time              |
//
// Centroids are [heads, clusters, head dim] in the accumulator type. Tokens are one or two
// tensors [batch, heads, tokens, head dim] pooled, usually the queries and the keys, whose
// centroids are shared: their heads are multiples of the centroids', consecutive ones sharing. A
// constant token, which has no direction, and one that holds a NaN belong to no cluster.
//
// Means are summed in double in the order of the tokens: the same bits for any number of threads.
// Cost 2 clusters D FLOPs a token and step; memory 3 numbers a token and the means. Throws
// shape_error, option_error, std::bad_alloc before the centroids change. Roy, Saffar, Vaswani,
// Grangier 2021, arXiv 2003.05997, section 4.1.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "heed/core/target.hpp"
#include "heed/sparse/routing/assign_tokens.hpp"

namespace heed::inline HEED_TARGET {

struct centroid_options {
  index clusters = 16;
  index steps = 10;  ///< of k-means, without an average over time
  std::uint64_t seed = 0;
};

namespace detail {

/// The cluster of each token, -1 for none: [batch, heads, tokens].
template <class E, class T, class A>
[[nodiscard]] tensor<std::int32_t, 3> nearest_centroids(E& exec, const view<const T, 4>& x,
                                                        const view<const A, 3>& centroids,
                                                        const token_norms<A>& norms) {
  constexpr index rows = 32;
  const index n = x.extent(2);
  const index d = x.extent(3);
  const index clusters = centroids.extent(1);
  const index steps = ceil_div(n, rows);
  const index group = centroids.extent(0) > 0 ? x.extent(1) / centroids.extent(0) : 1;
  tensor<std::int32_t, 3> nearest({x.extent(0), x.extent(1), n});
  // As keys of one batch.
  const view<const A, 4> keys(centroids.data(), {1, centroids.extent(0), clusters, d},
                              {0, centroids.stride(0), centroids.stride(1), centroids.stride(2)});
  std::vector<A> sums(static_cast<std::size_t>(centroids.extent(0) * clusters), A(0));
  for (index m = 0; m < centroids.extent(0) * clusters; ++m) {
    for (index c = 0; c < d; ++c) {
      sums[static_cast<std::size_t>(m)] += centroids(m / clusters, m % clusters, c);
    }
  }
  for_each_scored<A>(exec, x.extent(0) * x.extent(1) * steps, rows, clusters, d,
                     [&](row_scores_scratch<A>& s, index t) noexcept {
                       const index b = t / steps / x.extent(1);
                       const index h = t / steps % x.extent(1);
                       const range i =
                           intersect({0, n}, {t % steps * rows, (t % steps + 1) * rows});
                       const A* const sum = sums.data() + h / group * clusters;
                       for (index r = 0; r < i.size(); ++r) {
                         s.load(r, &x(b, h, i.begin + r, 0), x.stride(3), d);
                       }
                       s.score(i.size(), keys, 0, h / group, clusters);
                       for (index r = 0; r < i.size(); ++r) {
                         const A mean = norms.mean(b, h, i.begin + r);
                         const A* const score = s.row(r);
                         std::int32_t best = -1;
                         A most = -std::numeric_limits<A>::infinity();
                         for (index m = 0; m < clusters; ++m) {
                           const A value = score[m] - mean * sum[m];
                           if (!(value > most)) continue;
                           most = value;
                           best = static_cast<std::int32_t>(m);
                         }
                         const A inverse = norms.inverse(b, h, i.begin + r);
                         nearest(b, h, i.begin + r) = inverse > A(0) ? best : -1;
                       }
                     });
  return nearest;
}

/// The sums of normalised tokens by cluster, and how many there are.
struct cluster_sums {
  tensor<double, 3> sum;    // [heads, clusters, head dim]
  tensor<double, 2> count;  // [heads, clusters]

  template <class E, class T, class A>
  void add(E& exec, const view<const T, 4>& x, const view<const A, 3>& centroids) {
    const token_norms<A> norms(exec, x);
    const auto nearest = nearest_centroids(exec, x, centroids, norms);
    const index heads = centroids.extent(0);
    const index group = heads > 0 ? x.extent(1) / heads : 1;
    // By blocks of channels: every sum is of one task, in the order of the tokens.
    constexpr index block = 16;
    const index blocks = ceil_div(x.extent(3), block);
    if (heads * blocks == 0) return;
    for_each_task(
        exec, worker_count(exec, heads * blocks), heads * blocks, [&](index, index t) noexcept {
          const index h = t / blocks;
          const range c =
              intersect({0, x.extent(3)}, {t % blocks * block, (t % blocks + 1) * block});
          for (index n = 0; n < x.extent(0) * group * x.extent(2); ++n) {
            const index b = n / x.extent(2) / group;
            const index of = h * group + n / x.extent(2) % group;
            const index i = n % x.extent(2);
            const index m = nearest(b, of, i);
            if (m < 0) continue;
            const auto mean = static_cast<double>(norms.mean(b, of, i));
            const auto inverse = static_cast<double>(norms.inverse(b, of, i));
            double* const to = &sum(h, m, 0);
            for (index k = c.begin; k < c.end; ++k) {
              to[k] += (static_cast<double>(static_cast<A>(x(b, of, i, k))) - mean) * inverse;
            }
            if (c.begin == 0) count(h, m) += 1;
          }
        });
  }

  template <class A>
  void move(tensor<A, 3>& centroids, double decay) const {
    const index d = centroids.extent(2);
    std::vector<double> moved(static_cast<std::size_t>(d));
    for (index m = 0; m < centroids.extent(0) * centroids.extent(1); ++m) {
      const index h = m / centroids.extent(1);
      const index cluster = m % centroids.extent(1);
      if (!(count(h, cluster) > 0)) continue;
      double square = 0;
      for (index c = 0; c < d; ++c) {
        double& x = moved[static_cast<std::size_t>(c)];
        x = decay * static_cast<double>(centroids(h, cluster, c)) +
            (1 - decay) * sum(h, cluster, c) / count(h, cluster);
        square += x * x;
      }
      if (!(square > 0)) continue;
      for (index c = 0; c < d; ++c) {
        centroids(h, cluster, c) =
            static_cast<A>(moved[static_cast<std::size_t>(c)] / std::sqrt(square));
      }
    }
  }
};

}  // namespace detail

/// update_centroids(executor, centroids, decay, tokens...): one step.
template <executor E, class A, tensor_like... X>
void update_centroids(E& exec, tensor<A, 3>& centroids, double decay, const X&... tokens) {
  static_assert((std::is_same_v<accumulate_t<scalar_of<const X&>>, A> && ...),
                "heed: centroids have the accumulator type of the tokens");
  if (!(decay >= 0 && decay <= 1)) {
    fail<option_error>("decay is " + std::to_string(decay) + ", must be in [0, 1]");
  }
  (detail::check_centroids(detail::selection_input(tokens).extents(), centroids.extents()), ...);
  detail::cluster_sums sums{tensor<double, 3>(centroids.extents()),
                            tensor<double, 2>({centroids.extent(0), centroids.extent(1)})};
  (sums.add(exec, detail::selection_input(tokens), view<const A, 3>(as_view(centroids))), ...);
  sums.move(centroids, decay);
}

/// routing_centroids(executor, options, tokens, more tokens...): one set of centroids for each head
/// of the last tensor. Cluster c starts at a token drawn from the c-th part of the last tensor's
/// sequences, one batch after another.
template <executor E, tensor_like First, tensor_like... More>
[[nodiscard]] auto routing_centroids(E& exec, const centroid_options& o, const First& tokens,
                                     const More&... more) {
  if (o.clusters < 1 || o.steps < 0) {
    fail<option_error>("routing has clusters " + std::to_string(o.clusters) + ", steps " +
                       std::to_string(o.steps));
  }
  static_assert(sizeof...(More) <= 1, "heed: centroids are of one or two tensors of tokens");
  const auto last = [&] {
    if constexpr (sizeof...(More) == 0) {
      return detail::selection_input(tokens);
    } else {
      return detail::selection_input((more, ...));
    }
  }();
  using A = accumulate_t<scalar_of<const First&>>;
  tensor<A, 3> centroids({last.extent(1), o.clusters, last.extent(3)});
  detail::check_centroids(detail::selection_input(tokens).extents(), centroids.extents());
  const token_norms<A> norms(exec, last);
  std::mt19937_64 draw(o.seed);
  for (index h = 0; h < last.extent(1); ++h) {
    for (index m = 0; m < o.clusters; ++m) {
      const double at = (static_cast<double>(m) + static_cast<double>(draw() >> 11U) * 0x1p-53) /
                        static_cast<double>(o.clusters);
      if (last.extent(0) * last.extent(2) == 0) continue;
      const auto i = (std::min)(static_cast<index>(at * static_cast<double>(last.extent(2))),
                                last.extent(2) - 1);
      const index b = m % last.extent(0);
      for (index c = 0; c < last.extent(3); ++c) {
        centroids(h, m, c) =
            (static_cast<A>(last(b, h, i, c)) - norms.mean(b, h, i)) * norms.inverse(b, h, i);
      }
    }
  }
  for (index step = 0; step < o.steps; ++step) {
    update_centroids(exec, centroids, 0.0, tokens, more...);
  }
  return centroids;
}

}  // namespace heed::inline HEED_TARGET
