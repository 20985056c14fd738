// SPDX-License-Identifier: MIT
// LinearAttention: recurrences over packed projections, the rule named by the case.
//
// Rules, g the log decay of a head or of a key channel, beta of a head or shared by all:
//   linear        S += k v'                    gated        S = diag(exp g) S + k v'
//   delta         S += beta k (v - S'k)'       gated_delta  decay first, then delta
// out = scale S'q; a state may come in, and comes out.
#include <heed/linear.hpp>
#include <string>

#include "conformance/case.hpp"

namespace conformance {

namespace {

using heed::index;

constexpr int slot_past_state = 3;

constexpr int slot_decay = 4;
constexpr int slot_beta = 5;

/// batch x tokens x heads as batch x heads x tokens, in the order that heed's gates have.
template <class T>
heed::tensor<T, 3> numbers(const array& a) {
  const auto x = to_tensor<T, 3>(a);
  heed::tensor<T, 3> y({x.extent(0), x.extent(2), x.extent(1)});
  for (index b = 0; b < x.extent(0); ++b) {
    for (index t = 0; t < x.extent(1); ++t) {
      for (index h = 0; h < x.extent(2); ++h) y(b, h, t) = x(b, t, h);
    }
  }
  return y;
}

/// f(function, gate and rate inputs...) of the case's rule.
template <class T, class F>
void with_rule(const test_case& c, const std::string& rule, index kv_heads, index key_dim, F&& f) {
  const bool gated = rule == "gated" || rule == "gated_delta";
  const bool delta = rule == "delta" || rule == "gated_delta";
  if (gated) {
    const array& decay = c.required_input(slot_decay);
    const bool per_channel = decay.rank() == 4 ? decay.shape[3] != 1 || key_dim == 1
                                               : decay.shape.back() != kv_heads && key_dim > 1;
    if (per_channel) {
      const operand<T> g(decay, kv_heads);
      if (!delta) return f(heed::gated_attention_into, g.view());
      return f(heed::channel_gated_delta_attention_into, g.view(),
               numbers<T>(c.required_input(slot_beta)));
    }
    const auto g = numbers<T>(decay);
    if (!delta) return f(heed::scalar_gated_attention_into, g);
    return f(heed::gated_delta_attention_into, g, numbers<T>(c.required_input(slot_beta)));
  }
  f(heed::delta_attention_into, numbers<T>(c.required_input(slot_beta)));
}

template <class T>
void run_with_rule(const test_case& c, const std::string& rule, const std::string& scalar,
                   comparison& results) {
  using A = heed::accumulate_t<T>;
  const auto q_heads = c.attribute<index>("q_num_heads", 1);
  const auto kv_heads = c.attribute<index>("kv_num_heads", 1);
  const operand<T> q(c.required_input(0), q_heads);
  const operand<T> k(c.required_input(1), kv_heads);
  const operand<T> v(c.required_input(2), kv_heads);
  for (const auto form : {heed::linear_form::recurrent, heed::linear_form::chunked}) {
    heed::recurrence_options options;
    options.form = form;
    if (const double scale = c.attribute<double>("scale", 0.0); scale != 0) options.scale = scale;
    heed::tensor<A, 4> state(
        {q.view().extent(0), kv_heads, q.view().extent(3), v.view().extent(3)});
    if (const array* past = c.input(slot_past_state)) state = to_tensor<A, 4>(*past);
    operand<T> out(*c.output(0), q_heads);
    with_rule<T>(c, rule, kv_heads, k.view().extent(3),
                 [&](const auto& function, const auto&... in) {
                   function(out.view(), q.view(), k.view(), v.view(), in..., state, options);
                 });
    const std::string how = (form == heed::linear_form::recurrent ? " by the recurrent form in "
                                                                  : " by the chunked form in ") +
                            scalar;
    results.add("output" + how, out.values(), *c.output(0));
    if (const array* present = c.output(1)) {
      results.add("present_state" + how, values_of(heed::as_view(state)), *present);
    }
  }
}

template <class T>
void run_as(const test_case& c, const std::string& scalar, comparison& results) {
  using A = heed::accumulate_t<T>;
  const auto q_heads = c.attribute<index>("q_num_heads", 1);
  const auto kv_heads = c.attribute<index>("kv_num_heads", 1);
  const operand<T> q(c.required_input(0), q_heads);
  const operand<T> k(c.required_input(1), kv_heads);
  const operand<T> v(c.required_input(2), kv_heads);
  const array& expected = *c.output(0);
  // A scale of 0 is one that is absent.
  heed::linear_options options{.normalise = false};
  if (const double scale = c.attribute<double>("scale", 0.0); scale != 0) options.scale = scale;

  for (const auto form : {heed::linear_form::recurrent, heed::linear_form::chunked}) {
    options.form = form;
    const std::string how = (form == heed::linear_form::recurrent ? " by the recurrent form in "
                                                                  : " by the chunked form in ") +
                            scalar;
    heed::tensor<A, 4> sum({q.view().extent(0), kv_heads, q.view().extent(3), v.view().extent(3)});
    if (const array* past = c.input(slot_past_state)) sum = to_tensor<A, 4>(*past);
    heed::linear_state_view<A> state{heed::as_view(sum), {}};
    operand<T> out(expected, q_heads);
    heed::linear_attention_into(out.view(), q.view(), k.view(), v.view(), state, options,
                                heed::identity_features{});
    results.add("output" + how, out.values(), expected);
    if (const array* present = c.output(1)) {
      results.add("present_state" + how, values_of(heed::as_view(sum)), *present);
    }
  }
}

}  // namespace

void run_linear_attention(const test_case& c, comparison& results) {
  const auto rule = c.attribute<std::string>("update_rule", "gated_delta");
  const auto run = [&]<class T>(T, const std::string& scalar) {
    if (rule == "linear") {
      run_as<T>(c, scalar, results);
    } else {
      run_with_rule<T>(c, rule, scalar, results);
    }
  };
  if (rule != "linear" && rule != "gated" && rule != "delta" && rule != "gated_delta") {
    throw unsupported("LinearAttention, rule " + rule);
  }
  c.allow_only({"update_rule", "q_num_heads", "kv_num_heads", "scale", "chunk_size"}, slot_beta, 1);
  const bool gated = rule == "gated" || rule == "gated_delta";
  const bool delta = rule == "delta" || rule == "gated_delta";
  if ((c.input(slot_decay) != nullptr && !gated) || (c.input(slot_beta) != nullptr && !delta)) {
    throw unsupported("LinearAttention, an input that rule " + rule + " does not read");
  }
  if (c.required_input(0).is_half()) {
    run(heed::half{}, "half");
  } else {
    run(float{}, "float");
  }
  run(double{}, "double");
}

}  // namespace conformance
