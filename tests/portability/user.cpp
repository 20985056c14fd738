// SPDX-License-Identifier: MIT
// A user's first file: it must compile without a warning, however many he turns on.
#include <heed/heed.hpp>

int main() {
  const Eigen::MatrixXf q = Eigen::MatrixXf::Random(70, 64);
  const Eigen::MatrixXf out = heed::attention(
      q, q, q, {}, heed::causal(),
      [](float s, heed::position p) { return s - 0.01F * static_cast<float>(p.query - p.key); });
  const heed::tensor<float, 4> one({1, 2, 1, 64});
  heed::contiguous_cache<heed::bfloat16> cache(
      {.batch = 1, .kv_heads = 2, .capacity = 64, .head_dim = 64});
  const auto next = heed::decode(one, one, one, cache, {}, heed::causal());
  return out.allFinite() && next(0, 0, 0, 0) == 0.0F ? 0 : 1;
}
