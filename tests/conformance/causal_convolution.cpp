// SPDX-License-Identifier: MIT
// CausalConvWithState: a depthwise causal convolution, its last inputs going in and coming out.
#include <heed/linear.hpp>
#include <string>

#include "conformance/case.hpp"

namespace conformance {

namespace {

using heed::index;

constexpr int slot_bias = 2;
constexpr int slot_past_state = 3;

/// The tensor again, with the axis of extent 1 between channels and taps left out.
template <class T>
heed::view<const T, 2> channels_by_taps(const heed::tensor<T, 3>& weight) {
  if (weight.extent(1) != 1) {
    throw unsupported("CausalConvWithState, weights of " + std::to_string(weight.extent(1)) +
                      " input channels");
  }
  return heed::as_view(weight).swap_axes(0, 1)[0];
}

template <class T>
void run_as(const test_case& c, const std::string& scalar, bool silu, comparison& results) {
  using A = heed::accumulate_t<T>;
  const auto x = to_tensor<T, 3>(c.required_input(0));
  const auto memory = to_tensor<T, 3>(c.required_input(1));
  const auto weight = channels_by_taps(memory);
  heed::tensor<T, 1> bias;
  heed::tensor<A, 3> state({x.extent(0), x.extent(1), weight.extent(1) - 1});
  if (const array* past = c.input(slot_past_state)) state = to_tensor<A, 3>(*past);
  heed::causal_convolution_options<T, A> options{.state = heed::as_view(state), .silu = silu};
  if (const array* b = c.input(slot_bias)) {
    bias = to_tensor<T, 1>(*b);
    options.bias = heed::as_view(bias);
  }

  const auto compare = [&](const heed::view<const T, 3>& got, const std::string& how) {
    results.add("output " + how + " in " + scalar, values_of(got), *c.output(0));
    if (const array* present = c.output(1)) {
      results.add("present_state " + how + " in " + scalar, values_of(heed::as_view(state)),
                  *present);
    }
  };
  const auto before = state;
  const auto whole = heed::causal_convolution(x, weight, options);
  compare(heed::as_view(whole), "in one call");

  state = before;
  options.state = heed::as_view(state);
  heed::tensor<T, 3> out(x.extents());
  for (index t = 0; t < x.extent(2); ++t) {
    heed::causal_convolution_into(heed::as_view(out).slice(2, t, t + 1),
                                  heed::as_view(x).slice(2, t, t + 1), weight, options);
  }
  compare(heed::as_view(out), "token by token");
}

}  // namespace

void run_causal_convolution(const test_case& c, comparison& results) {
  c.allow_only({"activation"}, slot_past_state, 1);
  const auto activation = c.attribute<std::string>("activation", "none");
  const bool silu = activation == "silu" || activation == "swish";
  if (!silu && activation != "none") {
    throw unsupported("CausalConvWithState, activation " + activation);
  }
  if (c.required_input(0).is_half()) {
    run_as<heed::half>(c, "half", silu, results);
  } else {
    run_as<float>(c, "float", silu, results);
  }
  run_as<double>(c, "double", silu, results);
}

}  // namespace conformance
