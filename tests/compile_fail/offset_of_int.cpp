// SPDX-License-Identifier: MIT
// Offsets of each batch are read where they are, as heed::index.
// expect: offsets are one number, or contiguous numbers of heed::index
#include <heed/heed.hpp>
#include <vector>

int main() {
  const std::vector<int> n{3};
  const heed::attention_options o{.offset = n};
  (void)o;
}
