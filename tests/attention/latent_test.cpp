// SPDX-License-Identifier: MIT
// Latent attention: both forms against the textbook on the expanded keys and values in double.
#include "heed/attention/latent.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/parallel.hpp"
#include "heed/score.hpp"
#include "support/attention_oracle.hpp"

namespace {

using heed::index;

constexpr index heads = 3, nope = 10, rope = 6, latent = 14, channels = 9;

struct sample {
  explicit sample(index tokens)
      : rows(oracle::random_tensor<float, 3>({2, tokens, latent}, 1)),
        k_rope(oracle::random_tensor<float, 3>({2, tokens, rope}, 2)),
        uk(oracle::random_tensor<float, 3>({heads, nope, latent}, 3, 0.3)),
        uv(oracle::random_tensor<float, 3>({heads, channels, latent}, 4, 0.3)) {}
  heed::tensor<float, 3> rows, k_rope, uk, uv;
};

TEST(LatentAttention, BothFormsAreAttentionToTheExpandedRows) {
  const index tokens = 90;
  const sample s(tokens);
  heed::latent_cache<float> cache(
      {.batch = 2, .capacity = tokens, .latent_dim = latent, .rope_dim = rope});
  cache.append(heed::as_view(s.rows).slice(1, 0, 50), heed::as_view(s.k_rope).slice(1, 0, 50));
  cache.append(heed::as_view(s.rows).slice(1, 50, tokens),
               heed::as_view(s.k_rope).slice(1, 50, tokens));
  heed::tensor<double, 4> k({2, heads, tokens, nope + rope});
  heed::tensor<double, 4> v({2, heads, tokens, channels});
  oracle::each_index(k.extents(), [&](index b, index h, index j, index c) {
    if (c >= nope) k(b, h, j, c) = s.k_rope(b, j, c - nope);
    for (index l = 0; c < nope && l < latent; ++l) {
      k(b, h, j, c) += static_cast<double>(s.uk(h, c, l)) * s.rows(b, j, l);
    }
  });
  oracle::each_index(v.extents(), [&](index b, index h, index j, index c) {
    for (index l = 0; l < latent; ++l) {
      v(b, h, j, c) += static_cast<double>(s.uv(h, c, l)) * s.rows(b, j, l);
    }
  });
  heed::thread_pool pool(2);
  for (const index n : {1, 7, 90}) {
    const auto q = oracle::random_tensor<float, 4>({2, heads, n, nope + rope}, 5);
    auto want = oracle::expected(q, k, v, {.offset = tokens - n}, heed::causal());
    // The projections are sums of `latent` terms more, of scores and of values.
    want.sizes.head_dim += latent;
    want.sizes.product *= 4;
    want.sizes.value *= 4;
    heed::tensor<float, 4> out({2, heads, n, channels});
    heed::absorbed_latent_attention_into(pool, out, q, s.uk, s.uv, cache, {}, heed::causal());
    EXPECT_EQ(oracle::difference<float>(out, want.output, want.sizes), "") << n;
    heed::expanded_latent_attention_into(pool, out, q, s.uk, s.uv, cache, {}, heed::causal());
    EXPECT_EQ(oracle::difference<float>(out, want.output, want.sizes), "") << n;
    heed::latent_decode_into(out, q, s.uk, s.uv, cache, {}, heed::causal());
    EXPECT_EQ(oracle::difference<float>(out, want.output, want.sizes), "") << n;
  }
}

TEST(LatentAttention, WhatDoesNotFitIsRefused) {
  const sample s(4);
  heed::latent_cache<float> cache(
      {.batch = 2, .capacity = 5, .latent_dim = latent, .rope_dim = rope});
  cache.append(s.rows, s.k_rope);
  EXPECT_FALSE(cache.try_append(s.rows, s.k_rope));
  EXPECT_THROW(cache.append(s.rows, s.k_rope), heed::capacity_error);
  EXPECT_THROW(cache.append(s.k_rope, s.k_rope), heed::shape_error);
  const auto q = oracle::random_tensor<float, 4>({2, heads, 1, nope + rope}, 5);
  const auto long_q = oracle::random_tensor<float, 4>({2, heads, 5, nope + rope}, 5);
  heed::tensor<float, 4> out({2, heads, 1, channels});
  heed::tensor<float, 4> wrong({2, heads, 1, channels + 1});
  const auto decode = [&](auto& to, const auto& query, const auto& uk, const auto& uv) {
    heed::latent_decode_into(to, query, uk, uv, cache, {}, heed::causal());
  };
  EXPECT_THROW(decode(wrong, q, s.uk, s.uv), heed::shape_error);
  EXPECT_THROW(decode(out, long_q, s.uk, s.uv), heed::shape_error);
  EXPECT_THROW(decode(out, q, s.uv, s.uv), heed::shape_error);
  EXPECT_NO_THROW(decode(out, q, s.uk, s.uv));
  EXPECT_EQ(cache.length(), 4);
}

}  // namespace
