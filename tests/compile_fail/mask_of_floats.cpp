// SPDX-License-Identifier: MIT
// Zeros and infinities added to scores are a bias, not a mask of truths.
// expect: keep takes a tensor of bool or integers
#include <heed/heed.hpp>

int main() {
  const heed::tensor<float, 2> mask({3, 3});
  (void)heed::keep(mask);
}
