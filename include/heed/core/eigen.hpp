// SPDX-License-Identifier: MIT
// Eigen, included in the one way that gives a user no warning.
//
// The intrinsics of g++ before version 13 read a variable before it is set (GCC bug 105593) and are
// inlined into the user's functions, where they warn. The warning belongs to the header in which the
// intrinsic is written, so it is silenced around the first inclusion of that header.
#pragma once

#include "heed/core/config.hpp"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wunused-variable"
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif
#include <Eigen/Core>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
