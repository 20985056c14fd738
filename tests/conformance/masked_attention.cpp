// SPDX-License-Identifier: MIT
// Cases of the `fla` folder that are softmax attention under a mask or a gate, tensors batch x
// tokens x heads x channels: forgetting attention, windows with a sink, selected and compressed
// blocks.
#include <heed/attention.hpp>
#include <heed/score.hpp>
#include <optional>
#include <string>
#include <vector>

#include "case.hpp"

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

/// A query sees the keys of its selected blocks that do not lie ahead of it.
template <class T>
void selected_blocks(const test_case& c, const std::string& scalar, comparison& results) {
  token_major<T> q(c.required_input("q"));
  token_major<T> k(c.required_input("k"));
  token_major<T> v(c.required_input("v"));
  auto blocks = to_tensor<index, 4>(c.required_input("block_indices"));
  const auto block_size = c.attribute<index>("block_size", 64);
  // Where the case says how many of a row's choices count, the others are none.
  const nlohmann::json* count = c.attribute("block_counts");
  const index most =
      count != nullptr && count->is_number() ? count->get<index>() : blocks.extent(3);
  std::optional<heed::tensor<index, 3>> counts;
  if (const array* a = c.input("block_counts")) counts = to_tensor<index, 3>(*a);
  for (index b = 0; b < blocks.extent(0); ++b) {
    for (index t = 0; t < blocks.extent(1); ++t) {
      for (index h = 0; h < blocks.extent(2); ++h) {
        for (index s = counts ? (*counts)(b, t, h) : most; s < blocks.extent(3); ++s) {
          blocks(b, t, h, s) = -1;
        }
      }
    }
  }
  const auto selected = [&blocks, block_size](const heed::position& p) {
    for (index s = 0; s < blocks.extent(3); ++s) {
      if (blocks(p.batch, p.row, p.kv_head, s) == p.key / block_size) return true;
    }
    return false;
  };
  compare<T>(c, scalar, results, [&](const auto& method, const heed::view<T, 4>& out) {
    method(out, q.view(), k.view(), v.view(), options_of(c), heed::causal() && selected);
  });
  token_major<T> out(c.output("o"));
  heed::selected_attention_into(out.view(), q.view(), k.view(), v.view(), heed::heads_first(blocks),
                                block_size, options_of(c), heed::causal());
  results.add("o by selected attention in " + scalar, values_of(heed::as_view(out.memory)),
              c.output("o"));
}

/// Keys and values that stand for a block each, visible once their block is complete.
template <class T>
void compressed_blocks(const test_case& c, const std::string& scalar, comparison& results) {
  const auto either = [&](const char* one, const char* other) -> const array& {
    return c.input(one) != nullptr ? *c.input(one) : c.required_input(other);
  };
  token_major<T> q(c.required_input("q"));
  token_major<T> k(either("k_cmp", "k"));
  token_major<T> v(either("v_cmp", "v"));
  const auto block_size = c.attribute<index>("block_size", 64);
  const auto complete = [block_size](const heed::position& p) {
    return (p.key + 1) * block_size <= p.query + 1;
  };
  compare<T>(c, scalar, results, [&](const auto& method, const heed::view<T, 4>& out) {
    method(out, q.view(), k.view(), v.view(), options_of(c), complete);
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
  if (function == "naive_nsa_selection") {
    return in_both([&]<class T>(T, const char* s) { selected_blocks<T>(c, s, results); });
  }
  if (function == "naive_nsa_compression") {
    return in_both([&]<class T>(T, const char* s) { compressed_blocks<T>(c, s, results); });
  }
  return false;
}

}  // namespace conformance
