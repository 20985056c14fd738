// SPDX-License-Identifier: MIT
// Front header of the parallel floor: the executor concept, its three models, and tasks with
// scratch.
#pragma once

#include "heed/parallel/executor.hpp"
#include "heed/parallel/openmp.hpp"
#include "heed/parallel/scratch_tasks.hpp"
#include "heed/parallel/thread_pool.hpp"
