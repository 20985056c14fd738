// SPDX-License-Identifier: MIT
// The recurrences of the `fla` folder, tensors batch x tokens x heads x channels unless noted.
#include <heed/linear.hpp>
#include <span>
#include <string>
#include <vector>

#include "case.hpp"

namespace conformance {

namespace {

using heed::index;

/// S += k v', o = S'q / sqrt(Dk).
template <class T>
void unnormalised_linear(const test_case& c, const std::string& scalar, comparison& results) {
  token_major<T> q(c.required_input("q"));
  token_major<T> k(c.required_input("k"));
  token_major<T> v(c.required_input("v"));
  if (c.attribute<bool>("normalize", false)) throw unsupported("linear_attn, normalised");
  for (const auto form : {heed::linear_form::recurrent, heed::linear_form::chunked}) {
    auto sum = to_tensor<T, 4>(c.required_input("initial_state"));
    heed::linear_state_view<T> state{heed::as_view(sum), {}};
    token_major<T> out(c.output("o"));
    heed::linear_options options{.normalise = false};
    options.form = form;
    heed::linear_attention_into(out.view(), q.view(), k.view(), v.view(), state, options,
                                heed::identity_features{});
    const std::string how = form == heed::linear_form::recurrent ? "recurrent" : "chunked";
    results.add("o, " + how + ", in " + scalar, values_of(heed::as_view(out.memory)),
                c.output("o"));
    results.add("S, " + how + ", in " + scalar, values_of(heed::as_view(sum)), c.output("S"));
  }
}

/// phi(x) = x x', all products of two channels: phi(q).phi(k) = (q.k)^2.
struct squared_features {
  [[nodiscard]] index features(index channels) const { return channels * channels; }
  template <class A>
  void operator()(std::span<const A> x, std::span<A> phi) const {
    std::size_t at = 0;
    for (const A a : x) {
      for (const A b : x) phi[at++] = a * b;
    }
  }
};

/// o_i = sum_j s_ij^2 v_j / (sum_j s_ij^2 + 1e-6), s = q.k / sqrt(D), head first. The scale is left
/// out of both sums, so that eps carries it.
template <class T>
void squared_kernel(const test_case& c, const std::string& scalar, comparison& results) {
  const auto q = to_tensor<T, 4>(c.required_input("q"));
  const auto k = to_tensor<T, 4>(c.required_input("k"));
  const auto v = to_tensor<T, 4>(c.required_input("v"));
  for (const auto form : {heed::linear_form::recurrent, heed::linear_form::chunked}) {
    heed::linear_options options;
    options.form = form;
    options.eps = 1e-6 * static_cast<double>(q.extent(3));
    const auto out = heed::linear_attention(q, k, v, options, squared_features{});
    results.add("o in " + scalar, values_of(heed::as_view(out)), c.output("o"));
  }
}

}  // namespace

void run_recurrence(const test_case& c, comparison& results) {
  if (run_masked_attention(c, results)) return;
  if (c.op() == "linear_attn") {
    unnormalised_linear<float>(c, "float", results);
    unnormalised_linear<double>(c, "double", results);
  } else if (c.op() == "rebased") {
    squared_kernel<float>(c, "float", results);
    squared_kernel<double>(c, "double", results);
  } else if (!run_scan(c, results) && !run_gated_recurrence(c, results)) {
    throw unsupported(c.op());
  }
}

}  // namespace conformance
