// SPDX-License-Identifier: MIT
// Gradients: of q, k, v and of what modifiers read, given those of the output and of the log-sum-exp.
//
// Every case runs through the same modifiers, those it does not name being such that they change
// nothing. In double to 1e-10, in float to 1e-4 of the largest number of a tensor.
#include <algorithm>
#include <cstdint>
#include <heed/attention/backward/attention_backward.hpp>
#include <heed/attention/backward/naive_attention_backward.hpp>
#include <heed/attention/naive.hpp>
#include <heed/score.hpp>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "conformance/case.hpp"

namespace conformance {

namespace {

using heed::index;

/// The params of a case of the softmax family, and the tensors that its modifiers read.
struct softmax_case {
  std::optional<index> left;
  std::optional<index> right;
  std::optional<double> scale;
  std::optional<double> softcap;
  index max_distance = 0;
  bool lse = false;
  std::vector<index> offset;
  std::vector<index> lengths;
  std::vector<index> documents;
  heed::tensor<double, 4> bias{{1, 1, 1, 1}};
  heed::tensor<std::uint8_t, 4> mask{{1, 1, 1, 1}};
  std::vector<double> slopes;
  std::vector<double> sink;
  std::vector<double> table;  // [heads][2 max_distance + 1]
};

template <class T>
heed::tensor<T, 4> right_aligned(const array& a) {
  std::array<index, 4> extents{1, 1, 1, 1};
  for (std::size_t i = 0; i < a.rank(); ++i) extents[4 - a.rank() + i] = a.shape[i];
  heed::tensor<T, 4> out(extents);
  std::transform(a.values.begin(), a.values.end(), out.data(),
                 [](double x) { return static_cast<T>(x); });
  return out;
}

/// A param that is one number, or one per entry.
std::vector<index> indices(const test_case& c, const char* name, index count, index otherwise) {
  const nlohmann::json* value = c.attribute(name);
  if (value == nullptr) return std::vector<index>(static_cast<std::size_t>(count), otherwise);
  if (value->is_number()) {
    return std::vector<index>(static_cast<std::size_t>(count), value->get<index>());
  }
  std::vector<index> all;
  for (const auto& x : *value) {
    if (x.is_array()) {
      for (const auto& y : x) all.push_back(y.get<index>());
    } else {
      all.push_back(x.get<index>());
    }
  }
  return all;
}

softmax_case read_softmax(const test_case& c) {
  const array& q = c.required_input("q");
  const array& k = c.required_input("k");
  const index batch = q.shape[0];
  const index heads = q.shape[1];
  softmax_case s;
  const auto side = [&](const char* name) {
    const nlohmann::json* value = c.attribute(name);
    return value != nullptr && value->is_number() ? std::optional(value->get<index>())
                                                  : std::nullopt;
  };
  const auto number = [&](const char* name) {
    const nlohmann::json* value = c.attribute(name);
    return value != nullptr && value->is_number() ? std::optional(value->get<double>())
                                                  : std::nullopt;
  };
  s.left = side("left");
  s.right = side("right");
  if (c.attribute<bool>("causal", false)) s.right = std::min<index>(s.right.value_or(0), 0);
  s.scale = number("scale");
  s.softcap = number("softcap");
  s.max_distance = c.attribute<index>("max_distance", 0);
  s.lse = c.attribute<bool>("lse", false);
  s.offset = indices(c, "offset", batch, 0);
  s.lengths = indices(c, "lengths", batch, k.shape[2]);
  s.documents = indices(c, "documents", std::max(q.shape[2], k.shape[2]), 0);
  s.mask(0, 0, 0, 0) = 1;
  if (const array* bias = c.input("bias")) s.bias = right_aligned<double>(*bias);
  if (const array* mask = c.input("mask")) s.mask = right_aligned<std::uint8_t>(*mask);
  const auto logits = [&](const char* name, double otherwise, index count) {
    const array* a = c.input(name);
    return a != nullptr ? a->values
                        : std::vector<double>(static_cast<std::size_t>(count), otherwise);
  };
  s.slopes = logits("slopes", 0, heads);
  s.sink = logits("sink", -std::numeric_limits<double>::infinity(), heads);
  s.table = logits("relative_table", 0, heads * (2 * s.max_distance + 1));
  return s;
}

/// Calls run(modifiers...) and compares what their gradients came to.
template <class T, class Run>
void with_modifiers(const test_case& c, const softmax_case& s, const std::string& what,
                    comparison& results, double tolerance, const Run& run) {
  heed::tensor<double, 4> d_bias(s.bias.extents());
  std::vector<double> d_slopes(s.slopes.size());
  std::vector<double> d_sink(s.sink.size());
  std::vector<double> d_table(s.table.size());
  const auto at = [](index i) { return static_cast<std::size_t>(i); };
  const auto slot = [&](const heed::position& p) {
    const index m = s.max_distance;
    return at(p.head * (2 * m + 1) + std::clamp(p.query - p.key, -m, m) + m);
  };
  const auto relative = heed::with_gradient(
      [&](auto score, const heed::position& p) { return score + static_cast<T>(s.table[slot(p)]); },
      [&](double d, const heed::position& p) { d_table[slot(p)] += d; });
  const auto slopes =
      heed::with_gradient(heed::alibi(s.slopes), [&](double d, const heed::position& p) {
        d_slopes[at(p.head)] -= d * static_cast<double>(std::abs(p.query - p.key));
      });
  const auto bias = heed::with_gradient(heed::bias(s.bias), [&](double d, const heed::position& p) {
    const auto& e = s.bias.extents();
    d_bias(e[0] == 1 ? 0 : p.batch, e[1] == 1 ? 0 : p.head, e[2] == 1 ? 0 : p.row,
           e[3] == 1 ? 0 : p.key) += d;
  });
  const auto sink = heed::with_gradient(
      heed::sink(s.sink), [&](double d, const heed::position& p) { d_sink[at(p.head)] += d; });
  const index queries = c.required_input("q").shape[2];
  const index keys = c.required_input("k").shape[2];
  const auto ids = std::span<const index>(s.documents);
  const bool one_row = static_cast<index>(ids.size()) == std::max(queries, keys);
  const heed::documents documents =
      one_row ? heed::documents(ids.first(at(queries)), ids.first(at(keys))) : heed::documents(ids);
  const auto visible = heed::window{.left = s.left, .right = s.right} && heed::lengths(s.lengths) &&
                       documents && heed::keep(s.mask);
  if (s.softcap) {
    run(heed::softcap(*s.softcap), relative, slopes, bias, visible, sink);
  } else {
    run(relative, slopes, bias, visible, sink);
  }

  const auto compare = [&](const char* name, const auto& got) {
    if (!c.meta().at("gradients").contains(name)) return;
    results.add_relative(std::string("gradient of ") + name + what,
                         std::vector<double>(got.data(), got.data() + got.size()), c.gradient(name),
                         tolerance);
  };
  compare("bias", d_bias);
  compare("slopes", d_slopes);
  compare("sink", d_sink);
  compare("relative_table", d_table);
}

template <class T>
void softmax_gradients(const test_case& c, const softmax_case& s, const std::string& scalar,
                       double tolerance, comparison& results) {
  const auto q = to_tensor<T, 4>(c.required_input("q"));
  const auto k = to_tensor<T, 4>(c.required_input("k"));
  const auto v = to_tensor<T, 4>(c.required_input("v"));
  const auto d_out = to_tensor<T, 4>(c.cotangent("o"));
  const heed::attention_options options{.scale = s.scale, .offset = s.offset};
  heed::tensor<T, 3> d_lse({q.extent(0), q.extent(1), q.extent(2)});
  if (c.meta().at("cotangents").contains("lse")) d_lse = to_tensor<T, 3>(c.cotangent("lse"));

  const auto with = [&](const auto& method, const std::string& name) {
    const std::string what = " by " + name + " in " + scalar;
    with_modifiers<T>(c, s, what, results, tolerance, [&](const auto&... modifiers) {
      const auto forward = heed::naive_attention_with_lse(q, k, v, options, modifiers...);
      results.add_relative("o" + what, values_of(heed::as_view(forward.output)), c.output("o"),
                           tolerance);
      if (const array* lse = c.find_output("lse")) {
        results.add_relative("lse" + what, values_of(heed::as_view(forward.log_sum_exp)), *lse,
                             tolerance);
      }
      const auto g =
          method(q, k, v, forward, heed::cotangents(d_out, d_lse), options, modifiers...);
      const auto compare = [&](const char* input, const auto& got) {
        results.add_relative(std::string("gradient of ") + input + what,
                             values_of(heed::as_view(got)), c.gradient(input), tolerance);
      };
      compare("q", g.query);
      compare("k", g.key);
      compare("v", g.value);
    });
  };
  with(heed::naive_attention_backward, "the naive method");
  with(heed::attention_backward, "tiles");
}

void run_softmax(const test_case& c, comparison& results) {
  c.allow_only({"causal", "left", "right", "offset", "scale", "softcap", "lengths", "documents",
                "lse", "max_distance"},
               -1, -1);
  const softmax_case s = read_softmax(c);
  softmax_gradients<double>(c, s, "double", 1e-10, results);
  softmax_gradients<float>(c, s, "float", 1e-4, results);
}

}  // namespace

void run_gradient(const test_case& c, comparison& results) {
  const std::string family = c.meta().value("family", "");
  if (run_matrix_state_gradient(c, results) || run_scan_gradient(c, results)) return;
  if (family != "softmax") throw unsupported("gradients of " + c.meta().value("method", family));
  run_softmax(c, results);
}

}  // namespace conformance
