// SPDX-License-Identifier: MIT
// The linear family: kernelised linear attention, its feature maps and its state; recurrences with
// a matrix state; diagonal scans; causal convolution; approximations of softmax.
#pragma once

#include "heed/linear/convolution/causal_convolution.hpp"
#include "heed/linear/kernelised/cosformer.hpp"
#include "heed/linear/kernelised/feature_map.hpp"
#include "heed/linear/kernelised/linear_attention.hpp"
#include "heed/linear/kernelised/performer.hpp"
#include "heed/linear/kernelised/polynomial_features.hpp"
#include "heed/linear/kernelised/random_features.hpp"
#include "heed/linear/kernelised/state.hpp"
#include "heed/linear/matrix_state/delta_rule.hpp"
#include "heed/linear/matrix_state/dplr.hpp"
#include "heed/linear/matrix_state/gla.hpp"
#include "heed/linear/matrix_state/mamba2.hpp"
#include "heed/linear/matrix_state/naive_backward.hpp"
#include "heed/linear/matrix_state/normalised_retention.hpp"
#include "heed/linear/matrix_state/retention.hpp"
#include "heed/linear/matrix_state/rwkv6_7.hpp"
#include "heed/linear/options.hpp"
#include "heed/linear/recurrence.hpp"
#include "heed/linear/scan/hgrn.hpp"
#include "heed/linear/scan/mamba_s6.hpp"
#include "heed/linear/scan/rwkv4.hpp"
