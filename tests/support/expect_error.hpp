// SPDX-License-Identifier: MIT
// A call that must throw, with its whole message.
#pragma once

#include <gtest/gtest.h>

#include <string>

namespace support {

template <class Error, class F>
void expect_error(const std::string& message, F&& f) {
  try {
    f();
    ADD_FAILURE() << "no exception, expected: " << message;
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()), message);
  }
}

}  // namespace support
