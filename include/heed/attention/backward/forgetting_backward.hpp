// SPDX-License-Identifier: MIT
// The gradient of forgetting attention, of its log forget gates too.
//
//   s_ij = scale q_i.k_j + G_i - G_j,  G_i = g_0 + ... + g_i
//   dG_t = sum_j ds_tj - sum_i ds_it,  dg_t = dG_t + dG_(t+1) + ...     (ds: attention_backward.hpp)
//
//   auto g = heed::forgetting_attention_backward(q, k, v, gates, forward, d_out);
//   g.query, g.key, g.value, g.gate
//   heed::forgetting_attention_backward_into([executor,] gradients(dq, dk, dv, dg), q, k, v, gates,
//                                            forward, d_out | cotangents(d_out, d_lse), options = {},
//                                            modifiers...)
//
// `forward`: into(out, lse) as forgetting_attention_into wrote them; options and modifiers are those
// of that call. Axes as in forgetting.hpp; dg has those of g, any scalar. A gate of -inf, and that of
// the first token, has gradient 0, and the sums begin anew there: nothing behind a reset reaches a
// gate before it. dG is summed in double, in the order of the pairs of a head, and rounded once with
// dg: its error is that of ds, an eps of the terms' absolute sum. Everything else as
// attention_backward; a task is a kv head. Cost: that of attention_backward and a call a pair; 24
// bytes a gate. Throws shape_error, option_error, std::bad_alloc, before anything is written.
// Lin, Nikishin, He, Courville 2025, arXiv 2503.02130, appendix on the backward pass.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <type_traits>
#include <utility>

#include "heed/attention/backward/attention_backward.hpp"
#include "heed/attention/forgetting.hpp"
#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET {

/// The gradients of queries, keys, values and log forget gates: tensors, or views to write them to.
template <class Q, class K, class V, class G>
struct forgetting_gradients {
  Q query;
  K key;
  V value;
  G gate;
};

/// `forgetting_attention_backward_into(gradients(dq, dk, dv, dg), ...)`
template <writable_tensor Q, writable_tensor K, writable_tensor V, writable_tensor G>
[[nodiscard]] constexpr auto gradients(Q&& dq, K&& dk, V&& dv, G&& dg) {
  return forgetting_gradients<view_of<Q>, view_of<K>, view_of<V>, view_of<G>>{
      as_view(std::forward<Q>(dq)), as_view(std::forward<K>(dk)), as_view(std::forward<V>(dv)),
      as_view(std::forward<G>(dg))};
}

namespace detail {

/// The gradients of G: a pair adds to its query's and subtracts from its key's.
struct gate_sum_gradient {
  static constexpr bool one_kv_head = true;
  view<double, 3> sums;  // [batch, heads, tokens]

  template <class A>
  void operator()(A d_score, const position& p) const noexcept {
    const index last = sums.extent(2) - 1;
    sums(p.batch, p.head, std::clamp<index>(p.query, 0, last)) += static_cast<double>(d_score);
    sums(p.batch, p.head, p.key) -= static_cast<double>(d_score);
  }
};

/// dg of one head from the gradients of its running sums.
template <class TG, class TD>
void gate_gradients(const view<const TG, 3>& g, const tensor<double, 3>& sums,
                    const view<TD, 3>& to, index b, index h) noexcept {
  double total = 0;
  for (index t = g.extent(2); t-- > 0;) {
    total += sums(b, h, t);
    const auto gate = static_cast<double>(g(b, h, t));
    if (t == 0 || (std::isinf(gate) && gate < 0)) total = 0;
    to(b, h, t) = static_cast<TD>(total);
  }
}

struct forgetting_backward_method : attention_method {
  template <class E, class DQ, class DK, class DV, class DG, class Q, class K, class V, class G,
            class F, class C, class... M>
  static void write(E& exec, const forgetting_gradients<DQ, DK, DV, DG>& to, const Q& q, const K& k,
                    const V& v, const G& g, const F& forward, const C& cotangent,
                    const attention_options& options, const M&... modifiers) {
    const auto given = as_view(g);
    if (to.gate.extents() != given.extents()) {
      fail<shape_error>("dg has extents " + format_extents(to.gate.extents()) + ", g has " +
                        format_extents(given.extents()));
    }
    using TG = std::remove_const_t<typename decltype(given)::scalar>;
    const auto gates = gates_as_rank3(view<const TG, decltype(given)::rank>(given));
    const auto d_gates = gates_as_rank3(to.gate);
    tensor<double, 3> sums(gates.extents());
    forget_gates modifier(g);
    attention_backward_into(exec, attention_gradients<DQ, DK, DV>{to.query, to.key, to.value}, q, k,
                            v, forward, cotangent, options,
                            with_gradient(std::move(modifier), gate_sum_gradient{as_view(sums)}),
                            causal(), modifiers...);
    const index heads = gates.extent(1);
    const index tasks = gates.extent(0) * heads;
    for_each_task(exec, worker_count(exec, tasks), tasks, [&](index, index t) noexcept {
      gate_gradients(gates, sums, d_gates, t / heads, t % heads);
    });
  }
};

struct forgetting_backward_call : forgetting_backward_method {
  template <class E, class Q, class K, class V, class G, class... Rest>
  [[nodiscard]] static auto call(E& exec, const Q& q, const K& k, const V& v, const G& g,
                                 const Rest&... rest) {
    require_tensors<const Q&, const K&, const V&>();
    auto dq = result_like<const Q&>(as_view(q).extents());
    auto dk = result_like<const K&>(as_view(k).extents());
    auto dv = result_like<const V&>(as_view(v).extents());
    auto dg = result_like<const G&>(as_view(g).extents());
    write(exec, gradients(dq, dk, dv, dg), q, k, v, g, rest...);
    return forgetting_gradients<decltype(dq), decltype(dk), decltype(dv), decltype(dg)>{
        std::move(dq), std::move(dk), std::move(dv), std::move(dg)};
  }
};

}  // namespace detail

/// forgetting_attention_backward([executor,] q, k, v, g, forward, d_out | cotangents(d_out, d_lse),
///                               options = {}, modifiers...) -> forgetting_gradients.
inline constexpr api::function<detail::forgetting_backward_method,
                               api::form<detail::forgetting_backward_call, 6>>
    forgetting_attention_backward{};
/// forgetting_attention_backward_into([executor,] gradients(dq, dk, dv, dg), q, k, v, g, forward,
///                                    d_out | cotangents(d_out, d_lse), options = {}, modifiers...)
inline constexpr api::writing<detail::forgetting_backward_method, 6>
    forgetting_attention_backward_into{};

}  // namespace heed::inline HEED_TARGET
