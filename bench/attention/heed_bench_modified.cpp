// SPDX-License-Identifier: MIT
// Windows, score modifiers and a user's lambda: the rate on visible pairs, to be held against that
// of forward/tiled.
#include "bench/families.hpp"
#include "bench/forward.hpp"

namespace bench {

void register_modified() {
  for (const index d : {64, 128}) {
    for (const index n : {2048, 16'384}) {
      forward_shape s = one_head(d, n, true);
      s.visible = heed::cost::causal_window(1024);
      register_attention<float>("window", "w1024", s, heed::window{.left = 1023});
    }
    const forward_shape s = one_head(d, 2048, false);
    register_attention<float>("modified", "lambda", s, [](float score, heed::position p) {
      return score - 0.01F * static_cast<float>(p.query - p.key);
    });
    register_attention<float>("modified", "softcap", s, heed::softcap(50.0));
    register_attention<float>("modified", "alibi", s, heed::alibi());
    register_attention<float>("modified", "mask_lambda", s,
                              [](heed::position p) { return (p.query ^ p.key) % 7 != 0; });
  }
}

}  // namespace bench
