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
// Options are in braces, `my(q, k, v, {.scale = 1})`, or an object of the member's type. A member
// may have `template <bool Given> static constexpr void require_inputs()`, with a static_assert that
// names its inputs. `call` checks everything before it writes anything.
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
  static constexpr bool ends_in_options = [] {
    if constexpr (count > first_input) {
      return std::is_same_v<std::remove_cvref_t<argument<count - 1>>, options>;
    }
    return false;
  }();
  static constexpr bool has_options = ends_in_options && count > rest;
  static constexpr bool has_state = count == rest + (has_options ? 2 : 1);
  // Options in the place of an input are an input that is missing.
  static constexpr bool fits =
      ends_in_options == has_options && count == rest + (has_options ? 1 : 0) + (has_state ? 1 : 0);
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

/// Compile errors for arguments that do not fit; a member may name its inputs in a sentence.
template <class M, bool Fits>
constexpr void explain_arguments() {
  if constexpr (requires { M::template require_inputs<Fits>(); })
    M::template require_inputs<Fits>();
}

/// The last argument is options that are made in the call, as those in braces are.
template <class M, bool Into, class... Args>
inline constexpr bool ends_in_new_options = [] {
  using list = linear_arguments<M, Into, Args...>;
  if constexpr (list::count > list::first_input) {
    return std::is_same_v<typename list::template argument<list::count - 1>,
                          typename list::options&&>;
  }
  return false;
}();

/// What a public function does with its arguments.
template <class M, bool Into>
struct linear_calls;

template <class M>
struct linear_calls<M, true> {
  template <class... Args>
  static void call(Args&&... args) {
    using list = linear_arguments<M, true, Args&&...>;
    explain_arguments<M, list::fits>();
    static_assert(list::fits,
                  "heed: the arguments are [executor,] out, inputs..., [state,] [options], with "
                  "the options of this method's type last");
    if constexpr (list::fits) {
      auto all = std::forward_as_tuple(std::forward<Args>(args)...);
      with_executor<list>(all, [&](auto& exec) {
        using out_type = typename list::template argument<list::first>;
        call_with<list, M>(exec, static_cast<out_type>(std::get<list::first>(all)), all);
      });
    }
  }
};

template <class M>
struct linear_calls<M, false> {
  template <class... Args>
  [[nodiscard]] static auto call(Args&&... args) {
    using list = linear_arguments<M, false, Args&&...>;
    explain_arguments<M, list::fits>();
    static_assert(list::fits,
                  "heed: the arguments are [executor,] inputs..., [state,] [options], with the "
                  "options of this method's type last");
    if constexpr (list::fits) {
      auto all = std::forward_as_tuple(std::forward<Args>(args)...);
      auto out = with_inputs<list, M>(all, [](const auto&... in) { return M::result(in...); });
      with_executor<list>(all, [&](auto& exec) { call_with<list, M>(exec, out, all); });
      return out;
    }
  }
};

/// Options in braces have no type to deduce: the forms of each number of arguments, whose last
/// parameter names the type.
template <class M, bool Into>
struct braced_forms {
#define HEED_ARGUMENTS_1(X) X(1)
#define HEED_ARGUMENTS_2(X) HEED_ARGUMENTS_1(X), X(2)
#define HEED_ARGUMENTS_3(X) HEED_ARGUMENTS_2(X), X(3)
#define HEED_ARGUMENTS_4(X) HEED_ARGUMENTS_3(X), X(4)
#define HEED_ARGUMENTS_5(X) HEED_ARGUMENTS_4(X), X(5)
#define HEED_ARGUMENTS_6(X) HEED_ARGUMENTS_5(X), X(6)
#define HEED_ARGUMENTS_7(X) HEED_ARGUMENTS_6(X), X(7)
#define HEED_ARGUMENTS_8(X) HEED_ARGUMENTS_7(X), X(8)
#define HEED_ARGUMENTS_9(X) HEED_ARGUMENTS_8(X), X(9)
#define HEED_TYPE_NAME(N) class A##N
#define HEED_TYPE(N) A##N&&
#define HEED_PARAMETER(N) A##N&& a##N
#define HEED_FORWARD(N) std::forward<A##N>(a##N)
#define HEED_BRACED_FORM(N)                                                                   \
  template <HEED_ARGUMENTS_##N(HEED_TYPE_NAME)>                                               \
  auto operator()(                                                                            \
      HEED_ARGUMENTS_##N(HEED_PARAMETER),                                                     \
      typename linear_arguments<M, Into, HEED_ARGUMENTS_##N(HEED_TYPE)>::options&& options)   \
      const {                                                                                 \
    return linear_calls<M, Into>::call(HEED_ARGUMENTS_##N(HEED_FORWARD), std::move(options)); \
  }
  HEED_BRACED_FORM(1)
  HEED_BRACED_FORM(2)
  HEED_BRACED_FORM(3)
  HEED_BRACED_FORM(4)
  HEED_BRACED_FORM(5)
  HEED_BRACED_FORM(6)
  HEED_BRACED_FORM(7)
  HEED_BRACED_FORM(8)
  HEED_BRACED_FORM(9)
#undef HEED_ARGUMENTS_1
#undef HEED_ARGUMENTS_2
#undef HEED_ARGUMENTS_3
#undef HEED_ARGUMENTS_4
#undef HEED_ARGUMENTS_5
#undef HEED_ARGUMENTS_6
#undef HEED_ARGUMENTS_7
#undef HEED_ARGUMENTS_8
#undef HEED_ARGUMENTS_9
#undef HEED_TYPE_NAME
#undef HEED_TYPE
#undef HEED_PARAMETER
#undef HEED_FORWARD
#undef HEED_BRACED_FORM
};

}  // namespace api

/// M's function that writes into the caller's output.
template <class M>
struct linear_function_into : api::braced_forms<M, true> {
  using api::braced_forms<M, true>::operator();
  template <class... Args>
    requires(!api::ends_in_new_options<M, true, Args && ...>)
  void operator()(Args&&... args) const {
    api::linear_calls<M, true>::call(std::forward<Args>(args)...);
  }
};

/// M's function that returns its output, of the first input's family.
template <class M>
struct linear_function : api::braced_forms<M, false> {
  using api::braced_forms<M, false>::operator();
  template <class... Args>
    requires(!api::ends_in_new_options<M, false, Args && ...>)
  [[nodiscard]] auto operator()(Args&&... args) const {
    return api::linear_calls<M, false>::call(std::forward<Args>(args)...);
  }
};

}  // namespace heed::inline HEED_TARGET
