// SPDX-License-Identifier: MIT
// The overloads of every public function that runs on an executor, written once.
//
//   struct my_method : api::method<my_options> {    // what a method says of itself
//     static auto result(const A&, const B&);       // an output for these inputs
//     static void write(E& exec, Out&& out, const A&, const B&, const my_options&, const M&...);
//   };
//   inline constexpr api::writing<my_method, 2> my_into{};
//   inline constexpr api::returning<my_method, 2> my{};
//
//   my_into([executor,] out, a, b, options = {}, more...);
//   auto out = my([executor,] a, b, options = {}, more...);
//
// 2 is the number of inputs. `Typed` arguments come after the inputs and convert at the call: a
// block size, a span of starts, options without a default. A method of another result models the
// calls below itself. Options may be a braced list, which no parameter pack takes: hence a form for
// each number of arguments. A call that no form takes is explained by the method.
#pragma once

#include <concepts>
#include <cstddef>
#include <tuple>
#include <type_traits>
#include <utility>

#include "heed/core/target.hpp"
#include "heed/parallel/executor.hpp"
#include "heed/parallel/openmp.hpp"

namespace heed::inline HEED_TARGET::api {

/// An executor as an argument: a reference to one, or a temporary.
template <class T>
concept an_executor = executor<std::remove_reference_t<T>>;

/// The options of a method that has none.
struct no_options {};

/// What a method says of its arguments unless it says otherwise. `accepts` and `options` are of the
/// types of the inputs, without those of the executor and the output.
template <class Options>
struct method {
  template <class...>
  [[nodiscard]] static consteval bool accepts() noexcept {
    return true;
  }
  template <class...>
  using options = Options;
  /// Compile errors for a call that none of the forms takes.
  template <class...>
  static constexpr void explain() {
    static_assert(!std::is_same_v<Options, Options>,
                  "heed: the arguments are [executor,] [output,] inputs..., options, more...: one "
                  "is missing, or what is given in place of the options is none");
  }
};

/// call(executor, A1 .. AN, Typed..., options, more...), with and without the executor.
template <class Call, int N, class... Typed>
struct form;

template <class Call, class... Typed>
struct form<Call, 1, Typed...> {
  template <an_executor E, class A, class... M>
    requires(Call::template accepts<A>())
  [[nodiscard]] decltype(auto) operator()(E&& exec, A&& a, const Typed&... typed,
                                          const typename Call::template options<A>& options = {},
                                          const M&... more) const {
    return Call::call(exec, std::forward<A>(a), typed..., options, more...);
  }
  template <class A, class... M>
    requires(!an_executor<A> && Call::template accepts<A>())
  [[nodiscard]] decltype(auto) operator()(A&& a, const Typed&... typed,
                                          const typename Call::template options<A>& options = {},
                                          const M&... more) const {
    return (*this)(default_executor{}, std::forward<A>(a), typed..., options, more...);
  }
};

template <class Call, class... Typed>
struct form<Call, 2, Typed...> {
  template <an_executor E, class A, class B, class... M>
    requires(Call::template accepts<A, B>())
  [[nodiscard]] decltype(auto) operator()(E&& exec, A&& a, B&& b, const Typed&... typed,
                                          const typename Call::template options<A, B>& options = {},
                                          const M&... more) const {
    return Call::call(exec, std::forward<A>(a), b, typed..., options, more...);
  }
  template <class A, class B, class... M>
    requires(!an_executor<A> && Call::template accepts<A, B>())
  [[nodiscard]] decltype(auto) operator()(A&& a, B&& b, const Typed&... typed,
                                          const typename Call::template options<A, B>& options = {},
                                          const M&... more) const {
    return (*this)(default_executor{}, std::forward<A>(a), b, typed..., options, more...);
  }
};

template <class Call, class... Typed>
struct form<Call, 3, Typed...> {
  template <an_executor E, class A, class B, class C, class... M>
    requires(Call::template accepts<A, B, C>())
  [[nodiscard]] decltype(auto) operator()(
      E&& exec, A&& a, B&& b, C&& c, const Typed&... typed,
      const typename Call::template options<A, B, C>& options = {}, const M&... more) const {
    return Call::call(exec, std::forward<A>(a), b, c, typed..., options, more...);
  }
  template <class A, class B, class C, class... M>
    requires(!an_executor<A> && Call::template accepts<A, B, C>())
  [[nodiscard]] decltype(auto) operator()(
      A&& a, B&& b, C&& c, const Typed&... typed,
      const typename Call::template options<A, B, C>& options = {}, const M&... more) const {
    return (*this)(default_executor{}, std::forward<A>(a), b, c, typed..., options, more...);
  }
};

template <class Call, class... Typed>
struct form<Call, 4, Typed...> {
  template <an_executor E, class A, class B, class C, class D, class... M>
    requires(Call::template accepts<A, B, C, D>())
  [[nodiscard]] decltype(auto) operator()(
      E&& exec, A&& a, B&& b, C&& c, D&& d, const Typed&... typed,
      const typename Call::template options<A, B, C, D>& options = {}, const M&... more) const {
    return Call::call(exec, std::forward<A>(a), b, c, d, typed..., options, more...);
  }
  template <class A, class B, class C, class D, class... M>
    requires(!an_executor<A> && Call::template accepts<A, B, C, D>())
  [[nodiscard]] decltype(auto) operator()(
      A&& a, B&& b, C&& c, D&& d, const Typed&... typed,
      const typename Call::template options<A, B, C, D>& options = {}, const M&... more) const {
    return (*this)(default_executor{}, std::forward<A>(a), b, c, d, typed..., options, more...);
  }
};

template <class Call, class... Typed>
struct form<Call, 5, Typed...> {
  template <an_executor E, class A, class B, class C, class D, class F, class... M>
    requires(Call::template accepts<A, B, C, D, F>())
  [[nodiscard]] decltype(auto) operator()(
      E&& exec, A&& a, B&& b, C&& c, D&& d, F&& f, const Typed&... typed,
      const typename Call::template options<A, B, C, D, F>& options = {}, const M&... more) const {
    return Call::call(exec, std::forward<A>(a), b, c, d, f, typed..., options, more...);
  }
  template <class A, class B, class C, class D, class F, class... M>
    requires(!an_executor<A> && Call::template accepts<A, B, C, D, F>())
  [[nodiscard]] decltype(auto) operator()(
      A&& a, B&& b, C&& c, D&& d, F&& f, const Typed&... typed,
      const typename Call::template options<A, B, C, D, F>& options = {}, const M&... more) const {
    return (*this)(default_executor{}, std::forward<A>(a), b, c, d, f, typed..., options, more...);
  }
};

template <class Call, class... Typed>
struct form<Call, 6, Typed...> {
  template <an_executor E, class A, class B, class C, class D, class F, class G, class... M>
    requires(Call::template accepts<A, B, C, D, F, G>())
  [[nodiscard]] decltype(auto) operator()(
      E&& exec, A&& a, B&& b, C&& c, D&& d, F&& f, G&& g, const Typed&... typed,
      const typename Call::template options<A, B, C, D, F, G>& options = {},
      const M&... more) const {
    return Call::call(exec, std::forward<A>(a), b, c, d, f, g, typed..., options, more...);
  }
  template <class A, class B, class C, class D, class F, class G, class... M>
    requires(!an_executor<A> && Call::template accepts<A, B, C, D, F, G>())
  [[nodiscard]] decltype(auto) operator()(
      A&& a, B&& b, C&& c, D&& d, F&& f, G&& g, const Typed&... typed,
      const typename Call::template options<A, B, C, D, F, G>& options = {},
      const M&... more) const {
    return (*this)(default_executor{}, std::forward<A>(a), b, c, d, f, g, typed..., options,
                   more...);
  }
};

template <class Call, class... Typed>
struct form<Call, 7, Typed...> {
  template <an_executor E, class A, class B, class C, class D, class F, class G, class H,
            class... M>
    requires(Call::template accepts<A, B, C, D, F, G, H>())
  [[nodiscard]] decltype(auto) operator()(
      E&& exec, A&& a, B&& b, C&& c, D&& d, F&& f, G&& g, H&& h, const Typed&... typed,
      const typename Call::template options<A, B, C, D, F, G, H>& options = {},
      const M&... more) const {
    return Call::call(exec, std::forward<A>(a), b, c, d, f, g, h, typed..., options, more...);
  }
  template <class A, class B, class C, class D, class F, class G, class H, class... M>
    requires(!an_executor<A> && Call::template accepts<A, B, C, D, F, G, H>())
  [[nodiscard]] decltype(auto) operator()(
      A&& a, B&& b, C&& c, D&& d, F&& f, G&& g, H&& h, const Typed&... typed,
      const typename Call::template options<A, B, C, D, F, G, H>& options = {},
      const M&... more) const {
    return (*this)(default_executor{}, std::forward<A>(a), b, c, d, f, g, h, typed..., options,
                   more...);
  }
};

/// Whether the form's argument of options may be what is given in its place.
template <class Form>
struct form_arguments;
template <class Call, int N, class... Typed>
struct form_arguments<form<Call, N, Typed...>> {
  template <class First, class... More>
  static consteval bool fit() {
    constexpr std::size_t inputs = an_executor<First> ? 1 : 0;
    constexpr std::size_t at = inputs + static_cast<std::size_t>(N) + sizeof...(Typed);
    constexpr std::size_t count = sizeof...(More) + 1;
    if constexpr (count < at) {
      return false;
    } else {
      using all = std::tuple<First, More...>;
      return []<std::size_t... I>(std::index_sequence<I...>) {
        if constexpr (!Call::template accepts<std::tuple_element_t<inputs + I, all>...>()) {
          return false;
        } else if constexpr (count == at) {
          return true;
        } else {
          return std::is_convertible_v<
              std::tuple_element_t<at, all>,
              typename Call::template options<std::tuple_element_t<inputs + I, all>...>>;
        }
      }(std::make_index_sequence<static_cast<std::size_t>(N)>{});
    }
  }
};

/// A public function: all its forms, and the method's explanation where none fits.
template <class Method, class... Forms>
struct function : Forms... {
  using Forms::operator()...;
  template <class First, class... More>
    requires(!(form_arguments<Forms>::template fit<First, More...>() || ...))
  void operator()(First&&, More&&...) const {
    Method::template explain<First, More...>();
  }
};

/// A method's type of options, of an output and its inputs; none where the inputs have none.
template <class Method, class Out, class... Inputs>
struct options_of_inputs {};
template <class Method, class Out, class... Inputs>
  requires requires { typename Method::template options<Inputs...>; }
struct options_of_inputs<Method, Out, Inputs...> {
  using type = typename Method::template options<Inputs...>;
};

/// write(executor, output, inputs..., options, more...)
template <class Method>
struct writing_call {
  template <class, class... Inputs>
  [[nodiscard]] static consteval bool accepts() noexcept {
    return Method::template accepts<Inputs...>();
  }
  template <class... OutputAndInputs>
  using options = typename options_of_inputs<Method, OutputAndInputs...>::type;
  template <class E, class Out, class... Arguments>
  static void call(E& exec, Out&& out, Arguments&&... arguments) {
    Method::write(exec, std::forward<Out>(out), arguments...);
  }
};

/// What `result` makes of the inputs, written by `write`.
template <class Method>
struct returning_call : Method {
  template <class E, class... Arguments>
  [[nodiscard]] static auto call(E& exec, Arguments&&... arguments) {
    auto out = Method::result(arguments...);
    Method::write(exec, out, arguments...);
    return out;
  }
};

/// f([executor,] output, N inputs, Typed..., options = {}, more...)
template <class Method, int N, class... Typed>
using writing = function<Method, form<writing_call<Method>, N + 1, Typed...>>;
/// f([executor,] N inputs, Typed..., options = {}, more...) -> output
template <class Method, int N, class... Typed>
using returning = function<Method, form<returning_call<Method>, N, Typed...>>;

}  // namespace heed::inline HEED_TARGET::api
