// SPDX-License-Identifier: MIT
// The three forms every exact method is called in, over one kernel: returning, writing, with
// log-sum-exp; each with or without an executor in front.
#pragma once

#include <algorithm>
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
};

}  // namespace heed::inline HEED_TARGET::api
