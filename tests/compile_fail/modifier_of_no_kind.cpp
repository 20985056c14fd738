// SPDX-License-Identifier: MIT
// A modifier is a score modifier or a mask.
// expect: a modifier is callable as a score modifier
#include <heed/heed.hpp>

int main() {
  const heed::tensor<float, 2> q({3, 4});
  (void)heed::attention(q, q, q, {}, [](int query, int key) { return query >= key; });
}
