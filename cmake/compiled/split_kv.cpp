// SPDX-License-Identifier: MIT
// The definitions of heed::compiled: the kernels of kernel/split_kv that no modifier changes.
#include "heed/kernel/split_kv/task.hpp"

namespace heed::inline HEED_TARGET::kernel {

HEED_SPLIT_KV_KERNELS_OF(, float, float)
HEED_SPLIT_KV_KERNELS_OF(, float, half)
HEED_SPLIT_KV_KERNELS_OF(, float, bfloat16)
HEED_SPLIT_KV_KERNELS_OF(, double, double)

}  // namespace heed::inline HEED_TARGET::kernel
