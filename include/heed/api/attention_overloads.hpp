// SPDX-License-Identifier: MIT
// The forms of attention to tensors, over one kernel: returning, writing, with log-sum-exp.
#pragma once

#include <algorithm>
#include <concepts>
#include <type_traits>
#include <utility>

#include "heed/api/attention_arguments.hpp"
#include "heed/api/overloads.hpp"
#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET::api {

struct any_task {
  void operator()(index) const noexcept {}
};

/// Compile errors for what is given where an executor may be.
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
/// A method of attention to tensors, which may write the log-sum-exp too.
struct attention_method : method<attention_options> {
  template <class Q, class K, class V, class... Rest>
  [[nodiscard]] static auto result(const Q& q, const K&, const V& v, const Rest&...) {
    require_tensors<const Q&, const K&, const V&>();
    return result_like<const Q&>(result_extents(q, v));
  }
  template <class First, class... More>
  static constexpr void explain() {
    using F = std::remove_cvref_t<First>;
    explain_executor<F>();
    if constexpr (executor<F> || tensor_like<const F&> || is_target<F>) {
      static_assert(!tensor_like<const F&> && tensor_like<const F&>,
                    "heed: what follows the tensors is heed::attention_options; write {} there "
                    "before modifiers, as in attention(q, k, v, {}, causal())");
    }
  }
};

/// Attention by a kernel.
template <class Kernel>
struct kernel_method : attention_method {
  template <class E, class Out, class Q, class K, class V, class... M>
  static void write(E& exec, Out&& out, const Q& q, const K& k, const V& v,
                    const attention_options& options, const M&... modifiers) {
    Kernel::run(exec, open_call(std::forward<Out>(out), q, k, v, options, modifiers...));
  }
};

/// Output and log-sum-exp.
template <class Method>
struct lse_call : Method {
  template <class E, class Q, class... Rest>
  [[nodiscard]] static auto call(E& exec, const Q& q, const Rest&... rest) {
    using Out = decltype(Method::result(q, rest...));
    attention_result<Out, decltype(make_lse(q))> result{Method::result(q, rest...), make_lse(q)};
    Method::write(exec, into(result.output, result.log_sum_exp), q, rest...);
    return result;
  }
};

/// f([exec,] out | into(out, lse), q, k, v, options = {}, modifiers...)
template <class Kernel>
using writing_form = writing<kernel_method<Kernel>, 3>;
/// f([exec,] q, k, v, options = {}, modifiers...) -> output
template <class Kernel>
using returning_form = returning<kernel_method<Kernel>, 3>;
/// f([exec,] q, k, v, options = {}, modifiers...) -> {output, log_sum_exp}
template <class Kernel>
using lse_form = function<kernel_method<Kernel>, form<lse_call<kernel_method<Kernel>>, 3>>;

}  // namespace heed::inline HEED_TARGET::api
