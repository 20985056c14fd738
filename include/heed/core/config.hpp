// SPDX-License-Identifier: MIT
// The library's version and every macro it defines: assertions, inlining hints, the error handler.
//
// HEED_ASSERT(condition)   internal invariant; assert() unless the user defines it first.
// HEED_INLINE              inlines a hot function even where the compiler's own heuristics
//                          would not; a vendor attribute in standard syntax, ignored elsewhere.
// HEED_INLINE_LAMBDA       the same for a lambda, between its parameters and its body.
// HEED_NOINLINE            keeps a kernel out of line, so that its registers are its own.
// HEED_HAS_EXCEPTIONS      1 unless compiled with -fno-exceptions.
// HEED_HAS_EXTENSIONS      1 where the compiler has g++'s vectors, attributes and inline assembly. With
//                          HEED_NO_EXTENSIONS defined by the user, or another compiler, what simd/ says
//                          by them goes through memory.
#pragma once

// Without these lines an older language gives thousands of errors that name no cause. g++ goes on
// after #error, but not after a file that is not there.
#if (!defined(_MSVC_LANG) && __cplusplus < 202002L) || (defined(_MSVC_LANG) && _MSVC_LANG < 202002L)
#error "heed is written in C++20: compile with -std=c++20 or newer"
#include "heed_is_written_in_cxx20"
#endif

#include <cassert>

#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__ == 1
#error \
    "heed needs infinities and NaN: a masked score is -inf. Compile without -ffinite-math-only, or with -ffast-math -fno-finite-math-only."
#endif

#define HEED_VERSION_MAJOR 0
#define HEED_VERSION_MINOR 1
#define HEED_VERSION_PATCH 0

#ifdef HEED_ASSERT
#define HEED_ASSERT_IS_THE_USERS
#else
#define HEED_ASSERT(condition) assert(condition)
#endif

#if (defined(__GNUC__) || defined(__clang__)) && !defined(HEED_NO_EXTENSIONS)
#define HEED_HAS_EXTENSIONS 1
#define HEED_INLINE [[gnu::always_inline]] inline
#define HEED_INLINE_LAMBDA __attribute__((always_inline))
#define HEED_NOINLINE [[gnu::noinline]]
#else
#define HEED_HAS_EXTENSIONS 0
#define HEED_INLINE inline
#define HEED_INLINE_LAMBDA
#define HEED_NOINLINE
#endif

#if defined(__cpp_exceptions) || defined(_CPPUNWIND)
#define HEED_HAS_EXCEPTIONS 1
#else
#define HEED_HAS_EXCEPTIONS 0
#endif
