// SPDX-License-Identifier: MIT
// The exceptions heed throws, and the one place that throws them.
//
// Compiled with -fno-exceptions, an error calls `error_handler()`, which prints the message and
// aborts; `set_error_handler` replaces it (it must not return).
#pragma once

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "heed/core/config.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"

namespace heed::inline HEED_TARGET {

/// Extents that do not fit together. The message names the argument and both extents.
struct shape_error : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

/// A bounded resource (a cache) is full; nothing was changed. The message names capacity and
/// request.
struct capacity_error : std::length_error {
  using std::length_error::length_error;
};

/// An option outside its domain ("dropout probability is 1.5, must be in [0, 1)").
struct option_error : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

using error_handler_type = void (*)(const char* message);

namespace detail {
inline void print_and_abort(const char* message) {
  std::fputs(message, stderr);
  std::fputc('\n', stderr);
  std::abort();
}
inline error_handler_type& error_handler_slot() noexcept {
  static error_handler_type handler = &print_and_abort;
  return handler;
}
}  // namespace detail

/// Replaces what happens on an error where exceptions are off. Returns the previous handler.
inline error_handler_type set_error_handler(error_handler_type handler) noexcept {
  const error_handler_type previous = detail::error_handler_slot();
  detail::error_handler_slot() = handler;
  return previous;
}

/// Throws `Error(message)`, or calls the handler where exceptions are off.
template <class Error>
[[noreturn]] inline void fail(const std::string& message) {
#if HEED_HAS_EXCEPTIONS
  throw Error(message);
#else
  detail::error_handler_slot()(message.c_str());
  std::abort();
#endif
}

/// "[2, 3, 4]": how every message writes extents.
template <class Extents>
[[nodiscard]] std::string format_extents(const Extents& extents) {
  std::string text = "[";
  bool first = true;
  for (const index extent : extents) {
    if (!first) text += ", ";
    text += std::to_string(extent);
    first = false;
  }
  return text + "]";
}

/// Throws shape_error "`what` has `name` 3, `other` has 4" unless the extents agree.
inline void require_equal(const char* what, const char* name, index extent, const char* other,
                          index expected) {
  if (extent != expected) {
    fail<shape_error>(std::string(what) + " has " + name + " " + std::to_string(extent) + ", " +
                      other + " has " + std::to_string(expected));
  }
}

}  // namespace heed::inline HEED_TARGET
