// SPDX-License-Identifier: MIT
// FlexAttention: attention whose scores and probabilities the case changes by graphs of its own.
#include <heed/attention.hpp>
#include <heed/score.hpp>
#include <optional>

#include "conformance/case.hpp"
#include "conformance/graph.hpp"

namespace conformance {

namespace {

/// A graph as heed takes it: a lambda from score and position to score.
auto as_modifier(const score_graph& graph) {
  return [&graph]<class A>(A score, const heed::position& p) {
    return static_cast<A>(graph(static_cast<double>(score), p));
  };
}

template <class T>
void run_as(const test_case& c, const char* scalar, comparison& results) {
  const operand<T> q(c.required_input(0), c.attribute<heed::index>("q_num_heads", 1));
  const operand<T> k(c.required_input(1), c.attribute<heed::index>("kv_num_heads", 1));
  const operand<T> v(c.required_input(2), c.attribute<heed::index>("kv_num_heads", 1));
  const auto& expected = *c.output(0);

  heed::attention_options options;
  if (c.attribute("scale") != nullptr) options.scale = c.attribute<double>("scale", 1.0);
  const std::vector<heed::index> scores{q.view().extent(0), q.view().extent(1), q.view().extent(2),
                                        k.view().extent(2)};

  const auto compare = [&](const auto& method, const std::string& name, const auto&... modifiers) {
    operand<T> out(expected, q.view().extent(1));
    method(out.view(), q.view(), k.view(), v.view(), options, modifiers...);
    results.add("Y by " + name + " in " + scalar, out.values(), expected);
  };
  std::optional<score_graph> score;
  std::optional<score_graph> probability;
  if (const auto* graph = c.attribute("score_mod")) score.emplace(*graph, scores);
  if (const auto* graph = c.attribute("prob_mod")) probability.emplace(*graph, scores);

  // Probabilities of a row are known only once its last score is: the tiled kernel changes scores.
  if (probability && score) {
    compare(heed::naive_attention_into, "naive attention", as_modifier(*score),
            heed::probability(as_modifier(*probability)));
  } else if (probability) {
    compare(heed::naive_attention_into, "naive attention",
            heed::probability(as_modifier(*probability)));
  } else if (score) {
    compare(heed::naive_attention_into, "naive attention", as_modifier(*score));
    compare(heed::attention_into, "tiled attention", as_modifier(*score));
  } else {
    compare(heed::naive_attention_into, "naive attention");
    compare(heed::attention_into, "tiled attention");
  }
}

}  // namespace

void run_flex_attention(const test_case& c, comparison& results) {
  c.allow_only(
      {"scale", "score_mod", "prob_mod", "q_num_heads", "kv_num_heads", "softmax_precision"}, 2, 0);
  if (c.required_input(0).is_half()) run_as<heed::half>(c, "half", results);
  if (!c.required_input(0).is_half()) run_as<float>(c, "float", results);
  run_as<double>(c, "double", results);
}

}  // namespace conformance
