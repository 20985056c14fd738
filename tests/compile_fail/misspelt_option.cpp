// SPDX-License-Identifier: MIT
// Beside the name of the options' type the compiler tells which option there is none of; in braces
// alone nothing fits.
// expect: (named|designator) .*scael
#include <heed/heed.hpp>

int main() {
  const heed::attention_options o{.scael = 0.1};
  (void)o;
}
