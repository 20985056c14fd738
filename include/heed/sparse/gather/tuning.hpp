// SPDX-License-Identifier: MIT
// The sizes that selected attention is tuned by, of each of its two ways, and which way it takes.
// Overridden as in heed/core/tuning.hpp: `tuning<kernel::selected_rows, A>`.
#pragma once

#include "heed/core/target.hpp"
#include "heed/core/tuning.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// Row by row.
struct selected_rows {
  template <class A>
  struct sizes {
    /// Keys and values of a key range, which stay in the second-level cache.
    static constexpr index key_bytes = index{1} << 20;
    /// Fewest keys a row selects within a key range: each visit costs what so many do.
    static constexpr index fewest_keys = 32;
    static constexpr index most_rows = 1024;  ///< of a query block
    /// Where all keys are one range, rows gain nothing by waiting for each other.
    static constexpr index rows_of_one_range = 16;
    /// Indices, queries and outputs of a query block.
    static constexpr index row_bytes = index{1} << 22;
  };
};

/// Block by block.
struct selected_blocks {
  template <class A>
  struct sizes {
    static constexpr index rows_a_block = 96;  ///< wanted, for its keys to be worth reading
    static constexpr index cached_bytes = index{8} << 20;  ///< of parts, until they merge
    static constexpr index most_bytes = index{32} << 20;   ///< of parts

    /// Taken where it gains, in ns divided by 1.35: of r rows that select a block, at least
    /// fewest_rows, ((key + key_of_head h) block + visit - visit_of_head h) r > start_of_head h.
    /// Measured at 64 channels of float, for a block that h heads share:
    ///   row by row       90 + 21 h + (2.8 + 3.2 h) block
    ///   block by block   (215 + 1.9 block + 3000 / r) h
    static constexpr index fewest_rows = 4;
    static constexpr index key = 2;
    static constexpr index key_of_head = 1;
    static constexpr index visit = 67;
    static constexpr index visit_of_head = 144;
    static constexpr index start_of_head = 2200;
  };
};

}  // namespace heed::inline HEED_TARGET::kernel
