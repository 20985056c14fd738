// SPDX-License-Identifier: MIT
// Options in braces are not taken for the input that is missing.
// expect: gated_delta_attention takes q, k, v, gate, beta
#include <heed/linear.hpp>

int main() {
  const heed::tensor<float, 3> q({2, 5, 4});
  const heed::tensor<float, 2> gate({2, 5});
  (void)heed::gated_delta_attention(q, q, q, gate, {.chunk = 64});
}
