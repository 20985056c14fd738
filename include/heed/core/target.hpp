// SPDX-License-Identifier: MIT
// The name of the target a file is compiled for, as the inline namespace of every symbol of heed.
//
//   namespace heed::inline HEED_TARGET { ... }
//
// Two files of one program may be compiled for different processors. A kernel that both define under
// one name would be kept once, and one of the files would run code of the other's processor, or read
// the other's layout. With the target in the name each file keeps its own.
//
// The name holds what changes code or layout: the instructions Eigen uses, those that heed uses
// itself, Eigen's alignment, whether assertions are compiled, and whether the default executor is
// OpenMP's. Users write `heed::attention` and never see it.
#pragma once

#include "heed/core/eigen.hpp"

// ---- instructions --------------------------------------------------------------------------------
#if defined(EIGEN_DONT_VECTORIZE)
#define HEED_TARGET_PACKETS scalar
#elif defined(EIGEN_VECTORIZE_AVX512)
#define HEED_TARGET_PACKETS avx512
#elif defined(EIGEN_VECTORIZE_AVX2)
#define HEED_TARGET_PACKETS avx2
#elif defined(EIGEN_VECTORIZE_AVX)
#define HEED_TARGET_PACKETS avx
#elif defined(EIGEN_VECTORIZE_SSE4_1)
#define HEED_TARGET_PACKETS sse4
#elif defined(EIGEN_VECTORIZE_SSE)
#define HEED_TARGET_PACKETS sse2
#elif defined(EIGEN_VECTORIZE_SVE)
#define HEED_TARGET_PACKETS sve
#elif defined(EIGEN_VECTORIZE_NEON)
#define HEED_TARGET_PACKETS neon
#else
#define HEED_TARGET_PACKETS generic
#endif

#if defined(__AMX_BF16__)
#define HEED_TARGET_EXTENSIONS amx
#elif defined(__AVX512BF16__)
#define HEED_TARGET_EXTENSIONS bf16
#elif defined(__AVX512VNNI__)
#define HEED_TARGET_EXTENSIONS vnni
#elif defined(__FMA__) && defined(__F16C__)
#define HEED_TARGET_EXTENSIONS fma_f16c
#elif defined(__FMA__)
#define HEED_TARGET_EXTENSIONS fma
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define HEED_TARGET_EXTENSIONS bf16
#elif defined(__ARM_FEATURE_FP16_VECTOR_ARITHMETIC)
#define HEED_TARGET_EXTENSIONS fp16
#else
#define HEED_TARGET_EXTENSIONS plain
#endif

// ---- settings ------------------------------------------------------------------------------------
#if EIGEN_MAX_ALIGN_BYTES == 64
#define HEED_TARGET_ALIGNMENT a64
#elif EIGEN_MAX_ALIGN_BYTES == 32
#define HEED_TARGET_ALIGNMENT a32
#elif EIGEN_MAX_ALIGN_BYTES == 16
#define HEED_TARGET_ALIGNMENT a16
#else
#define HEED_TARGET_ALIGNMENT a0
#endif

#if defined(NDEBUG)
#define HEED_TARGET_ASSERTIONS release
#else
#define HEED_TARGET_ASSERTIONS checked
#endif

#if defined(_OPENMP)
#define HEED_TARGET_EXECUTOR omp
#else
#define HEED_TARGET_EXECUTOR serial
#endif

#define HEED_TARGET_JOIN(a, b, c, d, e) a##_##b##_##c##_##d##_##e
#define HEED_TARGET_EXPAND(a, b, c, d, e) HEED_TARGET_JOIN(a, b, c, d, e)
#define HEED_TARGET                                                                      \
  HEED_TARGET_EXPAND(HEED_TARGET_PACKETS, HEED_TARGET_EXTENSIONS, HEED_TARGET_ALIGNMENT, \
                     HEED_TARGET_ASSERTIONS, HEED_TARGET_EXECUTOR)

namespace heed::inline HEED_TARGET {

/// What the public functions stand on: raw-pointer kernels, and the checks and overloads that all
/// methods share. A folder's own internals are in `detail`, which sees both.
namespace kernel {}
namespace api {
using namespace kernel;
}
namespace detail {
using namespace kernel;
using namespace api;
}  // namespace detail

}  // namespace heed::inline HEED_TARGET
