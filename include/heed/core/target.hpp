// SPDX-License-Identifier: MIT
// The name of the target a file is compiled for, as the inline namespace of every symbol of heed.
//
//   namespace heed::inline HEED_TARGET { ... }
//
// Two files of one program may be compiled for different processors. A kernel that both define under
// one name would be kept once, and one of the files would run code of the other's processor, or read
// the other's layout. With the target in the name each file keeps its own.
//
// The name holds what changes code or layout: the packets Eigen uses and their alignment, every set
// of instructions that the compiler may choose by itself, whether assertions, exceptions and the
// checked containers of the standard library are compiled, whether NaN and the order of sums are
// the compiler's to forget, whether the default executor is OpenMP's, and which matrix unit is used. Users write
// `heed::attention` and never see it.
//
// So files of different targets share no type of heed: what passes between them is a pointer or a
// span, and an error is caught as std::invalid_argument. Eigen's and the standard library's own
// inline functions are not heed's to name: what they leave out of line is one for the program.
#pragma once

#include "heed/core/config.hpp"
#include "heed/core/eigen.hpp"

// ---- packets -------------------------------------------------------------------------------------
#if !defined(EIGEN_VECTORIZE)
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
#elif defined(EIGEN_VECTORIZE_VSX)
#define HEED_TARGET_PACKETS vsx
#elif defined(EIGEN_VECTORIZE_ZVECTOR)
#define HEED_TARGET_PACKETS zvector
#else
#define HEED_TARGET_PACKETS generic
#endif

#if EIGEN_MAX_ALIGN_BYTES == 64
#define HEED_TARGET_ALIGNMENT _a64
#elif EIGEN_MAX_ALIGN_BYTES == 32
#define HEED_TARGET_ALIGNMENT _a32
#elif EIGEN_MAX_ALIGN_BYTES == 16
#define HEED_TARGET_ALIGNMENT _a16
#else
#define HEED_TARGET_ALIGNMENT _a0
#endif

// ---- instructions: a few letters each, nothing for what the target lacks ---------------------------
#if defined(__SSE4_2__) && defined(__POPCNT__)
#define HEED_TARGET_SSE _sse42
#elif defined(__SSE4_2__)
#define HEED_TARGET_SSE _sse42n
#elif defined(__SSE4_1__)
#define HEED_TARGET_SSE _sse41
#elif defined(__SSSE3__)
#define HEED_TARGET_SSE _ssse3
#elif defined(__SSE3__)
#define HEED_TARGET_SSE _sse3
#else
#define HEED_TARGET_SSE
#endif
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512CD__) && \
    defined(__AVX512DQ__) && defined(__AVX512VL__)
#define HEED_TARGET_AVX _v4
#elif defined(__AVX512F__)
#define HEED_TARGET_AVX _avx512f
#elif defined(__AVX2__)
#define HEED_TARGET_AVX _avx2
#elif defined(__AVX__)
#define HEED_TARGET_AVX _avx
#else
#define HEED_TARGET_AVX
#endif
#if defined(__FMA__) && defined(__F16C__)
#define HEED_TARGET_FMA _fh
#elif defined(__FMA__)
#define HEED_TARGET_FMA _f
#elif defined(__F16C__)
#define HEED_TARGET_FMA _h
#elif defined(__FMA4__) || defined(__XOP__)
#define HEED_TARGET_FMA _xop
#else
#define HEED_TARGET_FMA
#endif
#if defined(__BMI__) && defined(__BMI2__) && defined(__LZCNT__) && defined(__MOVBE__)
#define HEED_TARGET_BMI _bmi4
#elif defined(__BMI__) && defined(__BMI2__)
#define HEED_TARGET_BMI _bmi2
#elif defined(__BMI__)
#define HEED_TARGET_BMI _bmi
#elif defined(__LZCNT__)
#define HEED_TARGET_BMI _lz
#elif defined(__MOVBE__)
#define HEED_TARGET_BMI _mb
#else
#define HEED_TARGET_BMI
#endif
#if defined(__AVX512VBMI2__)
#define HEED_TARGET_VBMI _vbmi2
#elif defined(__AVX512VBMI__)
#define HEED_TARGET_VBMI _vbmi
#elif defined(__AVX512IFMA__)
#define HEED_TARGET_VBMI _ifma
#else
#define HEED_TARGET_VBMI
#endif
#if defined(__AVX512BITALG__) && defined(__GFNI__)
#define HEED_TARGET_BITS _bg
#elif defined(__AVX512BITALG__)
#define HEED_TARGET_BITS _b
#elif defined(__AVX512VPOPCNTDQ__)
#define HEED_TARGET_BITS _p
#elif defined(__GFNI__)
#define HEED_TARGET_BITS _g
// Scalable vectors of a length that the compiler was told.
#elif defined(__ARM_FEATURE_SVE_BITS) && __ARM_FEATURE_SVE_BITS == 128
#define HEED_TARGET_BITS _vl128
#elif defined(__ARM_FEATURE_SVE_BITS) && __ARM_FEATURE_SVE_BITS == 256
#define HEED_TARGET_BITS _vl256
#elif defined(__ARM_FEATURE_SVE_BITS) && __ARM_FEATURE_SVE_BITS == 512
#define HEED_TARGET_BITS _vl512
#elif defined(__ARM_FEATURE_SVE_BITS) && __ARM_FEATURE_SVE_BITS > 0
#define HEED_TARGET_BITS _vlmore
#else
#define HEED_TARGET_BITS
#endif
#if defined(__AVX512VNNI__) && defined(__AVXVNNI__)
#define HEED_TARGET_VNNI _vnni2
#elif defined(__AVX512VNNI__)
#define HEED_TARGET_VNNI _vnni
#elif defined(__AVXVNNI__)
#define HEED_TARGET_VNNI _avxvnni
#else
#define HEED_TARGET_VNNI
#endif
#if defined(__AVX512BF16__) && defined(__AVX512FP16__)
#define HEED_TARGET_HALF _bf16fp16
#elif defined(__AVX512BF16__)
#define HEED_TARGET_HALF _bf16
#elif defined(__AVX512FP16__)
#define HEED_TARGET_HALF _fp16
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) && defined(__ARM_FEATURE_FP16_VECTOR_ARITHMETIC)
#define HEED_TARGET_HALF _bf16fp16
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define HEED_TARGET_HALF _bf16
#elif defined(__ARM_FEATURE_FP16_VECTOR_ARITHMETIC)
#define HEED_TARGET_HALF _fp16
#else
#define HEED_TARGET_HALF
#endif
#if defined(__AMX_BF16__) && defined(__AMX_FP16__)
#define HEED_TARGET_TILES _amxfp16
#elif defined(__AMX_BF16__)
#define HEED_TARGET_TILES _amx
#elif defined(__AMX_TILE__)
#define HEED_TARGET_TILES _tile
#elif defined(__ARM_FEATURE_SME)
#define HEED_TARGET_TILES _sme
#elif defined(__ARM_FEATURE_MATMUL_INT8)
#define HEED_TARGET_TILES _i8mm
#elif defined(__ARM_FEATURE_DOTPROD)
#define HEED_TARGET_TILES _dot
#else
#define HEED_TARGET_TILES
#endif
#if defined(__AVX10_2__)
#define HEED_TARGET_NEWER _avx10_2
#elif defined(__APX_F__)
#define HEED_TARGET_NEWER _apx
#elif defined(__AVX10_1__)
#define HEED_TARGET_NEWER _avx10
#elif defined(__AVXIFMA__)
#define HEED_TARGET_NEWER _avxifma
#elif defined(__ARM_FEATURE_SVE2)
#define HEED_TARGET_NEWER _sve2
#elif defined(__ARM_FEATURE_SVE)
#define HEED_TARGET_NEWER _sve
#elif defined(__riscv_v)
#define HEED_TARGET_NEWER _rvv
#elif defined(__riscv_zbb)
#define HEED_TARGET_NEWER _zbb
#elif defined(__wasm_relaxed_simd__)
#define HEED_TARGET_NEWER _relaxed
#elif defined(__wasm_simd128__)
#define HEED_TARGET_NEWER _simd128
#elif defined(_ARCH_PWR10)
#define HEED_TARGET_NEWER _p10
#elif defined(_ARCH_PWR9)
#define HEED_TARGET_NEWER _p9
#else
#define HEED_TARGET_NEWER
#endif
#if defined(__ARM_FEATURE_ATOMICS)
#define HEED_TARGET_ATOMICS _lse
#elif defined(__LAHF_SAHF__) && defined(__GCC_HAVE_SYNC_COMPARE_AND_SWAP_16)
#define HEED_TARGET_ATOMICS _cx16
#else
#define HEED_TARGET_ATOMICS
#endif

// ---- settings ------------------------------------------------------------------------------------
#if defined(HEED_ASSERT_IS_THE_USERS)
#define HEED_TARGET_ASSERTIONS _asserts
#elif defined(NDEBUG)
#define HEED_TARGET_ASSERTIONS
#else
#define HEED_TARGET_ASSERTIONS _checked
#endif
#if defined(_GLIBCXX_DEBUG)
#define HEED_TARGET_DEBUG _debug
#else
#define HEED_TARGET_DEBUG
#endif
#if defined(__FAST_MATH__)
#define HEED_TARGET_MATHS _fast
#elif defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#define HEED_TARGET_MATHS _finite
#else
#define HEED_TARGET_MATHS
#endif
#if !HEED_HAS_EXCEPTIONS
#define HEED_TARGET_EXCEPTIONS _nothrow
#else
#define HEED_TARGET_EXCEPTIONS
#endif
#if defined(_OPENMP)
#define HEED_TARGET_EXECUTOR _omp
#else
#define HEED_TARGET_EXECUTOR
#endif

#if defined(HEED_EMULATED_TILES)
#define HEED_TARGET_MATRIX _emulated
#elif defined(HEED_TILES) && defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define HEED_TARGET_MATRIX _tiles8
#elif defined(HEED_TILES) && defined(__AMX_BF16__)
#define HEED_TARGET_MATRIX _tiles
#else
#define HEED_TARGET_MATRIX
#endif

#define HEED_TARGET_JOIN(packets, alignment, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q) \
  packets##alignment##a##b##c##d##e##f##g##h##i##j##k##l##m##n##o##p##q
#define HEED_TARGET_EXPAND(...) HEED_TARGET_JOIN(__VA_ARGS__)
#define HEED_TARGET                                                                                \
  HEED_TARGET_EXPAND(HEED_TARGET_PACKETS, HEED_TARGET_ALIGNMENT, HEED_TARGET_SSE, HEED_TARGET_AVX, \
                     HEED_TARGET_FMA, HEED_TARGET_BMI, HEED_TARGET_VBMI, HEED_TARGET_BITS,         \
                     HEED_TARGET_VNNI, HEED_TARGET_HALF, HEED_TARGET_TILES, HEED_TARGET_NEWER,     \
                     HEED_TARGET_ATOMICS, HEED_TARGET_ASSERTIONS, HEED_TARGET_DEBUG,               \
                     HEED_TARGET_MATHS, HEED_TARGET_EXCEPTIONS, HEED_TARGET_EXECUTOR,              \
                     HEED_TARGET_MATRIX)

namespace heed::inline HEED_TARGET {

/// What the public functions call: raw-pointer kernels, and the checks and overloads that all
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
