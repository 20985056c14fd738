// SPDX-License-Identifier: MIT
// Linformer: exact attention to r mixtures of the keys instead of the keys.
//
//   k'_r = sum_j E_rj k_j,  v'_r = sum_j F_rj v_j,   out = softmax(scale q k'') v'
//
//   auto out = heed::linformer_attention(q, k, v, e, f, options);
//   heed::linformer_attention_into([executor,] out, q, k, v, e, f, options = {}, modifiers...)
//
// | argument | axes                                                               |
// |----------|--------------------------------------------------------------------|
// | q, k, v  | as heed::attention                                                 |
// | e, f     | [r, keys], or [kv heads, r, keys]; the same scalars' accumulator   |
//
// Every mixture holds every key: not causal, and masks by key have no meaning. E and F are learned
// for one number of keys. Mixtures are summed in double and kept in the accumulator type, errors for
// float at most an eps of their terms' absolute sum at any number of keys, then as heed::attention.
// FLOPs a head: 2 r M (D + Dv) and 4 N r D; memory r (D + Dv) numbers a KV head. A NaN in k or v reaches every query of its
// head. The same bits for any number of threads. Throws as heed::attention, before anything is
// written. Source: Wang et al. 2020, arXiv 2006.04768, eq. 7.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <type_traits>
#include <utility>

#include "heed/attention/exact.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/tiled/microkernel.hpp"
#include "heed/simd/packet.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// A packet of `count` numbers that lie `stride` apart, as doubles; zeros where they are fewer.
template <class T>
[[nodiscard]] HEED_INLINE simd::packet<double> widened(const T* x, index stride,
                                                       index count) noexcept {
  constexpr index lanes = simd::lanes<double>;
  double wide[std::size_t{lanes}] = {};
  if (stride == 1 && count >= lanes) {
    for (index c = 0; c < lanes; ++c) wide[c] = static_cast<double>(x[c]);
  } else {
    for (index c = 0; c < (std::min)(count, lanes); ++c) {
      wide[c] = static_cast<double>(x[c * stride]);
    }
  }
  return simd::load<double>(wide);
}

/// to_i = sum_j mix_ij x_j of every batch and head, some rows i and channels at a time in registers. A
/// task is a head.
template <class E, class TP, class TX, class T>
void mix_tokens(E& exec, const view<const TP, 3>& mix, const view<const TX, 4>& x,
                const view<T, 4>& to) {
  constexpr index lanes = simd::lanes<double>;
  constexpr index together = 2 * lanes;
  const index tasks = x.extent(0) * x.extent(1);
  for_each_task(exec, worker_count(exec, tasks), tasks, [&](index, index task) noexcept {
    const index b = task / x.extent(1);
    const index h = task % x.extent(1);
    const index from = mix.extent(0) == 1 ? 0 : h;
    for (index first = 0; x.extent(2) > 0 && first < x.extent(3); first += together) {
      const index count = x.extent(3) - first;
      kernel::in_steps<4>(mix.extent(1), [&](auto rows, index i) {
        simd::packet<double> sum[std::size_t{decltype(rows)::value}][2];
        simd::unroll<decltype(rows)::value>(
            [&](auto r) HEED_INLINE_LAMBDA { sum[r][0] = sum[r][1] = simd::zero<double>(); });
        const TX* row = &x(b, h, 0, first);
        const TP* weights = &mix(from, i, 0);
        for (index j = 0; j < x.extent(2); ++j, row += x.stride(2), weights += mix.stride(2)) {
          const auto low = widened(row, x.stride(3), count);
          const auto high =
              count > lanes ? widened(row + lanes * x.stride(3), x.stride(3), count - lanes) : low;
          simd::unroll<decltype(rows)::value>([&](auto r) HEED_INLINE_LAMBDA {
            const auto weight = simd::broadcast(static_cast<double>(weights[r * mix.stride(1)]));
            sum[r][0] = simd::fmadd(weight, low, sum[r][0]);
            sum[r][1] = simd::fmadd(weight, high, sum[r][1]);
          });
        }
        simd::unroll<decltype(rows)::value>([&](auto r) HEED_INLINE_LAMBDA {
          double all[std::size_t{together}];
          simd::store(all, sum[r][0]);
          simd::store(all + lanes, sum[r][1]);
          for (index c = 0; c < (std::min)(count, together); ++c) {
            to(b, h, i + r, first + c) = static_cast<T>(all[c]);
          }
        });
      });
    }
    for (index i = 0; x.extent(2) == 0 && i < mix.extent(1); ++i) {
      for (index c = 0; c < x.extent(3); ++c) to(b, h, i, c) = T(0);
    }
  });
}

/// The mixtures of the tokens of x.
template <class A, class E, class TP, class TX>
[[nodiscard]] tensor<A, 4> mixed_tokens(E& exec, const view<const TP, 3>& mix,
                                        const view<const TX, 4>& x) {
  tensor<A, 4> out({x.extent(0), x.extent(1), mix.extent(1), x.extent(3)});
  mix_tokens(exec, mix, x, as_view(out));
  return out;
}

/// A projection, [r, keys] for all heads or [kv heads, r, keys], as the latter.
template <class T, int R>
[[nodiscard]] view<T, 3> as_projection(const view<T, R>& x) {
  static_assert(R == 2 || R == 3, "heed: a projection is [r, keys] or [kv heads, r, keys]");
  if constexpr (R == 3) {
    return x;
  } else {
    return view<T, 3>(x.data(), {1, x.extent(0), x.extent(1)}, {0, x.stride(0), x.stride(1)});
  }
}

template <class P>
[[nodiscard]] auto open_projection(const char* name, const P& p, index kv_heads, index keys) {
  static_assert(tensor_like<const P&>, "heed: a projection is a tensor");
  const view<const scalar_of<const P&>, 3> v = as_projection(as_view(p));
  if constexpr (rank_of<const P&> == 3) {
    require_equal(name, "heads", v.extent(0), "k", kv_heads);
  }
  require_equal(name, "keys", v.extent(2), "k", keys);
  return v;
}

struct linformer_method : api::attention_method {
  template <class E, class Out, class Q, class K, class V, class PE, class PF, class... M>
  static void write(E& exec, Out&& out, const Q& q, const K& k, const V& v, const PE& e,
                    const PF& f, const attention_options& options, const M&... modifiers) {
    require_tensors<const Q&, const K&, const V&>();
    using A = accumulate_t<scalar_of<const Q&>>;
    const auto q4 = input4(q);
    const auto k4 = input4(k);
    const auto v4 = input4(v);
    check_shapes(q4.extents(), k4.extents(), v4.extents());
    const auto pe = open_projection("e", e, k4.extent(1), k4.extent(2));
    const auto pf = open_projection("f", f, k4.extent(1), k4.extent(2));
    require_equal("f", "mixtures", pf.extent(1), "e", pe.extent(1));
    const tensor<A, 4> keys = mixed_tokens<A>(exec, pe, k4);
    const tensor<A, 4> values = mixed_tokens<A>(exec, pf, v4);
    attention_into(exec, as_rank4(as_view(std::forward<Out>(out))), q4, keys, values, options,
                   modifiers...);
  }
};

}  // namespace detail

/// linformer_attention([executor,] q, k, v, e, f, options = {}, modifiers...) -> a tensor of q's
/// family
inline constexpr api::returning<detail::linformer_method, 5> linformer_attention{};
/// linformer_attention_into([executor,] out, q, k, v, e, f, options = {}, modifiers...)
inline constexpr api::writing<detail::linformer_method, 5> linformer_attention_into{};

}  // namespace heed::inline HEED_TARGET
