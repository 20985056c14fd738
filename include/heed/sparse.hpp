// SPDX-License-Identifier: MIT
// The sparse family: block patterns and analytic masks, selections of keys, attention to what was
// selected, hashed (Reformer), routed (Routing Transformer), native sparse attention.
#pragma once

#include "heed/sparse/gather/selected_attention.hpp"
#include "heed/sparse/gather/selected_decode.hpp"
#include "heed/sparse/lsh/hash.hpp"
#include "heed/sparse/lsh/lsh_attention.hpp"
#include "heed/sparse/nsa/compressed.hpp"
#include "heed/sparse/nsa/compressed_selection.hpp"
#include "heed/sparse/nsa/native_sparse_attention.hpp"
#include "heed/sparse/pattern/analytic_masks.hpp"
#include "heed/sparse/pattern/big_bird.hpp"
#include "heed/sparse/pattern/block_mask.hpp"
#include "heed/sparse/pattern/block_pattern.hpp"
#include "heed/sparse/pattern/estimate_vertical_slash.hpp"
#include "heed/sparse/pattern/render.hpp"
#include "heed/sparse/pattern/vertical_slash.hpp"
#include "heed/sparse/routing/assign_tokens.hpp"
#include "heed/sparse/routing/centroids.hpp"
#include "heed/sparse/routing/routing_attention.hpp"
#include "heed/sparse/select/attention_recall.hpp"
#include "heed/sparse/select/indexer.hpp"
#include "heed/sparse/select/page_bounds.hpp"
#include "heed/sparse/select/quest.hpp"
#include "heed/sparse/select/top_k.hpp"
