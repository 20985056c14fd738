// SPDX-License-Identifier: MIT
// Public model shapes, as their authors give them.
//
// Sources: GPT-3: Brown et al. (2020), arXiv:2005.14165, table 2.1. Llama 2: Touvron et al. (2023),
// arXiv:2307.09288, and the released configuration. Llama 3: Grattafiori et al. (2024),
// arXiv:2407.21783, table 3. DeepSeek-V3: DeepSeek-AI (2024), arXiv:2412.19437, section 4.2,
// without its multi-token prediction module.
#pragma once

#include "heed/core/target.hpp"
#include "heed/cost/model.hpp"

namespace heed::inline HEED_TARGET::cost::presets {

/// GPT-3 with 175 billion parameters.
inline constexpr model gpt3_175b{.layers = 96,
                                 .model_dim = 12288,
                                 .query_heads = 96,
                                 .kv_heads = 96,
                                 .head_dim = 128,
                                 .value_dim = 128,
                                 .feed_forward = {12288, 49152, false},
                                 .vocabulary = 50257,
                                 .tied_embeddings = true,
                                 .learned_positions = 2048,
                                 .biases = true,
                                 .latent = {},
                                 .mixture = {}};

/// Llama 2 with 7 billion parameters.
inline constexpr model llama2_7b{.layers = 32,
                                 .model_dim = 4096,
                                 .query_heads = 32,
                                 .kv_heads = 32,
                                 .head_dim = 128,
                                 .value_dim = 128,
                                 .feed_forward = {4096, 11008, true},
                                 .vocabulary = 32000,
                                 .tied_embeddings = false,
                                 .learned_positions = 0,
                                 .biases = false,
                                 .latent = {},
                                 .mixture = {}};

/// Llama 3 with 8 billion parameters: 8 KV heads.
inline constexpr model llama3_8b{.layers = 32,
                                 .model_dim = 4096,
                                 .query_heads = 32,
                                 .kv_heads = 8,
                                 .head_dim = 128,
                                 .value_dim = 128,
                                 .feed_forward = {4096, 14336, true},
                                 .vocabulary = 128256,
                                 .tied_embeddings = false,
                                 .learned_positions = 0,
                                 .biases = false,
                                 .latent = {},
                                 .mixture = {}};

/// Llama 3 with 70 billion parameters: 8 KV heads.
inline constexpr model llama3_70b{.layers = 80,
                                  .model_dim = 8192,
                                  .query_heads = 64,
                                  .kv_heads = 8,
                                  .head_dim = 128,
                                  .value_dim = 128,
                                  .feed_forward = {8192, 28672, true},
                                  .vocabulary = 128256,
                                  .tied_embeddings = false,
                                  .learned_positions = 0,
                                  .biases = false,
                                  .latent = {},
                                  .mixture = {}};

/// DeepSeek-V3: latent attention, mixture of experts.
inline constexpr model deepseek_v3{
    .layers = 61,
    .model_dim = 7168,
    .query_heads = 128,
    .kv_heads = 128,
    .head_dim = 192,
    .value_dim = 128,
    .feed_forward = {7168, 18432, true},
    .vocabulary = 129280,
    .tied_embeddings = false,
    .learned_positions = 0,
    .biases = false,
    .latent = latent_attention{.rank = 512, .rope_dim = 64, .query_rank = 1536},
    .mixture = mixture_of_experts{
        .experts = 256, .active = 8, .shared = 1, .hidden_dim = 2048, .dense_layers = 3}};

}  // namespace heed::inline HEED_TARGET::cost::presets
