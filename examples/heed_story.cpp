// SPDX-License-Identifier: MIT
// Tells a story: runs a llama2.c checkpoint and prints its text as it comes.
//
//   heed_story                                  # with the small model that heed_train made
//   heed_story --model stories260K.bin --tokenizer tok512.bin --prompt "Once upon a time"
//   heed_story ... --steps 60 --draw attention.svg --layer 2 --head 3
//
// The model is in llama.hpp, the tokenizer in tokenizer.hpp; here is what is done with them.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <heed/cache/file/offloaded.hpp>
#include <heed/draw.hpp>
#include <iostream>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "llama.hpp"
#include "tokenizer.hpp"

#ifndef HEED_EXAMPLE_DATA
#define HEED_EXAMPLE_DATA "examples/data"
#endif

namespace {

/// The likeliest token at temperature 0; else one drawn from softmax(logits / temperature).
class sampler {
 public:
  sampler(double temperature, std::uint64_t seed) : temperature_(temperature), random_(seed) {}

  int pick(const llama::matrix& logits) {
    llama::index best = 0;
    const float highest = logits.row(0).maxCoeff(&best);
    if (temperature_ <= 0) return static_cast<int>(best);
    const Eigen::ArrayXd weight =
        ((logits.row(0).array().cast<double>() - double{highest}) / temperature_).exp();
    // 53 random bits: the same on every platform, unlike the standard's distributions.
    double left = static_cast<double>(random_() >> 11U) * 0x1p-53 * weight.sum();
    for (llama::index i = 0; i < weight.size(); ++i) {
      left -= weight[i];
      if (left < 0) return static_cast<int>(i);
    }
    return static_cast<int>(best);
  }

 private:
  double temperature_;
  std::mt19937_64 random_;
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// What the tokens of a story attend to in one layer: every token sees itself and those before it.
void draw(const llama::model& model, const llama::tokenizer& tokenizer, const std::vector<int>& ids,
          std::size_t layer, std::optional<llama::index> head, const std::string& path) {
  llama::matrix queries;
  llama::matrix keys;
  llama::memory memory = model.blank_memory();
  const auto read =
      std::span(ids).first(std::min(ids.size(), static_cast<std::size_t>(model.shape().context)));
  (void)model.read(read, memory,
                   [&](std::size_t l, const llama::matrix& q, const llama::matrix& k) {
                     if (l != layer) return;
                     queries = q;
                     keys = k;
                   });
  if (queries.size() == 0) {
    throw std::runtime_error("layer " + std::to_string(layer) + " of " +
                             std::to_string(model.shape().layers));
  }
  std::vector<std::string> labels{"(begin)"};
  for (std::size_t i = 1; i < read.size(); ++i) {
    labels.push_back(tokenizer.decode(read[i - 1], read[i]));
  }
  heed::serial_executor here;
  const heed::weight_map map = heed::map_weights(
      here, heed::split_heads(queries, model.shape().heads),
      heed::split_heads(keys, model.shape().kv_heads), {.head = head}, {}, heed::causal());
  std::ofstream file(path);
  file << heed::to_svg(map, {.side = 720,
                             .title = "layer " + std::to_string(layer),
                             .query_labels = labels,
                             .key_labels = labels});
  if (!file.flush()) throw std::runtime_error("cannot write " + path);
}

template <class Cache>
std::vector<int> tell(const llama::model& model, std::vector<Cache> memory,
                      const llama::tokenizer& tokenizer, const std::string& prompt,
                      std::size_t steps, sampler choose) {
  std::vector<int> ids = tokenizer.encode(prompt);
  steps = std::min(steps, static_cast<std::size_t>(model.shape().context));
  ids.resize(std::min(ids.size(), steps + 1));
  const auto print = [&](std::size_t i) {
    std::cout << tokenizer.decode(ids[i - 1], ids[i]) << std::flush;
  };
  for (std::size_t i = 1; i < ids.size(); ++i) print(i);

  // The prompt in one call, then token by token.
  const std::size_t prompt_tokens = ids.size();
  const auto start = std::chrono::steady_clock::now();
  double prefill = 0;
  for (std::size_t read = 0; ids.size() <= steps; read = ids.size() - 1) {
    const llama::matrix states = model.read(std::span(ids).subspan(read), memory);
    if (read == 0) prefill = seconds_since(start);
    const int next = choose.pick(model.logits(states.bottomRows(1)));
    if (next == llama::tokenizer::begin_of_text) break;  // the story has ended
    ids.push_back(next);
    print(ids.size() - 1);
  }
  std::cout << '\n';
  const double decode = seconds_since(start) - prefill;
  std::fprintf(stderr, "prompt: %zu tokens in %.2f ms; then %.0f tokens/s\n", prompt_tokens,
               prefill * 1e3,
               decode > 0 ? static_cast<double>(ids.size() - prompt_tokens) / decode : 0.0);
  return ids;
}

/// use(caches of all layers), of the kind that is named.
template <class Use>
void with_memory(const std::string& kind, const llama::model& model, const Use& use) {
  const heed::cache_extents e = model.extents();
  const auto each = [&](const auto& make) { use(model.blank_memory(make)); };
  if (kind == "contiguous") {
    each([&](llama::index) { return heed::contiguous_cache<float>(e); });
  } else if (kind == "paged") {
    const heed::paged_extents p{.kv_heads = e.kv_heads,
                                .pages = heed::ceil_div(e.capacity, 16),
                                .page_size = 16,
                                .head_dim = e.head_dim};
    each([&](llama::index) { return heed::paged_cache<float>(p); });
  } else if (kind == "rolling") {
    // A quarter of the context; keys keep the positions they had.
    const heed::rolling_extents r{
        .kv_heads = e.kv_heads, .window = e.capacity / 4, .head_dim = e.head_dim};
    each([&](llama::index) { return heed::rolling_cache<float>(r); });
  } else if (kind == "int8") {
    each([&](llama::index) { return heed::int8_cache(e); });
  } else if (kind == "int4") {
    each([&](llama::index) { return heed::int4_cache(e); });
  } else if (kind == "fp8") {
    each([&](llama::index) { return heed::contiguous_cache<heed::float8_e4m3>(e); });
#if __has_include(<sys/mman.h>)
  } else if (kind == "offloaded") {
    const auto folder = std::filesystem::temp_directory_path();
    const std::string name = "heed_story." + std::to_string(std::random_device()()) + ".";
    each([&](llama::index layer) {
      const auto file = folder / (name + std::to_string(layer));
      auto c = heed::offloaded_cache<float>::create(
          file.string(), {.kv_heads = e.kv_heads, .capacity = e.capacity, .head_dim = e.head_dim});
      std::filesystem::remove(file);  // it goes with the cache, which has it open
      return c;
    });
#endif
  } else {
    throw std::runtime_error("no cache is called " + kind);
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::string model_path = HEED_EXAMPLE_DATA "/alice.bin";
  std::string tokenizer_path = HEED_EXAMPLE_DATA "/alice.tok";
  std::string prompt;
  std::size_t steps = 256;
  double temperature = 0;
  std::uint64_t seed = 1;
  std::string picture;
  std::size_t layer = 0;
  std::optional<llama::index> head;
  std::string cache = "contiguous";

  CLI::App app("Tells a story with a llama2.c checkpoint.");
  CLI::Option* const given = app.add_option("--model", model_path, "checkpoint, version 0");
  app.add_option("--tokenizer", tokenizer_path, "tokenizer file")->needs(given);
  given->needs("--tokenizer");
  CLI::Option* const begin = app.add_option("--prompt", prompt, "how the story begins");
  app.add_option("--steps", steps, "tokens at most")->capture_default_str();
  CLI::Option* const heat =
      app.add_option("--temperature", temperature, "0 is greedy; 0.5 without --model");
  app.add_option("--seed", seed, "of the sampling")->capture_default_str();
  app.add_option("--draw", picture, "file for a picture of what the tokens attend to");
  app.add_option("--layer", layer, "that is drawn, from 0")->capture_default_str();
  app.add_option("--head", head, "that is drawn, from 0 (default: the mean of all)");
  app.add_option("--cache", cache, "contiguous, paged, rolling, int8, int4, fp8 or offloaded")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  // Of the model beside this program: a beginning that it knows, and words that do not repeat.
  if (given->count() == 0 && begin->count() == 0) prompt = "Alice";
  if (given->count() == 0 && heat->count() == 0) temperature = 0.5;

  try {
    const llama::model model(model_path);
    const auto vocabulary = static_cast<std::size_t>(model.shape().vocabulary);
    const llama::tokenizer tokenizer(tokenizer_path, vocabulary);
    with_memory(cache, model, [&](auto memory) {
      const auto ids =
          tell(model, std::move(memory), tokenizer, prompt, steps, sampler(temperature, seed));
      if (!picture.empty()) draw(model, tokenizer, ids, layer, head, picture);
    });
  } catch (const std::exception& error) {
    std::fprintf(stderr, "heed_story: %s\n", error.what());
    return 1;
  }
}
