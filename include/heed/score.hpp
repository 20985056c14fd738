// SPDX-License-Identifier: MIT
// Score modifiers and masks.
#pragma once

#include "heed/score/broadcast.hpp"
#include "heed/score/combine.hpp"
#include "heed/score/concepts.hpp"
#include "heed/score/dual.hpp"
#include "heed/score/masks.hpp"
#include "heed/score/modifiers.hpp"
#include "heed/score/program.hpp"
#include "heed/score/tree.hpp"
#include "heed/score/with_gradient.hpp"
