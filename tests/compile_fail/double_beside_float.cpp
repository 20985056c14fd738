// SPDX-License-Identifier: MIT
// Sums of mixed precision have no obvious accumulator.
// expect: q, k and v accumulate in different types
#include <heed/heed.hpp>

int main() {
  const heed::tensor<float, 2> q({3, 4});
  const heed::tensor<double, 2> k({3, 4});
  (void)heed::attention(q, k, k);
}
