// SPDX-License-Identifier: MIT
// Pictures of what a call attends to. Not part of heed.hpp.
#pragma once

#include "heed/draw/weight_map.hpp"
#include "heed/draw/weight_picture.hpp"
