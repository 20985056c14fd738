// SPDX-License-Identifier: MIT
// The public functions of a member of the linear family, all overloads from one `call`.
//
//   struct my_method {                       // what a member says of itself
//     static constexpr std::size_t inputs = 3;
//     using options = recurrence_options;  // or template <class First> using options_for, of the
//                                          // first input
//     static auto result(const Q&, const K&, const V&);       // an output for these inputs
//     static void call(E& exec, Out&& out, const Q&, const K&, const V&, State&& state,
//                      const options&);      // state is a no_state where the user gives none
//   };
//   inline constexpr linear_function_into<my_method> my_into{};
//   inline constexpr linear_function<my_method> my{};
//
//   my_into([executor,] out, inputs..., [state,] [options]);
//   auto out = my([executor,] inputs..., [state,] [options]);
//
// Options are named by their type, since the number of inputs is the member's own. `call` checks
// everything before it writes anything.
#pragma once

#include <cstddef>
#include <tuple>
#include <type_traits>
#include <utility>

#include "heed/core/target.hpp"
#include "heed/parallel/executor.hpp"
#include "heed/parallel/openmp.hpp"

namespace heed::inline HEED_TARGET {

/// Stands for the state of a call that keeps none: it begins as zero and is forgotten.
struct no_state {};

namespace api {

/// A member's type of options, perhaps decided by its first input.
template <class M, class First>
struct options_of {
  using type = typename M::options;
};
template <class M, class First>
  requires requires { typename M::template options_for<First>; }
struct options_of<M, First> {
  using type = typename M::template options_for<First>;
};

/// The arguments of a public function: where each kind begins.
template <class M, bool Into, class... Args>
struct linear_arguments {
  using tuple = std::tuple<Args...>;
  template <std::size_t I>
  using argument = std::tuple_element_t<I, tuple>;

  static constexpr std::size_t count = sizeof...(Args);
  static constexpr std::size_t least = M::inputs + (Into ? 1 : 0);
  static constexpr bool has_executor = [] {
    if constexpr (count > 0) return executor<std::remove_reference_t<argument<0>>>;
    return false;
  }();
  static constexpr std::size_t first = has_executor ? 1 : 0;
  static constexpr std::size_t first_input = first + (Into ? 1 : 0);
  static constexpr std::size_t rest = first + least;
  static constexpr auto options_type = [] {
    if constexpr (count > first_input) {
      return std::type_identity<
          typename options_of<M, std::remove_cvref_t<argument<first_input>>>::type>{};
    } else {
      return std::type_identity<void>{};
    }
  }();
  using options = typename decltype(options_type)::type;
  static constexpr bool has_options = [] {
    if constexpr (count > rest) {
      return std::is_same_v<std::remove_cvref_t<argument<count - 1>>, options>;
    }
    return false;
  }();
  static constexpr bool has_state = count == rest + (has_options ? 2 : 1);
  static constexpr bool fits = count == rest + (has_options ? 1 : 0) + (has_state ? 1 : 0);
};

/// Calls f(inputs...).
template <class L, class M, class Tuple, class F>
decltype(auto) with_inputs(Tuple& all, F&& f) {
  return [&]<std::size_t... I>(std::index_sequence<I...>) -> decltype(auto) {
    return f(std::as_const(std::get<L::first_input + I>(all))...);
  }(std::make_index_sequence<M::inputs>{});
}

template <class L, class M, class E, class Out, class Tuple>
void call_with(E& exec, Out&& out, Tuple& all) {
  const auto options = [&]() -> typename L::options {
    if constexpr (L::has_options) {
      return std::get<L::count - 1>(all);
    } else {
      return {};
    }
  }();
  with_inputs<L, M>(all, [&](const auto&... in) {
    if constexpr (L::has_state) {
      M::call(exec, std::forward<Out>(out), in..., std::get<L::rest>(all), options);
    } else {
      M::call(exec, std::forward<Out>(out), in..., no_state{}, options);
    }
  });
}

/// f(executor): the caller's, or the default.
template <class L, class Tuple, class F>
void with_executor(Tuple& all, F&& f) {
  if constexpr (L::has_executor) {
    f(std::get<0>(all));
  } else {
    default_executor exec;
    f(exec);
  }
}

}  // namespace api

/// M's function that writes into the caller's output.
template <class M>
struct linear_function_into {
  template <class... Args>
  void operator()(Args&&... args) const {
    using list = api::linear_arguments<M, true, Args&&...>;
    static_assert(list::fits,
                  "heed: the arguments are [executor,] out, inputs..., [state,] [options], with "
                  "the options of this method's type last");
    if constexpr (list::fits) {
      auto all = std::forward_as_tuple(std::forward<Args>(args)...);
      api::with_executor<list>(all, [&](auto& exec) {
        using out_type = typename list::template argument<list::first>;
        api::call_with<list, M>(exec, static_cast<out_type>(std::get<list::first>(all)), all);
      });
    }
  }
};

/// M's function that returns its output, of the first input's family.
template <class M>
struct linear_function {
  template <class... Args>
  [[nodiscard]] auto operator()(Args&&... args) const {
    using list = api::linear_arguments<M, false, Args&&...>;
    static_assert(list::fits,
                  "heed: the arguments are [executor,] inputs..., [state,] [options], with the "
                  "options of this method's type last");
    if constexpr (list::fits) {
      auto all = std::forward_as_tuple(std::forward<Args>(args)...);
      auto out = api::with_inputs<list, M>(all, [](const auto&... in) { return M::result(in...); });
      api::with_executor<list>(all, [&](auto& exec) { api::call_with<list, M>(exec, out, all); });
      return out;
    }
  }
};

}  // namespace heed::inline HEED_TARGET
