// SPDX-License-Identifier: MIT
#include "model.hpp"

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <utility>

#include "format.hpp"
#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/cost.hpp"
#include "heed/parallel.hpp"

namespace wall {

namespace {

using heed::bfloat16;
using heed::index;
namespace cost = heed::cost;

const std::vector<std::pair<std::string, cost::model>>& known() {
  static const std::vector<std::pair<std::string, cost::model>> models{
      {"gpt3-175b", cost::presets::gpt3_175b},
      {"llama2-7b", cost::presets::llama2_7b},
      {"llama3-8b", cost::presets::llama3_8b},
      {"llama3-70b", cost::presets::llama3_70b},
      {"deepseek-v3", cost::presets::deepseek_v3}};
  return models;
}

/// Numbers without a pattern, cheap to make: no kernel's time depends on them.
template <class T>
heed::tensor<T, 4> filled(index heads, index tokens, index channels) {
  heed::tensor<T, 4> t({1, heads, tokens, channels});
  std::uint32_t state = 1;
  for (index i = 0; i < t.size(); ++i) {
    state = state * 1664525U + 1013904223U;
    t.data()[i] = T(static_cast<float>(state >> 8U) * 0x1p-23F - 1.0F);
  }
  return t;
}

/// Seconds of f(): the best of some calls, of a single one where that takes long.
template <class F>
double best_seconds(const F& f) {
  using clock = std::chrono::steady_clock;
  double best = 0;
  double all = 0;
  for (int call = 0; call < 20 && (call == 0 || all < 1); ++call) {
    const auto start = clock::now();
    f();
    const double seconds = std::chrono::duration<double>(clock::now() - start).count();
    best = call == 0 || seconds < best ? seconds : best;
    all += seconds;
  }
  return best;
}

void print_cache_bytes(const cost::model& m, index tokens) {
  std::printf("\ncache of %s tokens\n", count_text(static_cast<double>(tokens)).c_str());
  const auto row = [](const char* kind, double bytes) {
    std::printf("  %-28s %12s\n", kind, bytes_text(bytes).c_str());
  };
  if (m.latent) {
    row("latent, bfloat16", cost::kv_cache_bytes(m, tokens, 2));
    row("latent, 8-bit floats", cost::kv_cache_bytes(m, tokens, 1));
    cost::model expanded = m;
    expanded.latent.reset();
    row("expanded keys and values", cost::kv_cache_bytes(expanded, tokens, 2));
    return;
  }
  row("float", cost::kv_cache_bytes(m, tokens, 4));
  row("bfloat16 or half", cost::kv_cache_bytes(m, tokens, 2));
  row("8-bit floats", cost::kv_cache_bytes(m, tokens, 1));
  // Codes, and 16 bytes of scales and zero points for each KV head and token.
  const double scales = 16.0 * static_cast<double>(m.layers * m.kv_heads * tokens);
  row("codes of 8 bits", cost::kv_cache_bytes(m, tokens, 1) + scales);
  row("codes of 4 bits", cost::kv_cache_bytes(m, tokens, 1) / 2 + scales);
  const index window = 4096;
  if (tokens > window) {
    row("rolling, 4,096 tokens, bfloat16", cost::kv_cache_bytes(m, window, 2));
  }
}

void print_measured(const char* what, double seconds, double bound) {
  std::printf("  %-28s %12s %12s %6.0f%%\n", what, time_text(seconds).c_str(),
              time_text(bound).c_str(), 100 * bound / seconds);
}

/// The attention of one layer as heed runs it, beside its bound. A prompt's layer is measured at
/// fewer tokens where the whole would take long, and its rate kept: the work is that of the pairs.
void measure_layer(const cost::model& m, index tokens, index threads,
                   const cost::roofline& machine) {
  heed::thread_pool pool(threads);
  std::printf("\nattention of one layer, bfloat16   measured        bound  of bound\n");
  index prompt = tokens;
  const auto shape = [&](index n) { return cost::layer_attention(m, n); };
  constexpr double patience = 3;  // seconds at the bound
  while (prompt > 256 && machine.seconds(cost::tiled(shape(prompt))) > patience) prompt /= 2;
  {
    const index kv_heads = shape(prompt).kv_heads;
    const auto q = filled<bfloat16>(m.query_heads, prompt, m.head_dim);
    const auto k = filled<bfloat16>(kv_heads, prompt, m.head_dim);
    const auto v = filled<bfloat16>(kv_heads, prompt, m.values());
    heed::tensor<bfloat16, 4> out({1, m.query_heads, prompt, m.values()});
    const double seconds =
        best_seconds([&] { heed::attention_into(pool, out, q, k, v, {}, heed::causal()); });
    const std::string what = "prompt of " + count_text(static_cast<double>(prompt));
    print_measured(what.c_str(), seconds, machine.seconds(cost::tiled(shape(prompt))));
    if (prompt < tokens) {
      const double scale = cost::tiled(shape(tokens)).flops / cost::tiled(shape(prompt)).flops;
      const std::string all = "  so of " + count_text(static_cast<double>(tokens)) + ", about";
      print_measured(all.c_str(), seconds * scale, machine.seconds(cost::tiled(shape(tokens))));
    }
  }
  // Decoding: few queries over the whole cache. With latents, all heads share one row a token.
  const cost::attention_shape s = cost::layer_decode(m, tokens - 1);
  const index value_dim = s.value_dim.value_or(s.head_dim);
  const auto q = filled<bfloat16>(m.query_heads, 1, s.head_dim);
  const auto k = filled<bfloat16>(s.kv_heads, tokens, s.head_dim);
  const auto v =
      m.latent ? heed::tensor<bfloat16, 4>() : filled<bfloat16>(s.kv_heads, tokens, value_dim);
  // A latent row's first channels are the value: keys and values are the same memory.
  const auto values = m.latent ? heed::view<const bfloat16, 4>(k.data(), {1, 1, tokens, value_dim},
                                                               {0, 0, s.head_dim, 1})
                               : heed::as_view(v);
  heed::tensor<bfloat16, 4> out({1, m.query_heads, 1, value_dim});
  const double seconds = best_seconds([&] {
    heed::attention_into(pool, out, q, k, values, {.offset = tokens - 1}, heed::causal());
  });
  const double width = static_cast<double>(cost::kv_cache_width(m));
  const cost::work step{cost::decode(s).flops, 2 * width * static_cast<double>(tokens), 0};
  print_measured("a token", seconds, machine.seconds(step));
}

}  // namespace

std::vector<std::string> model_names() {
  std::vector<std::string> names;
  for (const auto& [name, m] : known()) names.push_back(name);
  return names;
}

void print_model(const std::string& name, index tokens, index threads, double peak,
                 double bandwidth) {
  const cost::model* found = nullptr;
  for (const auto& [known_name, m] : known()) {
    if (known_name == name) found = &m;
  }
  if (found == nullptr) heed::fail<heed::option_error>("no model is called " + name);
  const cost::model& m = *found;
  const cost::roofline machine{peak, bandwidth};
  const cost::work prompt = cost::prefill(m, tokens);
  const cost::work token = cost::decode_step(m, tokens);

  std::printf("%s: %td layers, %td query and %td KV heads of %td, %s weights (%s in bfloat16)\n",
              name.c_str(), m.layers, m.query_heads, m.kv_heads, m.head_dim,
              about_text(cost::weights(m)).c_str(), bytes_text(2 * cost::weights(m)).c_str());
  std::printf("this machine: %s GFLOP/s, %s GB/s, %td thread%s\n",
              three_digits(peak * 1e-9).c_str(), three_digits(bandwidth * 1e-9).c_str(), threads,
              threads == 1 ? "" : "s");
  std::printf("\nno implementation is faster here\n");
  const auto row = [&](const std::string& what, const cost::work& w) {
    std::printf("  %-28s %12s   %s of %s\n", what.c_str(), time_text(machine.seconds(w)).c_str(),
                machine.limited_by(w) == cost::bound::compute ? "arithmetic" : "memory",
                machine.limited_by(w) == cost::bound::compute
                    ? (three_digits(w.flops * 1e-12) + " TFLOP").c_str()
                    : bytes_text(w.bytes).c_str());
  };
  row("prompt of " + count_text(static_cast<double>(tokens)), prompt);
  row("a token after it", token);
  print_cache_bytes(m, tokens);
  std::fflush(stdout);
  measure_layer(m, tokens, threads, machine);
}

}  // namespace wall
