// SPDX-License-Identifier: MIT
// LinearAttention: recurrences over packed projections, the rule named by the case.
//
// Rule `linear`: S += k v', out = scale S'q; a state may come in, and comes out.
#include <heed/linear.hpp>
#include <string>

#include "case.hpp"

namespace conformance {

namespace {

using heed::index;

constexpr int slot_past_state = 3;

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
  if (rule != "linear") throw unsupported("LinearAttention, rule " + rule);
  c.allow_only({"update_rule", "q_num_heads", "kv_num_heads", "scale", "chunk_size"},
               slot_past_state, 1);
  if (c.required_input(0).is_half()) {
    run_as<heed::half>(c, "half", results);
  } else {
    run_as<float>(c, "float", results);
  }
  run_as<double>(c, "double", results);
}

}  // namespace conformance
