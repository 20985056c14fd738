// SPDX-License-Identifier: MIT
// Front header of the cost model: FLOPs, bytes, memory, rooflines, crossovers, public model shapes.
//
// Everything is constexpr and depends on nothing that was measured here: the same numbers can be
// had in a static_assert, in a plan for a machine one does not own, or next to a measurement.
//
//   constexpr auto s = heed::cost::self_attention(8'000, 64);
//   constexpr heed::cost::roofline machine{2.5e11, 3e10};        // FLOP/s, B/s
//   constexpr double bound = machine.seconds(heed::cost::tiled(s));
#pragma once

#include "heed/cost/attention.hpp"
#include "heed/cost/band.hpp"
#include "heed/cost/crossover.hpp"
#include "heed/cost/feed_forward.hpp"
#include "heed/cost/linear.hpp"
#include "heed/cost/matrix_state.hpp"
#include "heed/cost/model.hpp"
#include "heed/cost/presets.hpp"
#include "heed/cost/work.hpp"
