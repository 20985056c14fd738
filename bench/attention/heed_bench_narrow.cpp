// SPDX-License-Identifier: MIT
// Exact attention on half and bfloat16 tensors; the peak is that of float, which they accumulate
// in.
#include "bench/families.hpp"
#include "bench/forward.hpp"

namespace bench {

void register_narrow() {
  for (const index d : {64, 128}) {
    for (const bool causal : {false, true}) {
      register_attention<heed::half>("forward", "tiled", one_head(d, 2048, causal));
      register_attention<heed::bfloat16>("forward", "tiled", one_head(d, 2048, causal));
    }
    register_attention<heed::half>("forward", "tiled", one_head(d, 8192, false));
    register_attention<heed::bfloat16>("forward", "tiled", one_head(d, 8192, false));
  }
}

}  // namespace bench
