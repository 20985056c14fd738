// SPDX-License-Identifier: MIT
// Tests of the picture of likeness in examples/: what is drawn is the cosine of each pair.
#include <gtest/gtest.h>

#include <regex>
#include <stdexcept>
#include <string>
#include <vector>

#include "examples/similarity_picture.hpp"

namespace {

std::vector<std::string> all(const std::string& text, const std::string& pattern) {
  const std::regex expression(pattern);
  std::vector<std::string> found;
  for (std::sregex_iterator i(text.begin(), text.end(), expression), end; i != end; ++i) {
    found.push_back((*i)[1]);
  }
  return found;
}

TEST(Similarity, EveryPairHasItsCosineAndItsShade) {
  Eigen::MatrixXf vectors(3, 2);
  vectors << 1.0F, 0.0F, 0.6F, 0.8F, -0.28F, 0.96F;
  const std::string picture = similarity::to_svg(vectors, {"a < b", "b", "c"});
  const std::vector<std::string> shades{"1.00", "0.60", "0.00", "0.60", "1.00",
                                        "0.60", "0.00", "0.60", "1.00"};
  EXPECT_EQ(all(picture, "fill-opacity=\"([0-9.]+)\""), shades);
  const std::vector<std::string> cosines{"0.60", "-0.28", "0.60", "0.60", "-0.28", "0.60"};
  EXPECT_EQ(all(picture, ">(-?[0-9]\\.[0-9]+)<"), cosines);
  EXPECT_NE(picture.find("a &lt; b  1<"), std::string::npos);
  EXPECT_NE(picture.find("prefers-color-scheme:dark"), std::string::npos);
}

TEST(Similarity, ZeroHasNoSign) {
  EXPECT_EQ(similarity::decimal(-0.004, 2), "0.00");
  EXPECT_EQ(similarity::decimal(-0.006, 2), "-0.01");
  EXPECT_EQ(similarity::decimal(-10.0, 0), "-10");
}

TEST(Similarity, LongTextsAreCutBetweenCharacters) {
  EXPECT_EQ(similarity::shortened("über", 4), "über");
  EXPECT_EQ(similarity::shortened("übermut", 4), "übe…");
  EXPECT_EQ(similarity::shortened("äöüß", 3), "äö…");
  EXPECT_EQ(similarity::shortened("", 3), "");
}

TEST(Similarity, TextsWithoutVectorsAndTooManyAreRefused) {
  const auto draw = [](Eigen::Index vectors, std::size_t texts) {
    return similarity::to_svg(Eigen::MatrixXf::Ones(vectors, 1),
                              std::vector<std::string>(texts, "a"));
  };
  EXPECT_THROW((void)draw(2, 3), std::runtime_error);
  EXPECT_THROW((void)draw(201, 201), std::runtime_error);
  EXPECT_NE(draw(200, 200).find("</svg>"), std::string::npos);
  EXPECT_NE(draw(0, 0).find("</svg>"), std::string::npos);
}

}  // namespace
