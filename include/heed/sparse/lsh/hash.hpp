// SPDX-License-Identifier: MIT
// Buckets of angular locality-sensitive hashing: near directions fall into one bucket, mostly.
//
//   bucket(x) = argmax over [x R; -x R],  R [head dim, buckets / 2] of standard normal numbers
//
// | function    | result                                                           |
// |-------------|------------------------------------------------------------------|
// | lsh_buckets | [batch, heads, rounds, tokens] of indices, for `lsh_attention`   |
//
// Each head and round has an R of its own, drawn from the seed; query heads that share a KV head
// share its R, and more rounds keep the first ones. `factor` f > 1 hashes twice, to buckets / f and
// to f values, whose pair is the bucket: many buckets at the price of few, somewhat coarser. The
// length of x does not matter. Ties go to the lower index; NaN is never preferred; a row of zeros
// is in bucket 0. Products accumulate in float (double for double), so that a token all but between
// two buckets may change sides between machines, never with the number of threads. Cost buckets D
// FLOPs a token and round
// ((buckets / f + f) D with a factor); memory the result and R. Throws shape_error, option_error,
// std::bad_alloc.
//
// Sources: Kitaev, Kaiser, Levskaya 2020, arXiv 2001.04451, section 2; Andoni, Indyk, Laarhoven,
// Razenshteyn, Schmidt 2015, arXiv 1509.02897.
#pragma once

#include <cstdint>
#include <string>

#include "heed/api/overloads.hpp"
#include "heed/core/gaussian.hpp"
#include "heed/core/target.hpp"
#include "heed/sparse/lsh/sorted_buckets.hpp"
#include "heed/sparse/select/top_k.hpp"

namespace heed::inline HEED_TARGET {

struct lsh_options {
  index rounds = 4;    ///< hashes of their own
  index buckets = 64;  ///< a round's, even, at most most_lsh_buckets
  index factor = 1;    ///< 1, or an even divisor of `buckets` with an even quotient
  std::uint64_t seed = 0;
};

/// Buckets of queries and keys by the same rotations.
struct lsh_pair {
  tensor<index, 4> queries;
  tensor<index, 4> keys;
};

namespace detail {

inline void check_lsh(const lsh_options& o) {
  const auto even = [](index n) { return n > 0 && n % 2 == 0; };
  const bool factors =
      o.factor == 1 || (even(o.factor) && o.buckets % o.factor == 0 && even(o.buckets / o.factor));
  if (o.rounds < 0 || !even(o.buckets) || o.buckets > most_lsh_buckets || !factors) {
    fail<option_error>("lsh has rounds " + std::to_string(o.rounds) + ", buckets " +
                       std::to_string(o.buckets) + " (even, at most " +
                       std::to_string(most_lsh_buckets) + "), factor " + std::to_string(o.factor) +
                       " (1, or even with an even quotient)");
  }
}

/// [heads, rounds, count, dim] standard normal numbers, those of each head and round from a seed of
/// their own; `which` tells the tables of one seed apart.
template <class A>
[[nodiscard]] tensor<A, 4> rotations(index heads, index rounds, index count, index dim,
                                     std::uint64_t seed, std::uint64_t which) {
  tensor<A, 4> table({heads, rounds, count, dim});
  for (index n = 0; n < heads * rounds; ++n) {
    const index at = n % rounds * heads + n / rounds;  // more rounds keep the first ones
    const std::uint64_t own = 2 * static_cast<std::uint64_t>(at) + which;
    gaussian_source gaussian(seed + 0x9E3779B97F4A7C15U * (own + 1));
    for (index i = 0; i < count * dim; ++i) {
      table.data()[n * count * dim + i] = static_cast<A>(gaussian());
    }
  }
  return table;
}

/// argmax over [y; -y].
template <class A>
[[nodiscard]] index signed_argmax(const A* y, index n) noexcept {
  index best = 0;
  A most = -std::numeric_limits<A>::infinity();
  for (index j = 0; j < n; ++j) {
    if (y[j] > most) {
      most = y[j];
      best = j;
    }
  }
  for (index j = 0; j < n; ++j) {
    if (-y[j] > most) {
      most = -y[j];
      best = n + j;
    }
  }
  return best;
}

template <class E, class T, class A>
[[nodiscard]] tensor<index, 4> hash_tokens(E& exec, const view<const T, 4>& x,
                                           const tensor<A, 4>& first, const tensor<A, 4>& second) {
  constexpr index rows = 32;
  const index n = x.extent(2);
  const index d = x.extent(3);
  const index rounds = first.extent(1);
  const index steps = ceil_div(n, rows);
  const index group = first.extent(0) > 0 ? x.extent(1) / first.extent(0) : 1;
  tensor<index, 4> buckets({x.extent(0), x.extent(1), rounds, n});
  const view<const A, 4> tables[] = {as_view(first), as_view(second)};
  for_each_scored<A>(
      exec, x.extent(0) * x.extent(1) * steps, rows, (std::max)(first.extent(2), second.extent(2)),
      d, [&](row_scores_scratch<A>& s, index t) noexcept {
        const index b = t / steps / x.extent(1);
        const index h = t / steps % x.extent(1);
        const range i = intersect({0, n}, {t % steps * rows, (t % steps + 1) * rows});
        for (index r = 0; r < i.size(); ++r) {
          s.load(r, &x(b, h, i.begin + r, 0), x.stride(3), d);
        }
        for (index round = 0; round < rounds; ++round) {
          index* const to = &buckets(b, h, round, 0) + i.begin;
          std::fill_n(to, i.size(), index{0});
          for (const auto& table : tables) {
            const index half = table.extent(2);
            if (half == 0) continue;
            s.score(i.size(), table, h / group, round, half);
            for (index r = 0; r < i.size(); ++r) {
              to[r] = to[r] * 2 * half + signed_argmax(s.row(r), half);
            }
          }
        }
      });
  return buckets;
}

template <class E, class T>
[[nodiscard]] auto hashed(E& exec, const view<const T, 4>& x, const lsh_options& o, index heads) {
  using A = accumulate_t<T>;
  const index second = o.factor == 1 ? 0 : o.factor / 2;
  return hash_tokens(
      exec, x, rotations<A>(heads, o.rounds, o.buckets / o.factor / 2, x.extent(3), o.seed, 0),
      rotations<A>(heads, o.rounds, second, x.extent(3), o.seed, 1));
}

}  // namespace detail

namespace detail {

struct lsh_buckets_method : api::method<lsh_options> {
  template <class... X>
  [[nodiscard]] static consteval bool accepts() noexcept {
    return (tensor_like<const std::remove_cvref_t<X>&> && ...);
  }
  template <class E, tensor_like X>
  [[nodiscard]] static tensor<index, 4> call(E& exec, const X& x, const lsh_options& o) {
    detail::check_lsh(o);
    const auto x4 = detail::selection_input(x);
    return detail::hashed(exec, x4, o, x4.extent(1));
  }
  template <class E, tensor_like Q, tensor_like K>
  [[nodiscard]] static lsh_pair call(E& exec, const Q& q, const K& k, const lsh_options& o) {
    detail::check_lsh(o);
    const auto q4 = detail::selection_input(q);
    const auto k4 = detail::selection_input(k);
    detail::check_selection_call(q4.extents(), k4.extents(), {});
    return {detail::hashed(exec, q4, o, k4.extent(1)), detail::hashed(exec, k4, o, k4.extent(1))};
  }
};

}  // namespace detail

/// lsh_buckets([executor,] x, options): the buckets of tokens that are queries and keys in one.
/// lsh_buckets([executor,] q, k, options): of queries and keys apart.
inline constexpr api::function<detail::lsh_buckets_method, api::form<detail::lsh_buckets_method, 1>,
                               api::form<detail::lsh_buckets_method, 2>>
    lsh_buckets{};

}  // namespace heed::inline HEED_TARGET
