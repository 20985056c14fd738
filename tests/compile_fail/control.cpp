// SPDX-License-Identifier: MIT
// Control: the library itself compiles with the options of these tests.
#include <heed/heed.hpp>

int main() { return heed::tensor<float, 2>({2, 3}).size() == 6 ? 0 : 1; }
