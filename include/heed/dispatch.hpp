// SPDX-License-Identifier: MIT
// Front header of one program for many processors: tables of functions, one a target, and the choice.
#pragma once

#include "heed/dispatch/processor.hpp"
#include "heed/dispatch/table.hpp"
