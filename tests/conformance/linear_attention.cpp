// SPDX-License-Identifier: MIT
// LinearAttention: recurrences whose rule the case names.
#include "case.hpp"

namespace conformance {

void run_linear_attention(const test_case& c, comparison&) {
  throw unsupported("LinearAttention, rule " +
                    c.attribute<std::string>("update_rule", "gated_delta"));
}

}  // namespace conformance
