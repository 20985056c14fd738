// SPDX-License-Identifier: MIT
// A cache says how far apart the channels of a row are.
// expect: the cache has no key_channel_stride.. and value_channel_stride
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
  heed::row_run<float> values(heed::index, heed::index, heed::index) const { return {}; }
};

int main() {
  const heed::tensor<float, 2> q({1, 3});
  (void)heed::decode(q, cache());
}
