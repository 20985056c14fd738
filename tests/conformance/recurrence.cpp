// SPDX-License-Identifier: MIT
// The recurrences of the `fla` folder, tensors batch x tokens x heads x channels unless noted; here
// those of kernelised attention.
#include <cmath>
#include <heed/linear.hpp>
#include <span>
#include <string>

#include "conformance/case.hpp"

namespace conformance {

namespace {

using heed::index;

/// The case's scale, 1 / sqrt(Dk) where it gives none.
[[nodiscard]] double scale_of(const test_case& c, index head_dim) {
  const auto* given = c.attribute("scale");
  if (given != nullptr && given->is_number()) return given->get<double>();
  return 1 / std::sqrt(static_cast<double>(head_dim));
}

/// S += k v', o = scale S'q; normalised, divided by scale q'z + 1e-10, z the sum of this call's
/// keys.
template <class T>
void identity_linear(const test_case& c, const std::string& scalar, comparison& results) {
  token_major<T> q(c.required_input("q"));
  token_major<T> k(c.required_input("k"));
  token_major<T> v(c.required_input("v"));
  const double scale = scale_of(c, q.view().extent(3));
  heed::linear_options options;
  options.normalise = c.attribute<bool>("normalize", false);
  if (options.normalise) {
    options.eps = 1e-10 / scale;
  } else {
    options.scale = scale;
  }
  for (const auto form : {heed::linear_form::recurrent, heed::linear_form::chunked}) {
    const heed::view<T, 4> keys = k.view();
    heed::tensor<T, 4> sum({keys.extent(0), keys.extent(1), keys.extent(3), v.view().extent(3)});
    if (const array* given = c.input("initial_state")) sum = to_tensor<T, 4>(*given);
    heed::tensor<T, 3> z({sum.extent(0), sum.extent(1), sum.extent(2)});
    heed::linear_state_view<T> state{heed::as_view(sum), heed::as_view(z)};
    token_major<T> out(c.output("o"));
    options.form = form;
    heed::linear_attention_into(out.view(), q.view(), k.view(), v.view(), state, options,
                                heed::identity_features{});
    const std::string how = form == heed::linear_form::recurrent ? "recurrent" : "chunked";
    results.add("o, " + how + ", in " + scalar, values_of(heed::as_view(out.memory)),
                c.output("o"));
    if (c.attribute<bool>("output_final_state", false)) {
      results.add("S, " + how + ", in " + scalar, values_of(heed::as_view(sum)), c.output("S"));
    }
  }
}

/// o_i = sum_j f(s_ij) v_j / (sum_j f(s_ij) + 1e-6), s = scale q.k, f(s) = phi(q).phi(k) for a
/// scale of `own`: the queries are multiplied by what is missing. Without use_norm the sums alone.
template <class T, class Map>
void kernel_of_scores(const test_case& c, const std::string& scalar, comparison& results,
                      const Map& map, double own) {
  const bool heads_first = c.meta().value("note", "").find("head-first") != std::string::npos;
  const auto open = [&](const array& a) {
    auto t = to_tensor<T, 4>(a);
    if (heads_first) return t;
    heed::tensor<T, 4> permuted({t.extent(0), t.extent(2), t.extent(1), t.extent(3)});
    for (index b = 0; b < t.extent(0); ++b) {
      for (index n = 0; n < t.extent(1); ++n) {
        for (index h = 0; h < t.extent(2); ++h) {
          for (index i = 0; i < t.extent(3); ++i) permuted(b, h, n, i) = t(b, n, h, i);
        }
      }
    }
    return permuted;
  };
  auto q = open(c.required_input("q"));
  const auto k = open(c.required_input("k"));
  const auto v = open(c.required_input("v"));
  double scale = scale_of(c, q.extent(3));
  if (!c.attribute<bool>("use_scale", true)) scale = 1;
  for (index i = 0; i < q.size(); ++i) q.data()[i] *= static_cast<T>(scale / own);
  heed::linear_options options;
  options.normalise = c.attribute<bool>("use_norm", true);
  if (!options.normalise) options.scale = 1.0;
  for (const auto form :
       {heed::linear_form::recurrent, heed::linear_form::chunked, heed::linear_form::parallel}) {
    options.form = form;
    const auto out = heed::linear_attention(q, k, v, options, map);
    const auto seen = heads_first ? heed::as_view(out) : heed::heads_first(out);
    results.add("o by form " + std::to_string(static_cast<int>(form)) + " in " + scalar,
                values_of(seen), c.output("o"));
  }
}

template <class T>
void based(const test_case& c, const std::string& scalar, comparison& results) {
  const auto d = static_cast<double>(c.required_input("q").shape.back());
  kernel_of_scores<T>(c, scalar, results, heed::taylor_features{}, 1 / std::sqrt(d));
}

/// phi(x) = x x', all products of two channels, exact to the last bit where heed's own halves the
/// count with factors of sqrt 2: near q.k = 0 float needs that bit.
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

template <class T>
void rebased(const test_case& c, const std::string& scalar, comparison& results) {
  kernel_of_scores<T>(c, scalar, results, squared_features{}, 1.0);
}

}  // namespace

void run_recurrence(const test_case& c, comparison& results) {
  if (run_masked_attention(c, results) || run_native_sparse(c, results) || run_scan(c, results) ||
      run_gated_recurrence(c, results)) {
    return;
  }
  const std::string function = c.function();
  if (c.op() == "linear_attn" || function == "naive_recurrent_linear_attn") {
    identity_linear<float>(c, "float", results);
    identity_linear<double>(c, "double", results);
  } else if (c.op() == "rebased" || function == "naive_parallel_rebased") {
    rebased<float>(c, "float", results);
    rebased<double>(c, "double", results);
  } else if (c.op() == "based" || function == "naive_parallel_based") {
    based<float>(c, "float", results);
    based<double>(c, "double", results);
  } else {
    throw unsupported(c.op());
  }
}

}  // namespace conformance
