// SPDX-License-Identifier: MIT
// The arguments of a backward pass of attention, checked, and the three forms it is called in.
//
// | argument | axes                               | scalar                |
// |----------|------------------------------------|-----------------------|
// | q, dq    | [batch, heads, queries, head dim]  | any                   |
// | k, dk    | [batch, kv heads, keys, head dim]  | any                   |
// | v, dv    | [batch, kv heads, keys, value dim] | any                   |
// | output   | [batch, heads, queries, value dim] | any: of the forward pass |
// | d_out    | [batch, heads, queries, value dim] | any                   |
// | lse, d_lse | [batch, heads, queries]          | the accumulator       |
//
// Ranks 2 and 3 leave out batch, or batch and heads.
#pragma once

#include <string>
#include <type_traits>
#include <utility>

#include "heed/api/attention_overloads.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/backward/score_gradient.hpp"

namespace heed::inline HEED_TARGET {

/// The gradients of what a forward pass gave: of its output, and of its log-sum-exp.
template <class Out, class Lse>
struct output_cotangents {
  Out output;
  Lse log_sum_exp;
};

/// `attention_backward(q, k, v, forward, cotangents(d_out, d_lse))`: the log-sum-exp was used too.
template <tensor_like Out, tensor_like Lse>
[[nodiscard]] constexpr auto cotangents(Out&& d_out, Lse&& d_lse) {
  return output_cotangents<view_of<Out>, view_of<Lse>>{as_view(std::forward<Out>(d_out)),
                                                       as_view(std::forward<Lse>(d_lse))};
}

/// The gradients of queries, keys and values: tensors, or views to write them to.
template <class Q, class K, class V>
struct attention_gradients {
  Q query;
  K key;
  V value;
};

/// `attention_backward_into(gradients(dq, dk, dv), q, k, v, forward, d_out)`
template <writable_tensor Q, writable_tensor K, writable_tensor V>
[[nodiscard]] constexpr auto gradients(Q&& dq, K&& dk, V&& dv) {
  return attention_gradients<view_of<Q>, view_of<K>, view_of<V>>{
      as_view(std::forward<Q>(dq)), as_view(std::forward<K>(dk)), as_view(std::forward<V>(dv))};
}

namespace detail {

/// A checked backward call. `forward` holds q, k, v, the output and the log-sum-exp, all read only.
template <class Call, class Gradient, class DO, class DQ, class DK, class DV>
struct backward_call {
  using A = typename Call::A;
  using program_type = typename Call::program_type;

  Call forward;
  Gradient gradient;
  view<const DO, 4> d_out;
  view<const A, 3> d_lse;  // data() is null where not given
  view<DQ, 4> dq;
  view<DK, 4> dk;
  view<DV, 4> dv;

  [[nodiscard]] index head_dim() const noexcept { return forward.q.extent(3); }
  [[nodiscard]] index value_dim() const noexcept { return forward.out.extent(3); }
  [[nodiscard]] rectangle<const DO> cotangent_rows(index b, index h, index i) const noexcept {
    return rows(d_out, b, h, i);
  }
  template <class T>
  [[nodiscard]] static rectangle<T> rows(const view<T, 4>& x, index b, index h, index i) noexcept {
    return {x.data() + b * x.stride(0) + h * x.stride(1) + i * x.stride(2), x.stride(2),
            x.stride(3)};
  }

  /// delta_i = sum_c d_out_ic out_ic - d_lse_i: what all dS of the row are lessened by.
  [[nodiscard]] A delta(index b, index h, index i) const noexcept {
    A sum = A(0);
    for (index c = 0; c < value_dim(); ++c) {
      sum += static_cast<A>(d_out(b, h, i, c)) * static_cast<A>(forward.out(b, h, i, c));
    }
    return d_lse.data() == nullptr ? sum : sum - d_lse(b, h, i);
  }
};

/// Rank 4 of a tensor that must have the extents of another.
template <class T, int R, std::size_t N>
[[nodiscard]] auto matching(const char* name, const view<T, R>& x, const char* other,
                            const std::array<index, N>& expected) {
  static_assert(static_cast<std::size_t>(R) == N,
                "heed: a gradient has another rank than the tensor it belongs to");
  if (x.extents() != expected) {
    fail<shape_error>(std::string(name) + " has extents " + format_extents(x.extents()) + ", " +
                      other + " has " + format_extents(expected));
  }
  return as_rank4(x);
}

template <class T>
inline constexpr bool is_cotangents = false;
template <class O, class L>
inline constexpr bool is_cotangents<output_cotangents<O, L>> = true;

/// Throws before anything is written.
template <class Gradients, class Q, class K, class V, class Forward, class Cotangent, class... M>
[[nodiscard]] auto open_backward(const Gradients& g, const Q& q, const K& k, const V& v,
                                 const Forward& forward, const Cotangent& cotangent,
                                 const attention_options& o, const M&... mods) {
  require_tensors<const Q&, const K&, const V&>();
  static_assert(
      requires { forward.output, forward.log_sum_exp; },
      "heed: a backward pass takes what attention_with_lse returned, or "
      "heed::into(out, lse)");
  using A = accumulate_t<scalar_of<const Q&>>;
  const auto out = as_view(forward.output);
  const auto lse = as_view(forward.log_sum_exp);
  static_assert(std::is_same_v<std::remove_const_t<typename decltype(lse)::scalar>, A>,
                "heed: the log-sum-exp tensor has the accumulator type (float, or double for "
                "double)");
  // Calls hold a log-sum-exp that kernels may write. Backward ones read it only.
  const view<A, decltype(lse)::rank> lse_view(const_cast<A*>(lse.data()), lse.extents(),
                                              lse.strides());
  auto call = open_call(
      result_target<std::remove_const_t<decltype(out)>, std::remove_const_t<decltype(lse_view)>>{
          out, lse_view},
      q, k, v, o, mods...);
  using Gradient = score_gradient<A, M...>;
  Gradient gradient(call.extents, mods...);
  const auto dq = matching("dq", g.query, "q", as_view(q).extents());
  const auto dk = matching("dk", g.key, "k", as_view(k).extents());
  const auto dv = matching("dv", g.value, "v", as_view(v).extents());
  const auto with = [&](const auto& d_out_view, const view<const A, 3>& d_lse) {
    const auto d_out = matching("d_out", d_out_view, "out", out.extents());
    using DO = std::remove_const_t<typename decltype(d_out)::scalar>;
    static_assert(std::is_same_v<accumulate_t<DO>, A>,
                  "heed: d_out accumulates in another type than q");
    return backward_call<decltype(call), Gradient, DO, typename decltype(dq)::scalar,
                         typename decltype(dk)::scalar, typename decltype(dv)::scalar>{
        call, gradient, d_out, d_lse, dq, dk, dv};
  };
  if constexpr (is_cotangents<Cotangent>) {
    check_lse<std::remove_cvref_t<decltype(cotangent.log_sum_exp)>, rank_of<const Q&>>(
        cotangent.log_sum_exp, as_view(q).extents());
    return with(cotangent.output, view<const A, 3>(lse_as_rank3<const A>(
                                      view<const A, decltype(lse)::rank>(cotangent.log_sum_exp))));
  } else {
    static_assert(tensor_like<Cotangent>,
                  "heed: d_out is a tensor, or heed::cotangents(d_out, d_lse)");
    return with(as_view(cotangent), view<const A, 3>(nullptr, {0, 0, 0}));
  }
}

template <class Kernel>
struct backward_method : attention_method {
  template <class E, class DQ, class DK, class DV, class Q, class K, class V, class F, class C,
            class... M>
  static void write(E& exec, const attention_gradients<DQ, DK, DV>& g, const Q& q, const K& k,
                    const V& v, const F& forward, const C& cotangent,
                    const attention_options& options, const M&... modifiers) {
    const auto call = open_backward(g, q, k, v, forward, cotangent, options, modifiers...);
    using gradient = std::remove_cvref_t<decltype(call.gradient)>;
    if constexpr (gradient::tells_one_thread || (gradient::tables && !Kernel::sums_tables)) {
      serial_executor one;
      Kernel::run(one, call);
    } else {
      Kernel::run(exec, call);
    }
  }
};

/// The gradients as tensors of the inputs' families.
template <class Kernel>
struct backward_call_returning : backward_method<Kernel> {
  template <class E, class Q, class K, class V, class... Rest>
  [[nodiscard]] static auto call(E& exec, const Q& q, const K& k, const V& v, const Rest&... rest) {
    require_tensors<const Q&, const K&, const V&>();
    auto dq = result_like<const Q&>(as_view(q).extents());
    auto dk = result_like<const K&>(as_view(k).extents());
    auto dv = result_like<const V&>(as_view(v).extents());
    backward_method<Kernel>::write(exec, gradients(dq, dk, dv), q, k, v, rest...);
    return attention_gradients<decltype(dq), decltype(dk), decltype(dv)>{
        std::move(dq), std::move(dk), std::move(dv)};
  }
};

/// f([exec,] gradients(dq, dk, dv), q, k, v, forward, d_out | cotangents(d_out, d_lse),
///   options = {}, modifiers...)
template <class Kernel>
using backward_writing_form = writing<backward_method<Kernel>, 5>;
/// f([exec,] q, k, v, forward, d_out | cotangents(d_out, d_lse), options = {}, modifiers...)
template <class Kernel>
using backward_returning_form =
    function<backward_method<Kernel>, form<backward_call_returning<Kernel>, 5>>;

}  // namespace detail

}  // namespace heed::inline HEED_TARGET
