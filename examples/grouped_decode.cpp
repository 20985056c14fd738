// SPDX-License-Identifier: MIT
// Decoding with a KV cache and grouped heads: what a language model does for every token it says.
//
// Eight query heads share two heads of keys and values, so the cache is a quarter of what it would
// be. One token at a time goes in; what comes out is the same as attention over the whole text.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <heed/attention.hpp>
#include <heed/cache.hpp>
#include <heed/score.hpp>
#include <heed/tensor.hpp>
#include <random>

namespace {

using tensor = heed::tensor<float, 4>;  // batch x heads x tokens x channels

tensor random_tensor(heed::index heads, heed::index tokens, heed::index channels, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  tensor t({1, heads, tokens, channels});
  std::generate_n(t.data(), t.size(), [&] { return normal(random); });
  return t;
}

}  // namespace

int main() {
  using heed::index;
  constexpr index query_heads = 8;
  constexpr index kv_heads = 2;
  constexpr index tokens = 48;
  constexpr index channels = 64;
  const tensor q = random_tensor(query_heads, tokens, channels, 1);
  const tensor k = random_tensor(kv_heads, tokens, channels, 2);
  const tensor v = random_tensor(kv_heads, tokens, channels, 3);

  // All at once. Query head h reads the keys and values of head h / 4.
  const tensor whole = heed::attention(q, k, v, {}, heed::causal());

  heed::contiguous_cache<float> cache(
      {.batch = 1, .kv_heads = kv_heads, .capacity = tokens, .head_dim = channels});
  std::printf("cache: %td heads x %td tokens, %td KiB; with a head per query head, %td KiB\n",
              kv_heads, tokens, 2 * kv_heads * tokens * channels * 4 / 1024,
              2 * query_heads * tokens * channels * 4 / 1024);

  float largest = 0;
  const auto compare = [&](const tensor& out, index first) {
    for (index h = 0; h < query_heads; ++h) {
      for (index t = 0; t < out.extent(2); ++t) {
        for (index c = 0; c < channels; ++c) {
          largest = std::max(largest, std::abs(out(0, h, t, c) - whole(0, h, first + t, c)));
        }
      }
    }
  };
  // Tokens [begin, end) of a tensor: a view, nothing is copied.
  const auto part = [](const tensor& t, index begin, index end) {
    return heed::as_view(t).slice(2, begin, end);
  };

  // The prompt: 40 tokens in one call. Several queries at once need the causal mask.
  constexpr index prompt = 40;
  compare(heed::decode(part(q, 0, prompt), part(k, 0, prompt), part(v, 0, prompt), cache, {},
                       heed::causal()),
          0);
  std::printf("prefill: %td tokens in the cache, largest difference %.1e\n", cache.length(),
              static_cast<double>(largest));

  // Then one at a time. The newest token sees the whole cache: no mask to write.
  for (index t = prompt; t < tokens; ++t) {
    compare(heed::decode(part(q, t, t + 1), part(k, t, t + 1), part(v, t, t + 1), cache), t);
  }
  std::printf("decode: %td tokens in the cache, largest difference %.1e\n", cache.length(),
              static_cast<double>(largest));

  // A full cache says so, and stays as it was.
  const auto next = part(k, 0, 1);
  std::printf("one more fits: %s\n", cache.try_append(next, next) ? "yes" : "no");
  // Taking tokens back, say a rejected draft, costs nothing.
  cache.truncate(prompt);
  std::printf("after truncate: %td tokens\n", cache.length());
  return largest < 1e-5F ? 0 : 1;
}
