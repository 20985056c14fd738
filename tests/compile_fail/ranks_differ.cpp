// SPDX-License-Identifier: MIT
// One head of queries against many heads of keys: which axis was left out is not guessed.
// expect: q, k and v have different ranks
#include <heed/heed.hpp>

int main() {
  const heed::tensor<float, 2> q({3, 4});
  const heed::tensor<float, 3> k({2, 3, 4});
  (void)heed::attention(q, k, k);
}
