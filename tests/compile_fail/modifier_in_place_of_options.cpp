// SPDX-License-Identifier: MIT
// Modifiers come after the options.
// expect: what follows the tensors is heed::attention_options
#include <heed/heed.hpp>

int main() {
  const heed::tensor<float, 2> q({3, 3});
  (void)heed::attention(q, q, q, heed::causal());
}
