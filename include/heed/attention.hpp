// SPDX-License-Identifier: MIT
// Exact softmax attention: on tensors, on packed sequences, on a cache; its textbook; merges.
#pragma once

#include "heed/attention/attention_mass.hpp"
#include "heed/attention/backward/attention_backward.hpp"
#include "heed/attention/backward/forgetting_backward.hpp"
#include "heed/attention/backward/linformer_backward.hpp"
#include "heed/attention/backward/naive_attention_backward.hpp"
#include "heed/attention/cascade.hpp"
#include "heed/attention/decode.hpp"
#include "heed/attention/exact.hpp"
#include "heed/attention/forgetting.hpp"
#include "heed/attention/latent.hpp"
#include "heed/attention/linformer.hpp"
#include "heed/attention/merge.hpp"
#include "heed/attention/naive.hpp"
#include "heed/attention/ragged_decode.hpp"
#include "heed/attention/varlen.hpp"
