// SPDX-License-Identifier: MIT
// LatentAttention: absorbed and expanded, in float and double.
#include <heed/attention.hpp>
#include <heed/cache.hpp>
#include <heed/score.hpp>
#include <string>

#include "conformance/case.hpp"

namespace conformance {

namespace {

template <class T>
void run_as(const test_case& c, const std::string& scalar, comparison& results) {
  const auto q = to_tensor<T, 4>(c.required_input(std::string("q")));
  const auto latent = to_tensor<T, 3>(c.required_input(std::string("latent")));
  const auto k_rope = to_tensor<T, 3>(c.required_input(std::string("k_rope")));
  const auto w_uk = to_tensor<T, 3>(c.required_input(std::string("w_uk")));
  const auto w_uv = to_tensor<T, 3>(c.required_input(std::string("w_uv")));
  const auto& params = c.meta().at("params");
  heed::attention_options options;
  if (params.contains("scale")) options.scale = params.at("scale").get<double>();
  heed::latent_cache<T> cache({.batch = latent.extent(0),
                               .capacity = latent.extent(1),
                               .latent_dim = latent.extent(2),
                               .rope_dim = k_rope.extent(2)});
  cache.append(latent, k_rope);
  heed::tensor<T, 4> out({q.extent(0), q.extent(1), q.extent(2), w_uv.extent(1)});
  // Without causal the window's right side is as wide as there are keys.
  const bool causal = params.value("causal", false);
  const heed::window visible{.left = std::nullopt,
                             .right = causal ? heed::index{0} : latent.extent(1)};
  heed::default_executor exec;
  heed::absorbed_latent_attention_into(exec, out, q, w_uk, w_uv, cache, options, visible);
  results.add("o absorbed in " + scalar, values_of(heed::as_view(out)), c.output("o"));
  heed::expanded_latent_attention_into(exec, out, q, w_uk, w_uv, cache, options, visible);
  results.add("o expanded in " + scalar, values_of(heed::as_view(out)), c.output("o"));
}

}  // namespace

void run_latent_attention(const test_case& c, comparison& results) {
  for (const auto& item : c.meta().at("params").items()) {
    if (item.key() != "causal" && item.key() != "scale") throw unsupported("param " + item.key());
  }
  run_as<float>(c, "float", results);
  run_as<double>(c, "double", results);
}

}  // namespace conformance
