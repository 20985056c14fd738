// SPDX-License-Identifier: MIT
// A cache of one length for all does not say how long each batch entry is.
// expect: the cache has no length.batch.
#include <heed/heed.hpp>

struct cache {
  using key_scalar = float;
  using value_scalar = float;
  heed::index batch() const { return 1; }
  heed::index kv_heads() const { return 1; }
  heed::index head_dim() const { return 3; }
  heed::index value_dim() const { return 3; }
  heed::row_run<float> keys(heed::index, heed::index, heed::index) const { return {}; }
  heed::row_run<float> values(heed::index, heed::index, heed::index) const { return {}; }
  heed::index key_channel_stride() const { return 1; }
  heed::index value_channel_stride() const { return 1; }
};

int main() {
  const heed::tensor<float, 2> q({1, 3});
  (void)heed::decode(q, cache());
}
