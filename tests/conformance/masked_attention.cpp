// SPDX-License-Identifier: MIT
// Cases of the `fla` folder that are softmax attention under a mask or a gate, tensors batch x
// tokens x heads x channels: forgetting attention, windows with a sink.
#include <heed/attention.hpp>
#include <heed/score.hpp>
#include <string>
#include <vector>

#include "conformance/case.hpp"

namespace conformance {

namespace {

using heed::index;

heed::attention_options options_of(const test_case& c) {
  heed::attention_options o;
  const nlohmann::json* scale = c.attribute("scale");
  if (scale != nullptr && scale->is_number()) o.scale = scale->get<double>();
  return o;
}

/// A window of W keys, the query's own included, where the case has one.
heed::window window_of(const test_case& c) {
  const nlohmann::json* width = c.attribute("window_size");
  if (width == nullptr || !width->is_number()) return {};
  return {.left = width->get<index>() - 1};
}

/// Runs `call(method, out)` with the naive and the tiled method, and compares `o`.
template <class T, class Call>
void compare(const test_case& c, const std::string& scalar, comparison& results, const Call& call) {
  const array& expected = c.output("o");
  const auto with = [&](const auto& method, const std::string& name) {
    token_major<T> out(expected);
    call(method, out.view());
    results.add("o by " + name + " in " + scalar, values_of(heed::as_view(out.memory)), expected);
  };
  with(heed::naive_attention_into, "naive attention");
  with(heed::attention_into, "tiled attention");
}

/// Softmax attention with log forget gates: score q.k / sqrt(D) + G_i - G_j, G the running sum of
/// g.
template <class T>
void forgetting_attention(const test_case& c, const std::string& scalar, comparison& results) {
  token_major<T> q(c.required_input("q"));
  token_major<T> k(c.required_input("k"));
  token_major<T> v(c.required_input("v"));
  auto sums = to_tensor<double, 3>(c.required_input("g"));  // batch x tokens x heads
  for (index b = 0; b < sums.extent(0); ++b) {
    for (index t = 1; t < sums.extent(1); ++t) {
      for (index h = 0; h < sums.extent(2); ++h) sums(b, t, h) += sums(b, t - 1, h);
    }
  }
  const auto gates = [&sums]<class A>(A s, const heed::position& p) {
    return s + static_cast<A>(sums(p.batch, p.query, p.head) - sums(p.batch, p.key, p.head));
  };
  compare<T>(c, scalar, results, [&](const auto& method, const heed::view<T, 4>& out) {
    method(out, q.view(), k.view(), v.view(), options_of(c), gates, heed::causal() && window_of(c));
  });
}

/// A window, and a logit a head in the denominator.
template <class T>
void window_with_sink(const test_case& c, const std::string& scalar, comparison& results) {
  token_major<T> q(c.required_input("q"));
  token_major<T> k(c.required_input("k"));
  token_major<T> v(c.required_input("v"));
  const auto mask = heed::causal() && window_of(c);
  std::vector<T> sinks;
  if (const array* bias = c.input("sink_bias")) {
    for (const double x : bias->values) sinks.push_back(static_cast<T>(x));
  }
  compare<T>(c, scalar, results, [&](const auto& method, const heed::view<T, 4>& out) {
    if (sinks.empty()) {
      method(out, q.view(), k.view(), v.view(), options_of(c), mask);
    } else {
      method(out, q.view(), k.view(), v.view(), options_of(c), mask, heed::sink(sinks));
    }
  });
}

}  // namespace

bool run_masked_attention(const test_case& c, comparison& results) {
  const std::string function = c.function();
  const auto in_both = [&](const auto& run) {
    run(float{}, "float");
    run(double{}, "double");
    return true;
  };
  if (function == "naive_forgetting_attn") {
    return in_both([&]<class T>(T, const char* s) { forgetting_attention<T>(c, s, results); });
  }
  if (function == "naive_parallel_attn") {
    return in_both([&]<class T>(T, const char* s) { window_with_sink<T>(c, s, results); });
  }
  return false;
}

}  // namespace conformance
