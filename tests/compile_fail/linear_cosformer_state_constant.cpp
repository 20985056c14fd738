// SPDX-License-Identifier: MIT
// Nor a state of features that know their position.
// expect: or is constant
#include <heed/linear.hpp>

int main() {
  const heed::tensor<float, 3> q({2, 5, 4});
  const heed::linear_state<float> state({1, 2, 8, 4});
  (void)heed::cosformer_attention(q, q, q, state, heed::cosformer_options{.horizon = 5});
}
