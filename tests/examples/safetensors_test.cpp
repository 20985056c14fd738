// SPDX-License-Identifier: MIT
// Tests of the reader of safetensors in examples/ against files written here.
#include "examples/safetensors.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <system_error>

namespace {

namespace fs = std::filesystem;
using safetensors::matrix;

/// Files in a folder that is removed with it.
class Safetensors : public testing::Test {
 protected:
  fs::path path_ = fs::temp_directory_path() /
                   ("heed_embed_test_" + std::to_string(reinterpret_cast<std::uintptr_t>(this)));
  void TearDown() override { fs::remove(path_); }

  std::string write(const std::string& header, const std::string& data) {
    const std::uint64_t length = header.size();
    std::ofstream out(path_, std::ios::binary);
    out.write(reinterpret_cast<const char*>(&length), sizeof length);
    out << header << data;
    return path_.string();
  }
};

TEST_F(Safetensors, NumbersOfThreeTypesAreRead) {
  const std::string data(
      "\x00\x00\x80\x3f\x00\x00\x00\xc0"  // 1, -2 in float
      "\x00\x3c\x00\xc0"                  // in half
      "\x80\x3f\x00\xc0",                 // in bfloat16
      16);
  const safetensors::file file(write(R"({"__metadata__":{"format":"pt"},
    "f":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
    "h":{"dtype":"F16","shape":[1,2],"data_offsets":[8,12]},
    "b":{"dtype":"BF16","shape":[2,1],"data_offsets":[12,16]}})",
                                     data));
  EXPECT_TRUE(file.contains("f"));
  EXPECT_FALSE(file.contains("g"));
  EXPECT_EQ(file.load("f", 1, 2), (matrix(1, 2) << 1, -2).finished());
  EXPECT_EQ(file.load("h", 1, 2), (matrix(1, 2) << 1, -2).finished());
  EXPECT_EQ(file.load("b", 2, 1), (matrix(2, 1) << 1, -2).finished());
}

TEST_F(Safetensors, FilesThatLieAreRefused) {
  EXPECT_THROW(safetensors::file{write("not JSON", "")}, std::runtime_error);
  std::ofstream(path_, std::ios::binary) << "\xff\xff\xff\xff\xff\xff\xff\x7f{}";
  EXPECT_THROW(safetensors::file{path_.string()}, std::runtime_error);
  std::ofstream(path_, std::ios::binary) << "{}";
  EXPECT_THROW(safetensors::file{path_.string()}, std::runtime_error);
  EXPECT_THROW(safetensors::file{"missing.safetensors"}, std::system_error);

  const safetensors::file file(write(R"({
    "past":{"dtype":"F32","shape":[2],"data_offsets":[4,12]},
    "back":{"dtype":"F32","shape":[2],"data_offsets":[8,0]},
    "short":{"dtype":"F32","shape":[2],"data_offsets":[0,4]},
    "whole":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}})",
                                     "12345678"));
  for (const char* name : {"past", "back", "short", "missing"}) {
    EXPECT_THROW((void)file.load(name, 1, 2), std::runtime_error) << name;
  }
  EXPECT_THROW((void)file.load("whole", 1, 1), std::runtime_error);
  EXPECT_THROW((void)file.load("past", 2, 2), std::runtime_error);
}

}  // namespace
