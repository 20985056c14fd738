// SPDX-License-Identifier: MIT
// How much memory a call holds at most, counted where every allocation of this executable passes.
//
// With glibc the executable replaces malloc and its kin (memory_meter.cpp) by ones that keep a
// count of the bytes in use and its high-water mark, then call the originals: heed's workspaces,
// Eigen's temporaries and the standard library's containers are all in it, to the byte. Stack is
// not. Elsewhere, and under sanitizers, which bring a malloc of their own, nothing is measured.
#pragma once

#include <cstddef>
#include <optional>

namespace wall {

/// Counts from its construction. One at a time.
class memory_meter {
 public:
  memory_meter();
  /// The most bytes in use since, beyond those in use then. Empty where it cannot be measured.
  [[nodiscard]] std::optional<double> peak() const;

 private:
  std::size_t start_;
};

}  // namespace wall
