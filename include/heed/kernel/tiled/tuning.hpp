// SPDX-License-Identifier: MIT
// The tile sizes of the tiled kernel. `tuning<kernel::tiled, A>` overrides keys, groups_per_task,
// resident_bytes, mask_step and aliasing_bytes; the others follow from the registers.
//
// Queries lie across the lanes. A group is three packets of queries; a register tile is `key_step`
// keys (or channels) by three packets of sums, which with the three operand packets and a broadcast
// fills the registers: 8 x 3 of 32, 4 x 3 of 16. A block of keys keeps the group's scores in the
// first-level cache. A task is a few groups of one head, so that a block of keys, once in the
// second-level cache, serves them all.
//
// Sizes depend on the scalar alone and blocks start at multiples of `keys`, so that a row's sums
// are made in the same order for any number of threads and any batch.
#pragma once

#include "heed/core/target.hpp"
#include "heed/core/tuning.hpp"
#include "heed/simd/packet.hpp"

namespace heed::inline HEED_TARGET::kernel {

struct tiled {
  template <class A>
  struct sizes;
};

template <class A>
struct tiled::sizes {
  static constexpr index lanes = simd::lanes<A>;
  static constexpr index packets = 3;
  static constexpr index group = packets * lanes;
  static constexpr index key_step = simd::vector_registers == 32 ? 8 : 4;
  /// Keys whose exponentials are computed together, as many chains of steps as registers hold; in
  /// double, whose chains are twice as long, more of them and a few in memory.
  static constexpr int exponential_step =
      lanes >= 16                                                   ? 3
      : simd::vector_registers == 32 || sizeof(A) == sizeof(double) ? 2
                                                                    : 1;
  /// Keys of a block.
  static constexpr index keys = 128;
  /// Groups of queries of a task.
  static constexpr index groups_per_task = lanes >= 16 ? 4 : 8;
  /// Keys and values of a head that stay in the second-level cache from one task to the next.
  static constexpr index resident_bytes = index{1} << 20U;
  /// Keys a partly masked block is classified by.
  static constexpr index mask_step = 16;
  /// Rows this far apart in memory fall into few sets of the cache: copied before use.
  static constexpr index aliasing_bytes = 4096;
};

template <class A>
using tile_plan = tuning<tiled, A>;

}  // namespace heed::inline HEED_TARGET::kernel
