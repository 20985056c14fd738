// SPDX-License-Identifier: MIT
// Exact softmax attention.
#pragma once

#include "heed/attention/naive.hpp"
#include "heed/attention/options.hpp"
#include "heed/attention/tiled.hpp"
