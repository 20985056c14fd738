// SPDX-License-Identifier: MIT
// Gradients of the recurrences with a matrix state, tensors batch x tokens x heads x channels.
#include <cmath>
#include <heed/linear/matrix_state/backward/matrix_state_backward.hpp>
#include <heed/linear/matrix_state/backward/naive_matrix_state_backward.hpp>
#include <string>
#include <vector>

#include "conformance/case.hpp"

namespace conformance {

namespace {

using heed::index;

/// An array as a tensor of rank 4, whose missing last axis has extent 1.
template <class T>
heed::tensor<T, 4> with_channels(array a) {
  if (a.rank() == 3) a.shape.push_back(1);
  return to_tensor<T, 4>(a);
}

template <class T>
void matrix_state_gradients(const test_case& c, const std::string& scalar, double tolerance,
                            comparison& results) {
  const auto find = [&](const char* name) {
    const array* a = c.input(name);
    return a != nullptr ? with_channels<T>(*a) : heed::tensor<T, 4>();
  };
  const auto given = [&](const char* name) {
    return c.meta().at("cotangents").contains(name) ? with_channels<T>(c.cotangent(name))
                                                    : heed::tensor<T, 4>();
  };
  const auto tokens = [](const auto& x) {
    return heed::view<const T, 4>(heed::as_view(x)).swap_axes(1, 2);
  };
  const auto q = find("q");
  const auto k = find("k");
  const auto v = find("v");
  const auto g = find("g");
  const auto beta = find("beta");
  const auto initial = find("initial_state");
  const auto d_out = given("o");
  const auto d_state = given("S");
  heed::matrix_state_inputs<T> in{tokens(q), tokens(k), tokens(v)};
  heed::tensor<T, 1> decays({k.extent(2)});
  if (g.size() > 0) in.gate = tokens(g);
  if (c.meta().value("method", "") == "retention") {
    for (index h = 0; h < k.extent(2); ++h) {
      decays(h) = static_cast<T>(std::log1p(-std::exp2(-5.0 - static_cast<double>(h))));
    }
    in.gate = {decays.data(), {k.extent(0), k.extent(2), k.extent(1), 1}, {0, 1, 0, 0}};
  }
  if (beta.size() > 0) in.beta = tokens(beta);
  if (initial.size() > 0) in.initial_state = heed::as_view(initial);
  const nlohmann::json* scale = c.attribute("scale");
  if (scale != nullptr && scale->is_number()) in.scale = scale->get<double>();
  heed::matrix_state_cotangents<T> cotangents;
  if (d_out.size() > 0) cotangents.out = tokens(d_out);
  if (d_state.size() > 0) cotangents.final_state = heed::as_view(d_state);

  struct run {
    index chunk;
    bool by_chunks;
  };
  for (const run r : {run{1, false}, run{16, false}, run{64, false}, run{5, true}, run{64, true}}) {
    in.chunk = r.chunk;
    heed::tensor<T, 4> dq(q.extents());
    heed::tensor<T, 4> dk(k.extents());
    heed::tensor<T, 4> dv(v.extents());
    heed::tensor<T, 4> dg(g.extents());
    heed::tensor<T, 4> d_beta(beta.extents());
    heed::tensor<T, 4> d_initial(initial.extents());
    const auto to = [](heed::tensor<T, 4>& x) { return heed::as_view(x).swap_axes(1, 2); };
    heed::matrix_state_gradients<T> gradients{to(dq), to(dk), to(dv)};
    if (g.size() > 0) gradients.gate = to(dg);
    if (beta.size() > 0) gradients.beta = to(d_beta);
    if (initial.size() > 0) gradients.initial_state = heed::as_view(d_initial);
    if (r.by_chunks) {
      heed::matrix_state_backward(in, cotangents, gradients);
    } else {
      heed::naive_matrix_state_backward(in, cotangents, gradients);
    }
    const auto compare = [&](const char* name, const heed::tensor<T, 4>& got) {
      if (!c.meta().at("gradients").contains(name)) return;
      results.add_relative(std::string("gradient of ") + name + " in " + scalar,
                           values_of(heed::as_view(got)), c.gradient(name), tolerance);
    };
    compare("q", dq);
    compare("k", dk);
    compare("v", dv);
    compare("g", dg);
    compare("beta", d_beta);
    compare("initial_state", d_initial);
  }
}

}  // namespace

bool run_matrix_state_gradient(const test_case& c, comparison& results) {
  const std::string method = c.meta().value("method", "");
  bool known = false;
  for (const char* name :
       {"linear_attention", "scalar_gated_attention", "gated_attention", "retention",
        "delta_attention", "gated_delta_attention", "channel_gated_delta_attention"}) {
    known = known || method == name;
  }
  if (!known) return false;
  c.allow_only({"scale"}, -1, -1);
  matrix_state_gradients<double>(c, "double", 1e-10, results);
  matrix_state_gradients<float>(c, "float", 1e-4, results);
  return true;
}

}  // namespace conformance
