// SPDX-License-Identifier: MIT
// Packets, exponentials on packets, conversions: the only place where a target's instructions show.
#pragma once

#include "heed/simd/bf16_dot.hpp"
#include "heed/simd/compress.hpp"
#include "heed/simd/convert.hpp"
#include "heed/simd/exponential.hpp"
#include "heed/simd/packet.hpp"
