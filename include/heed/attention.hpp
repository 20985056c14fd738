// SPDX-License-Identifier: MIT
// Exact softmax attention.
#pragma once

#include "heed/attention/decode.hpp"
#include "heed/attention/exact.hpp"
#include "heed/attention/forgetting.hpp"
#include "heed/attention/linformer.hpp"
#include "heed/attention/lsh.hpp"
#include "heed/attention/merge.hpp"
#include "heed/attention/naive.hpp"
#include "heed/attention/options.hpp"
#include "heed/attention/ragged.hpp"
#include "heed/attention/routing.hpp"
#include "heed/attention/selected.hpp"
#include "heed/attention/selected_decode.hpp"
