// SPDX-License-Identifier: MIT
// The definitions of heed::compiled: the kernels of kernel/tiled that no modifier changes.
#include "heed/kernel/tiled/query_tile.hpp"

namespace heed::inline HEED_TARGET::kernel {

HEED_TILED_KERNELS_OF(, float)
HEED_TILED_KERNELS_OF(, double)

}  // namespace heed::inline HEED_TARGET::kernel
