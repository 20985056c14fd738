// SPDX-License-Identifier: MIT
// How a scan is called: with or without executor, result, state and options whose type x decides.
//
//   X_into([executor,] out, inputs..., [state,] [options])
//   X([executor,] inputs..., [state,] [options])            -> a new tensor
//
// A member writes one function, `call(exec, out, inputs..., trailing...)`, and the type and extents
// of its result, `result(inputs...)`; the call objects below supply the rest. `trailing_arguments`
// sorts what follows the inputs.
#pragma once

#include <type_traits>
#include <utility>

#include "heed/core/errors.hpp"
#include "heed/parallel/executor.hpp"
#include "heed/parallel/openmp.hpp"
#include "heed/tensor/scalar.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed {

/// A state and options, each at most once and in this order. `State` is the view a state is seen
/// by.
template <class State, class Options>
struct trailing_arguments {
  State state{};
  bool has_state = false;
  Options options{};

  template <class... Rest>
  explicit trailing_arguments(Rest&&... rest) {
    static_assert(sizeof...(Rest) <= 2, "heed: at most a state and options follow the inputs");
    (take(rest), ...);
  }

 private:
  template <class T>
  void take(T& given) {
    if constexpr (std::is_same_v<std::remove_const_t<T>, Options>) {
      options = given;
    } else {
      static_assert(tensor_like<T&>, "heed: a state is a tensor; options are of the member's type");
      if constexpr (tensor_like<T&>) {
        static_assert(std::is_same_v<view_of<T&>, State>,
                      "heed: the state has another rank, or not the accumulator type (float, or "
                      "double for double), or is constant");
        state = as_view(given);
        has_state = true;
      }
    }
  }
};

/// Results shaped as the first input.
struct result_as_first_input {
  template <class First, class... Rest>
  [[nodiscard]] static auto result(const First& first, const Rest&...) {
    static_assert(tensor_like<const First&>,
                  "heed: the first input is not a tensor; specialise heed::tensor_traits");
    return result_like<const First&>(as_view(first).extents());
  }
};

/// X_into: writes `out`.
template <class Member>
struct call_into {
  template <class First, class... Rest>
  void operator()(First&& first, Rest&&... rest) const {
    if constexpr (executor<std::remove_cvref_t<First>>) {
      Member::call(first, std::forward<Rest>(rest)...);
    } else {
      default_executor exec;
      Member::call(exec, std::forward<First>(first), std::forward<Rest>(rest)...);
    }
  }
};

/// X: makes the output and returns it.
template <class Member>
struct call_returning {
  template <class First, class... Rest>
  [[nodiscard]] auto operator()(First&& first, Rest&&... rest) const {
    if constexpr (executor<std::remove_cvref_t<First>>) {
      auto out = Member::result(rest...);
      Member::call(first, out, std::forward<Rest>(rest)...);
      return out;
    } else {
      default_executor exec;
      auto out = Member::result(first, rest...);
      Member::call(exec, out, std::forward<First>(first), std::forward<Rest>(rest)...);
      return out;
    }
  }
};

}  // namespace heed
