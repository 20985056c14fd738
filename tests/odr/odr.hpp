// SPDX-License-Identifier: MIT
// What a translation unit sees of heed, to be compared with what another one sees.
#pragma once

#include <heed/heed.hpp>
#include <typeinfo>

namespace odr {

struct identities {
  heed::error_handler_type (*error_handler)(heed::error_handler_type) noexcept;
  const void* attention;
  const std::type_info* tensor_type;
  double result;
};

/// Internal on purpose: every unit fills in its own view of the library.
static identities here() {
  heed::tensor<double, 2> q({3, 4});
  q(2, 1) = 1.0;
  return {&heed::set_error_handler, &heed::attention, &typeid(heed::tensor<float, 3>),
          heed::attention(q, q, q)(2, 1)};
}

/// `here()` of first.cpp.
identities first();

}  // namespace odr
