// SPDX-License-Identifier: MIT
// All of heed but the optional headers (those that need MPI).
#pragma once

#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/core.hpp"
#include "heed/cost.hpp"
#include "heed/linear.hpp"
#include "heed/parallel.hpp"
#include "heed/rotary.hpp"
#include "heed/score.hpp"
#include "heed/simd.hpp"
#include "heed/sparse.hpp"
#include "heed/tensor.hpp"
