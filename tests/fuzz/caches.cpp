// SPDX-License-Identifier: MIT
// The fuzz target of caches: the first byte says whether the others are operations or a file.
//
//   clang++ -std=c++20 -O1 -fsanitize=fuzzer,address,undefined -I include -I tests
//     -isystem /usr/include/eigen3 tests/fuzz/caches.cpp -o fuzz_caches
//   ./fuzz_caches -max_total_time=20
#include "fuzz/cache_files.hpp"
#include "fuzz/cache_operations.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  if (data[0] % 4 == 0) {
    fuzz::operate(data + 1, size - 1);
  } else if (data[0] % 4 == 2) {
    fuzz::operate_on_kivi(data + 1, size - 1);
  } else {
    fuzz::read_file(data + 1, size - 1);
  }
  return 0;
}
