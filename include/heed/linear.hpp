// SPDX-License-Identifier: MIT
// Front header of the linear family: kernelised linear attention, its feature maps and its state;
// recurrences with a matrix state; diagonal scans; causal convolution; approximations of softmax.
#pragma once

#include "heed/linear/call.hpp"
#include "heed/linear/causal_convolution.hpp"
#include "heed/linear/cosformer.hpp"
#include "heed/linear/delta.hpp"
#include "heed/linear/feature_map.hpp"
#include "heed/linear/gated.hpp"
#include "heed/linear/hgrn.hpp"
#include "heed/linear/linear_attention.hpp"
#include "heed/linear/low_rank.hpp"
#include "heed/linear/normalised_retention.hpp"
#include "heed/linear/options.hpp"
#include "heed/linear/performer.hpp"
#include "heed/linear/polynomial_features.hpp"
#include "heed/linear/random_features.hpp"
#include "heed/linear/recurrence.hpp"
#include "heed/linear/retention.hpp"
#include "heed/linear/rwkv.hpp"
#include "heed/linear/rwkv4.hpp"
#include "heed/linear/selective_scan.hpp"
#include "heed/linear/ssd.hpp"
#include "heed/linear/state.hpp"
