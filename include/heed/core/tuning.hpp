// SPDX-License-Identifier: MIT
// The sizes a kernel is tuned by: tiles, blocks, what is to stay in which cache. A program may
// override them for a kernel, an accumulator and a target.
//
//   #include <heed/heed.hpp>
//   template <>                                          // before the first call, in every file
//   struct heed::tuning<heed::kernel::tiled, float> : heed::kernel::tiled::sizes<float> {
//     static constexpr heed::index keys = 64;            // of a block
//   };
//
// A third argument `heed::target` is the one a file is compiled for; a partial specialisation may
// depend on its members. Results stay within their error bounds; bits may change, as sums are cut
// elsewhere, but not with the number of threads. All files of a program must agree, heed::compiled
// among them: a program that overrides compiles its kernels itself.
#pragma once

#include "heed/core/eigen.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"

namespace heed::inline HEED_TARGET {

/// The target a file is compiled for.
struct target {
  /// Of a packet of floats.
  static constexpr index vector_bytes =
      static_cast<index>(sizeof(Eigen::internal::packet_traits<float>::type));
  /// Vector registers a kernel may count on. With 32, a kernel keeps 24 packets of sums; with 16,
  /// 12.
#if defined(EIGEN_VECTORIZE_AVX512) || defined(EIGEN_VECTORIZE_NEON) || defined(EIGEN_VECTORIZE_SVE)
  static constexpr index vector_registers = 32;
#else
  static constexpr index vector_registers = 16;
#endif
};

/// The sizes of a kernel: `Kernel::sizes<Accumulator>` unless specialised.
template <class Kernel, class Accumulator, class Target = target>
struct tuning : Kernel::template sizes<Accumulator> {};

}  // namespace heed::inline HEED_TARGET
