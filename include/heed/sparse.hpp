// SPDX-License-Identifier: MIT
// Front header of the sparse family: block patterns, analytic patterns, pictures of them.
#pragma once

#include "heed/sparse/big_bird.hpp"
#include "heed/sparse/block_mask.hpp"
#include "heed/sparse/block_pattern.hpp"
#include "heed/sparse/draw.hpp"
#include "heed/sparse/estimate.hpp"
#include "heed/sparse/largest.hpp"
#include "heed/sparse/lsh_buckets.hpp"
#include "heed/sparse/page_bounds.hpp"
#include "heed/sparse/patterns.hpp"
#include "heed/sparse/recall.hpp"
#include "heed/sparse/route_tokens.hpp"
#include "heed/sparse/routing_centroids.hpp"
#include "heed/sparse/row_scores.hpp"
#include "heed/sparse/selection.hpp"
#include "heed/sparse/token_norms.hpp"
#include "heed/sparse/vertical_slash.hpp"
