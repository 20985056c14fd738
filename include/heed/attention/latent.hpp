// SPDX-License-Identifier: MIT
// Multi-head latent attention: the newest tokens against a cache of latents.
//
//   key of head h at token j    [w_uk[h] latent[j], k_rope[j]]
//   value of head h at token j  w_uv[h] latent[j]
//
// | argument | axes                                            |
// |----------|-------------------------------------------------|
// | q        | [batch, heads, N, nope dim + rope dim], rotated |
// | w_uk     | [heads, nope dim, latent dim]                   |
// | w_uv     | [heads, value dim, latent dim]                  |
// | out      | [batch, heads, N, value dim]                    |
//
// Two forms of the same result. Absorbed: q' = [w_uk[h]' q_nope, q_rope] meets the cache's rows, and
// w_uv[h] is applied once to each row of the output; costs 2 N M (2 latent dim + rope dim) FLOPs a
// head beyond the projections of N rows, and reads the cache once for all heads: decode. Expanded:
// keys and values are made of the latents first, 2 M latent dim (nope dim + value dim) FLOPs a head
// and as many numbers of memory as a cache of full heads: prefill. They agree up to rounding;
// `latent_decode_into` takes the one of fewer FLOPs. The scale is 1 / sqrt(nope dim + rope dim)
// unless given. The N queries are the cache's last tokens: position, modifiers and the rest are as
// in `decode`. Sums in the accumulator, q' and expanded rows are kept in it. Throws shape_error,
// option_error, std::bad_alloc. DeepSeek-AI 2024, arXiv 2405.04434, equations 9 to 19.
#pragma once

#include <cmath>
#include <string>
#include <utility>

#include "heed/attention/decode.hpp"
#include "heed/cache/latent.hpp"
#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// y = x w or x w' for x [n, k]: row by row, sums in A. `w` as [k, m] through its strides.
template <class A, class X, class W>
void multiply_rows(kernel::rectangle<const X> x, kernel::rectangle<const W> w, index n, index k,
                   index m, kernel::rectangle<A> y) noexcept {
  for (index i = 0; i < n; ++i) {
    A* const to = y.at(i, 0);
    for (index c = 0; c < m; ++c) to[c] = A(0);
    if (w.column == 1) {
      for (index r = 0; r < k; ++r) {
        const A factor = static_cast<A>(*x.at(i, r));
        const W* const row = w.at(r, 0);
        for (index c = 0; c < m; ++c) to[c] += factor * static_cast<A>(row[c]);
      }
    } else {
      for (index c = 0; c < m; ++c) {
        A sum(0);
        for (index r = 0; r < k; ++r) {
          sum += static_cast<A>(*x.at(i, r)) * static_cast<A>(*w.at(r, c));
        }
        to[c] = sum;
      }
    }
  }
}

/// The arguments of a latent attention, checked.
template <class Q, class T, class UK, class UV>
struct latent_call {
  static_assert(tensor_like<const Q&> && rank_of<const Q&> == 4,
                "heed: queries of latent attention are batch x heads x tokens x channels");
  static_assert(rank_of<const UK&> == 3 && rank_of<const UV&> == 3,
                "heed: w_uk and w_uv are heads x channels x latent dim");
  using A = accumulate_t<scalar_of<const Q&>>;

  latent_call(const Q& query, const latent_cache<T>& c, const UK& w_uk, const UV& w_uv,
              const attention_options& o)
      : q(as_view(query)), uk(as_view(w_uk)), uv(as_view(w_uv)), cache(c), options(o) {
    require_equal("q", "batch", q.extent(0), "the cache", c.batch());
    require_equal("w_uk", "heads", uk.extent(0), "q", heads());
    require_equal("w_uv", "heads", uv.extent(0), "q", heads());
    require_equal("w_uk", "latent dim", uk.extent(2), "the cache", c.latent_dim());
    require_equal("w_uv", "latent dim", uv.extent(2), "the cache", c.latent_dim());
    require_equal("q", "head dim", q.extent(3), "w_uk and the cache's rope dim",
                  nope() + c.rope_dim());
    if (c.length() < q.extent(2)) {
      fail<shape_error>("q has " + std::to_string(q.extent(2)) + " tokens, the cache holds " +
                        std::to_string(c.length()));
    }
    if (!options.scale && q.extent(3) > 0) {
      options.scale = 1 / std::sqrt(static_cast<double>(q.extent(3)));
    }
  }
  [[nodiscard]] index heads() const noexcept { return q.extent(1); }
  [[nodiscard]] index nope() const noexcept { return uk.extent(1); }
  [[nodiscard]] index channels() const noexcept { return uv.extent(1); }

  template <class E, class Out, class... M>
  void absorbed(E& exec, const Out& out, const M&... modifiers) const {
    const index n = q.extent(2);
    const index latent = cache.latent_dim();
    tensor<A, 4> wide({q.extent(0), heads(), n, cache.head_dim()});
    tensor<A, 4> mixed({q.extent(0), heads(), n, latent});
    const index tasks = q.extent(0) * heads();
    for_each_task(exec, worker_count(exec, tasks), tasks, [&](index, index t) noexcept {
      const index b = t / heads();
      const index h = t % heads();
      A* const to = wide.data() + t * n * cache.head_dim();
      multiply_rows<A>(rows(q, b, h), rows(uk, h), n, nope(), latent, {to, cache.head_dim(), 1});
      const auto rope = rows(q, b, h);
      kernel::copy_tile<scalar_of<const Q&>, A>({rope.at(0, nope()), rope.row, rope.column},
                                                {to + latent, cache.head_dim(), 1}, n,
                                                cache.rope_dim());
    });
    decode_into(exec, mixed, wide, cache, options, modifiers...);
    for_each_task(exec, worker_count(exec, tasks), tasks, [&](index, index t) noexcept {
      const index b = t / heads();
      const index h = t % heads();
      for (index i = 0; i < n; ++i) {
        const A* const z = mixed.data() + (t * n + i) * latent;
        for (index c = 0; c < channels(); ++c) {
          A sum(0);
          for (index l = 0; l < latent; ++l) sum += z[l] * static_cast<A>(uv(h, c, l));
          out(b, h, i, c) = static_cast<typename Out::scalar>(sum);
        }
      }
    });
  }

  template <class E, class Out, class... M>
  void expanded(E& exec, const Out& out, const M&... modifiers) const {
    const index m = cache.length();
    const index latent = cache.latent_dim();
    tensor<A, 4> k({q.extent(0), heads(), m, q.extent(3)});
    tensor<A, 4> v({q.extent(0), heads(), m, channels()});
    const index tasks = q.extent(0) * heads();
    for_each_task(exec, worker_count(exec, tasks), tasks, [&](index, index t) noexcept {
      const index h = t % heads();
      const row_run<T> from = cache.keys(t / heads(), 0, 0);
      const kernel::rectangle<const T> row{from.data, from.stride, 1};
      A* const to = k.data() + t * m * q.extent(3);
      multiply_rows<A>(row, rows(uk, h).transposed(), m, latent, nope(), {to, q.extent(3), 1});
      kernel::copy_tile<T, A>({row.at(0, latent), row.row, 1}, {to + nope(), q.extent(3), 1}, m,
                              cache.rope_dim());
      multiply_rows<A>(row, rows(uv, h).transposed(), m, latent, channels(),
                       {v.data() + t * m * channels(), channels(), 1});
    });
    attention_into(exec, out, q, k, v, options.with_offset(bottom_right(q.extent(2), m)),
                   modifiers...);
  }

  /// Whether the absorbed form takes fewer FLOPs.
  [[nodiscard]] bool absorbs() const noexcept {
    const auto n = static_cast<double>(q.extent(2));
    const auto m = static_cast<double>(cache.length());
    const auto latent = static_cast<double>(cache.latent_dim());
    const auto full = static_cast<double>(nope() + channels());
    const auto rope = static_cast<double>(cache.rope_dim());
    return n * m * (2 * latent + rope) + n * latent * full <=
           n * m * (full + rope) + m * latent * full;
  }

  view<const scalar_of<const Q&>, 4> q;
  view<const scalar_of<const UK&>, 3> uk;
  view<const scalar_of<const UV&>, 3> uv;
  const latent_cache<T>& cache;
  attention_options options;

 private:
  template <class S>
  [[nodiscard]] static kernel::rectangle<const S> rows(const view<const S, 4>& x, index b,
                                                       index h) noexcept {
    return {x.data() + b * x.stride(0) + h * x.stride(1), x.stride(2), x.stride(3)};
  }
  template <class S>
  [[nodiscard]] static kernel::rectangle<const S> rows(const view<const S, 3>& x,
                                                       index h) noexcept {
    return {x.data() + h * x.stride(0), x.stride(1), x.stride(2)};
  }
};

/// Throws unless out is [batch, heads, N, value dim].
template <class Call, class Out>
void check_latent_out(const Call& call, const Out& out) {
  static_assert(Out::rank == 4, "heed: the output is batch x heads x tokens x channels");
  const std::array<index, 4> expected{call.q.extent(0), call.heads(), call.q.extent(2),
                                      call.channels()};
  if (out.extents() != expected) {
    fail<shape_error>("out has extents " + format_extents(out.extents()) + ", the result has " +
                      format_extents(expected));
  }
}

/// How latent attention is computed.
enum class latent_form { fewer_flops, absorbed, expanded };

template <latent_form Form>
struct latent_method : api::cache_method {
  template <class E, class Out, class Q, class UK, class UV, class T, class... M>
  static void write(E& exec, Out&& out, const Q& q, const UK& w_uk, const UV& w_uv,
                    const latent_cache<T>& cache, const attention_options& options,
                    const M&... modifiers) {
    const latent_call<Q, T, UK, UV> call(q, cache, w_uk, w_uv, options);
    const auto to = as_view(std::forward<Out>(out));
    check_latent_out(call, to);
    if constexpr (Form == latent_form::absorbed) {
      call.absorbed(exec, to, modifiers...);
    } else if constexpr (Form == latent_form::expanded) {
      call.expanded(exec, to, modifiers...);
    } else {
      call.absorbs() ? call.absorbed(exec, to, modifiers...)
                     : call.expanded(exec, to, modifiers...);
    }
  }
};

}  // namespace detail

/// latent_decode_into([executor,] out, q, w_uk, w_uv, cache, options = {}, modifiers...): the form
/// of fewer FLOPs.
inline constexpr api::writing<detail::latent_method<detail::latent_form::fewer_flops>, 4>
    latent_decode_into{};
/// absorbed_latent_attention_into([executor,] out, q, w_uk, w_uv, cache, options = {}, modifiers...)
inline constexpr api::writing<detail::latent_method<detail::latent_form::absorbed>, 4>
    absorbed_latent_attention_into{};
/// expanded_latent_attention_into([executor,] out, q, w_uk, w_uv, cache, options = {}, modifiers...)
inline constexpr api::writing<detail::latent_method<detail::latent_form::expanded>, 4>
    expanded_latent_attention_into{};

}  // namespace heed::inline HEED_TARGET
