// SPDX-License-Identifier: MIT
// Lengths are read where they are, as heed::index.
// expect: lengths are contiguous numbers of heed::index
#include <heed/heed.hpp>
#include <vector>

int main() {
  const std::vector<int> n{3};
  (void)heed::lengths(n);
}
