// SPDX-License-Identifier: MIT
// Front header of the core floor: index types, positions, errors, workspace.
#pragma once

#include "heed/core/checked.hpp"
#include "heed/core/config.hpp"
#include "heed/core/errors.hpp"
#include "heed/core/float8.hpp"
#include "heed/core/gaussian.hpp"
#include "heed/core/tuning.hpp"
#include "heed/core/types.hpp"
#include "heed/core/workspace.hpp"
