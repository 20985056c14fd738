// SPDX-License-Identifier: MIT
// Front header of the rotary floor: rotary position embedding, its scalings and its tables.
#pragma once

#include "heed/rotary/apply.hpp"
#include "heed/rotary/embedding.hpp"
#include "heed/rotary/positions.hpp"
#include "heed/rotary/scaling.hpp"
#include "heed/rotary/tables.hpp"
