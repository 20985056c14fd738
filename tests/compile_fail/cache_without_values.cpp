// SPDX-License-Identifier: MIT
// A cache has keys and values.
// expect: the cache has no keys.batch, kv_head, token. and values
#include <heed/attention.hpp>

struct cache {
  using key_scalar = float;
  using value_scalar = float;
  heed::index batch() const { return 1; }
  heed::index kv_heads() const { return 1; }
  heed::index head_dim() const { return 3; }
  heed::index value_dim() const { return 3; }
  heed::index length(heed::index) const { return 1; }
  heed::row_run<float> keys(heed::index, heed::index, heed::index) const { return {}; }
  heed::index key_channel_stride() const { return 1; }
  heed::index value_channel_stride() const { return 1; }
};

int main() {
  const heed::tensor<float, 2> q({1, 3});
  (void)heed::decode(q, cache());
}
