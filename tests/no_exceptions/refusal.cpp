// SPDX-License-Identifier: MIT
// Without exceptions heed computes as ever, and an error reaches the replaceable handler.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <heed/heed.hpp>

#if HEED_HAS_EXCEPTIONS
#error "compile this with -fno-exceptions"
#endif

namespace {

[[noreturn]] void expected_error(const char* message) {
  std::printf("handler: %s\n", message);
  // Both extents are named.
  std::_Exit(std::strstr(message, "5") != nullptr && std::strstr(message, "4") != nullptr ? 0 : 3);
}

}  // namespace

int main() {
  heed::tensor<float, 2> q({3, 4});
  heed::tensor<float, 2> v({3, 2});
  for (heed::index i = 0; i < 3; ++i) v(i, 1) = 2.0F;
  const auto out = heed::attention(q, q, v);
  if (std::abs(out(2, 1) - 2.0F) > 1e-6F || out(2, 0) != 0.0F) return 1;

  heed::set_error_handler(&expected_error);
  const heed::tensor<float, 2> k({3, 5});
  (void)heed::attention(q, k, v);
  return 2;  // the handler was not called
}
