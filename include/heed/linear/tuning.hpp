// SPDX-License-Identifier: MIT
// The sizes that the linear family is tuned by. Overridden as in heed/core/tuning.hpp:
// `tuning<kernel::segmented, A>`.
#pragma once

#include "heed/core/target.hpp"
#include "heed/core/tuning.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// Sequences cut into segments that run side by side (parallel_scan.hpp).
struct segmented {
  template <class A>
  struct sizes {
    static constexpr index fewest_tokens = 256;  ///< of a segment
  };
};

/// Features made of queries and keys before a kernelised form reads them.
struct feature_blocks {
  template <class A>
  struct sizes {
    static constexpr index tokens = 256;  ///< of a block
  };
};

}  // namespace heed::inline HEED_TARGET::kernel
