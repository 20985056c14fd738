// SPDX-License-Identifier: MIT
// The three forms every exact method is called in, over one kernel: returning, writing, with
// log-sum-exp; each with or without an executor in front.
#pragma once

#include <algorithm>
#include <concepts>
#include <type_traits>
#include <utility>

#include "heed/api/attention_arguments.hpp"
#include "heed/core/target.hpp"
#include "heed/parallel/openmp.hpp"

namespace heed::inline HEED_TARGET::api {

template <class E>
[[nodiscard]] index worker_count(const E& exec, index tasks) {
  return std::max<index>(1, std::min<index>(tasks, static_cast<index>(exec.concurrency())));
}

template <class T>
concept an_executor = executor<std::remove_reference_t<T>>;

template <class T>
concept not_options = !std::convertible_to<const T&, const attention_options&>;

struct any_task {
  void operator()(index) const noexcept {}
};

/// Compile errors for a call none of the forms takes: what stands where an executor may.
template <class First>
constexpr void explain_executor() {
  if constexpr (!executor<First> && !tensor_like<const First&> && !is_target<First>) {
    constexpr bool counts = requires(First& e) {
      { e.concurrency() } -> std::convertible_to<index>;
    };
    constexpr bool runs = requires(First& e, any_task body) { e.run(index{}, body); };
    static_assert(counts,
                  "heed: the first argument is no tensor, and no executor: it has no "
                  "concurrency() -> index");
    static_assert(!counts || runs,
                  "heed: the first argument is no tensor, and no executor: it has "
                  "no run(workers, body)");
  }
}
/// And what stands where the options do.
template <class First, class Options>
constexpr void explain_call() {
  explain_executor<First>();
  if constexpr (executor<First> || tensor_like<const First&> || is_target<First>) {
    static_assert(!not_options<Options>,
                  "heed: what follows the tensors is heed::attention_options; write {} there "
                  "before modifiers, as in attention(q, k, v, {}, causal())");
  }
}

/// form([exec,] out | into(out, lse), q, k, v, options, modifiers...)
template <class Kernel>
struct writing_form {
  template <an_executor E, class Out, class Q, class K, class V, class... M>
  void operator()(E&& exec, Out&& out, const Q& q, const K& k, const V& v,
                  const attention_options& options = {}, const M&... modifiers) const {
    Kernel::run(exec, open_call(std::forward<Out>(out), q, k, v, options, modifiers...));
  }
  template <class Out, class Q, class K, class V, class... M>
    requires(!an_executor<Out>)
  void operator()(Out&& out, const Q& q, const K& k, const V& v,
                  const attention_options& options = {}, const M&... modifiers) const {
    default_executor exec;
    (*this)(exec, std::forward<Out>(out), q, k, v, options, modifiers...);
  }
  template <class First, class Q, class K, class V, not_options O, class... M>
    requires(!an_executor<First>)
  void operator()(First&&, const Q&, const K&, const V&, const O&, const M&...) const {
    explain_call<std::remove_cvref_t<First>, O>();
  }
  template <an_executor E, class Out, class Q, class K, class V, not_options O, class... M>
  void operator()(E&&, Out&&, const Q&, const K&, const V&, const O&, const M&...) const {
    explain_call<std::remove_cvref_t<E>, O>();
  }
};

/// form([exec,] q, k, v, options, modifiers...) -> output
template <class Kernel>
struct returning_form {
  template <an_executor E, class Q, class K, class V, class... M>
  [[nodiscard]] auto operator()(E&& exec, const Q& q, const K& k, const V& v,
                                const attention_options& options = {},
                                const M&... modifiers) const {
    require_tensors<const Q&, const K&, const V&>();
    auto out = result_like<const Q&>(result_extents(q, v));
    writing_form<Kernel>{}(exec, out, q, k, v, options, modifiers...);
    return out;
  }
  template <class Q, class K, class V, class... M>
    requires(!an_executor<Q>)
  [[nodiscard]] auto operator()(const Q& q, const K& k, const V& v,
                                const attention_options& options = {},
                                const M&... modifiers) const {
    default_executor exec;
    return (*this)(exec, q, k, v, options, modifiers...);
  }
  template <class First, class Q, class K, not_options O, class... M>
    requires(!an_executor<First>)
  void operator()(const First&, const Q&, const K&, const O&, const M&...) const {
    explain_call<First, O>();
  }
  template <an_executor E, class Q, class K, class V, not_options O, class... M>
  void operator()(E&&, const Q&, const K&, const V&, const O&, const M&...) const {
    explain_call<std::remove_cvref_t<E>, O>();
  }
};

/// form([exec,] q, k, v, options, modifiers...) -> {output, log_sum_exp}
template <class Kernel>
struct lse_form {
  template <an_executor E, class Q, class K, class V, class... M>
  [[nodiscard]] auto operator()(E&& exec, const Q& q, const K& k, const V& v,
                                const attention_options& options = {},
                                const M&... modifiers) const {
    require_tensors<const Q&, const K&, const V&>();
    using Out = decltype(result_like<const Q&>(result_extents(q, v)));
    attention_result<Out, decltype(make_lse(q))> result{result_like<const Q&>(result_extents(q, v)),
                                                        make_lse(q)};
    writing_form<Kernel>{}(exec, into(result.output, result.log_sum_exp), q, k, v, options,
                           modifiers...);
    return result;
  }
  template <class Q, class K, class V, class... M>
    requires(!an_executor<Q>)
  [[nodiscard]] auto operator()(const Q& q, const K& k, const V& v,
                                const attention_options& options = {},
                                const M&... modifiers) const {
    default_executor exec;
    return (*this)(exec, q, k, v, options, modifiers...);
  }
  template <class First, class Q, class K, not_options O, class... M>
    requires(!an_executor<First>)
  void operator()(const First&, const Q&, const K&, const O&, const M&...) const {
    explain_call<First, O>();
  }
  template <an_executor E, class Q, class K, class V, not_options O, class... M>
  void operator()(E&&, const Q&, const K&, const V&, const O&, const M&...) const {
    explain_call<std::remove_cvref_t<E>, O>();
  }
};

}  // namespace heed::inline HEED_TARGET::api
