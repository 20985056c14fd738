// SPDX-License-Identifier: MIT
// The gradient of Linformer attention, of its projections too.
//
//   k' = E k,  v' = F v,  out = softmax(scale q k'') v'       exact attention to r mixtures
//   dq, dk', dv' by attention_backward;  dk = E' dk',  dv = F' dv';  dE = dk' k',  dF = dv' v'
//
//   auto g = heed::linformer_attention_backward(q, k, v, e, f, d_out, options);
//   g.query, g.key, g.value, g.key_projection, g.value_projection
//   heed::linformer_attention_backward_into(pool, heed::gradients(dq, dk, dv, de, df), q, k, v, e, f,
//                                           d_out, options);
//
// Axes, options and modifiers as in linformer.hpp, those of the forward call; the gradient of a
// projection that all heads share is the sum over batch and heads. The mixtures and the forward
// pass over them are computed anew. No output and no log-sum-exp are taken: they would save that
// pass alone, 4 N r D of the FLOPs and 5 to 8 % of the time (measured; 512 and 2,048 tokens, r =
// 64 and 256, D = 64), for the sums of the projections are the most of it. Sums over tokens,
// channels and heads are double, rounded once. A NaN in k or v reaches every gradient of its head;
// a row without a visible mixture has gradient 0. Memory: the mixtures, their gradients and an
// output. FLOPs a head: 6 r M (D + Dv) and 14 N r D. The same bits for any number of threads.
// Throws shape_error, option_error, std::bad_alloc, before anything is written.
// Wang et al. 2020, arXiv 2006.04768, eq. 7; reverse accumulation.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>

#include "heed/attention/backward/attention_backward.hpp"
#include "heed/attention/linformer.hpp"
#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET {

/// The gradients of everything that Linformer attention reads: tensors, or views to write them to.
template <class Q, class K, class V, class E, class F>
struct linformer_gradients {
  Q query;
  K key;
  V value;
  E key_projection;
  F value_projection;
};

/// `linformer_attention_backward_into(gradients(dq, dk, dv, de, df), q, k, v, e, f, d_out)`
template <writable_tensor Q, writable_tensor K, writable_tensor V, writable_tensor E,
          writable_tensor F>
[[nodiscard]] constexpr auto gradients(Q&& dq, K&& dk, V&& dv, E&& de, F&& df) {
  return linformer_gradients<view_of<Q>, view_of<K>, view_of<V>, view_of<E>, view_of<F>>{
      as_view(std::forward<Q>(dq)), as_view(std::forward<K>(dk)), as_view(std::forward<V>(dv)),
      as_view(std::forward<E>(de)), as_view(std::forward<F>(df))};
}

namespace detail {

/// to = d x', over channels, batch and the heads that share a projection. A task is some rows of one.
template <class A, class E, class TX, class TP>
void projection_gradient(E& exec, const tensor<A, 4>& d, const view<const TX, 4>& x,
                         const view<TP, 3>& to, bool shared) {
  constexpr index together = 4;
  constexpr index lanes = simd::lanes<double>;
  const index groups = ceil_div(to.extent(1), together);
  const index tasks = to.extent(0) * groups;
  for_each_task(exec, worker_count(exec, tasks), tasks, [&](index, index task) noexcept {
    const index p = task / groups;
    const index first = task % groups * together;
    const index end = shared ? x.extent(1) : p + 1;
    kernel::in_steps<together>(
        (std::min)(together, to.extent(1) - first), [&](auto rows, index at) {
          const index i = first + at;
          for (index j = 0; j < to.extent(2); ++j) {
            simd::packet<double> sum[std::size_t{decltype(rows)::value}];
            const auto each = [&](auto&& f)
                                  HEED_INLINE_LAMBDA { simd::unroll<decltype(rows)::value>(f); };
            each([&](auto r) HEED_INLINE_LAMBDA { sum[r] = simd::zero<double>(); });
            for (index b = 0; x.extent(3) > 0 && b < x.extent(0); ++b) {
              for (index h = p; h < end; ++h) {
                const TX* const row = &x(b, h, j, 0);
                const A* const of = &d(b, h, i, 0);
                for (index c = 0; c < x.extent(3); c += lanes) {
                  const index count = x.extent(3) - c;
                  const auto key = widened(row + c * x.stride(3), x.stride(3), count);
                  each([&](auto r) HEED_INLINE_LAMBDA {
                    sum[r] = simd::fmadd(key, widened(of + r * x.extent(3) + c, 1, count), sum[r]);
                  });
                }
              }
            }
            each([&](auto r)
                     HEED_INLINE_LAMBDA { to(p, i + r, j) = static_cast<TP>(simd::sum(sum[r])); });
          }
        });
  });
}

/// Throws unless a projection's gradient has its axes.
template <class To, class P>
[[nodiscard]] auto projection_to(const char* name, const To& to, const char* other, const P& of) {
  static_assert(rank_of<const To&> == rank_of<const P&>,
                "heed: a gradient has another rank than the tensor it belongs to");
  if (as_view(to).extents() != as_view(of).extents()) {
    fail<shape_error>(std::string(name) + " has extents " + format_extents(as_view(to).extents()) +
                      ", " + other + " has " + format_extents(as_view(of).extents()));
  }
  return as_projection(as_view(to));
}

struct linformer_backward_method : attention_method {
  template <class E, class G, class Q, class K, class V, class PE, class PF, class C, class... M>
  static void write(E& exec, const G& to, const Q& q, const K& k, const V& v, const PE& e,
                    const PF& f, const C& d_out, const attention_options& options,
                    const M&... modifiers) {
    require_tensors<const Q&, const K&, const V&>();
    static_assert(tensor_like<const C&>, "heed: d_out is a tensor");
    static_assert(
        requires { to.key_projection, to.value_projection; },
        "heed: the gradients are heed::gradients(dq, dk, dv, de, df)");
    using A = accumulate_t<scalar_of<const Q&>>;
    const auto q4 = input4(q);
    const auto k4 = input4(k);
    const auto v4 = input4(v);
    check_shapes(q4.extents(), k4.extents(), v4.extents());
    const auto pe = open_projection("e", e, k4.extent(1), k4.extent(2));
    const auto pf = open_projection("f", f, k4.extent(1), k4.extent(2));
    require_equal("f", "mixtures", pf.extent(1), "e", pe.extent(1));
    const auto d4 = matching("d_out", as_view(d_out), "out", result_extents(q, v));
    const auto dq = matching("dq", to.query, "q", as_view(q).extents());
    const auto dk = matching("dk", to.key, "k", as_view(k).extents());
    const auto dv = matching("dv", to.value, "v", as_view(v).extents());
    const auto de = projection_to("de", to.key_projection, "e", e);
    const auto df = projection_to("df", to.value_projection, "f", f);

    const tensor<A, 4> keys = mixed_tokens<A>(exec, pe, k4);
    const tensor<A, 4> values = mixed_tokens<A>(exec, pf, v4);
    tensor<A, 4> out(d4.extents());
    tensor<A, 3> lse({d4.extent(0), d4.extent(1), d4.extent(2)});
    attention_into(exec, into(out, lse), q4, keys, values, options, modifiers...);
    tensor<A, 4> d_keys(keys.extents()), d_values(values.extents());
    attention_backward_into(exec, gradients(dq, d_keys, d_values), q4, keys, values, into(out, lse),
                            d4, options, modifiers...);
    mix_tokens(exec, pe.swap_axes(1, 2), as_view(std::as_const(d_keys)), dk);
    mix_tokens(exec, pf.swap_axes(1, 2), as_view(std::as_const(d_values)), dv);
    projection_gradient(exec, d_keys, k4, de, rank_of<const PE&> == 2);
    projection_gradient(exec, d_values, v4, df, rank_of<const PF&> == 2);
  }
};

struct linformer_backward_returning : linformer_backward_method {
  template <class E, class Q, class K, class V, class PE, class PF, class... Rest>
  [[nodiscard]] static auto call(E& exec, const Q& q, const K& k, const V& v, const PE& e,
                                 const PF& f, const Rest&... rest) {
    require_tensors<const Q&, const K&, const V&>();
    auto dq = result_like<const Q&>(as_view(q).extents());
    auto dk = result_like<const K&>(as_view(k).extents());
    auto dv = result_like<const V&>(as_view(v).extents());
    auto de = result_like<const PE&>(as_view(e).extents());
    auto df = result_like<const PF&>(as_view(f).extents());
    linformer_backward_method::write(exec, gradients(dq, dk, dv, de, df), q, k, v, e, f, rest...);
    return linformer_gradients<decltype(dq), decltype(dk), decltype(dv), decltype(de),
                               decltype(df)>{std::move(dq), std::move(dk), std::move(dv),
                                             std::move(de), std::move(df)};
  }
};

}  // namespace detail

/// linformer_attention_backward([executor,] q, k, v, e, f, d_out, options = {}, modifiers...)
///   -> linformer_gradients
inline constexpr api::function<detail::linformer_backward_method,
                               api::form<detail::linformer_backward_returning, 6>>
    linformer_attention_backward{};
/// linformer_attention_backward_into([executor,] gradients(dq, dk, dv, de, df), q, k, v, e, f, d_out,
///                                   options = {}, modifiers...)
inline constexpr api::writing<detail::linformer_backward_method, 6>
    linformer_attention_backward_into{};

}  // namespace heed::inline HEED_TARGET
