// SPDX-License-Identifier: MIT
// Front header of the parallel floor: the executor concept and its three models.
#pragma once

#include "heed/parallel/executor.hpp"
#include "heed/parallel/openmp.hpp"
#include "heed/parallel/thread_pool.hpp"
