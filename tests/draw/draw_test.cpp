// SPDX-License-Identifier: MIT
// Pictures of weights: the map against the textbook's weights, pooled here pair by pair, and what
// the picture shows of it.
#include "heed/draw.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "heed/parallel.hpp"
#include "heed/score.hpp"

namespace {

using heed::index;

constexpr index heads = 4, kv_heads = 2, queries = 37, keys = 50, channels = 8;

heed::tensor<float, 4> wave(index h, index n, double pace) {
  heed::tensor<float, 4> t({2, h, n, channels});
  double at = 0.3;
  for (index b = 0; b < 2; ++b)
    for (index g = 0; g < h; ++g)
      for (index i = 0; i < n; ++i)
        for (index c = 0; c < channels; ++c)
          t(b, g, i, c) = static_cast<float>(1.5 * std::sin(at += pace));
  return t;
}

const heed::tensor<float, 4> q = wave(heads, queries, 0.77);
const heed::tensor<float, 4> k = wave(kv_heads, keys, 1.31);
constexpr index offset = keys - queries;
const heed::attention_options at_the_end{.offset = offset};

/// Softmax of a row with the mask causal and key % 5 != 3, the softcap 2.
std::vector<double> textbook_row(index b, index h, index i) {
  std::vector<double> w(keys, 0.0);
  double sum = 0;
  for (index j = 0; j < keys; ++j) {
    if (j > offset + i || j % 5 == 3) continue;
    double dot = 0;
    for (index c = 0; c < channels; ++c) {
      dot += double{q(b, h, i, c)} * double{k(b, h / (heads / kv_heads), j, c)};
    }
    w[static_cast<std::size_t>(j)] = std::exp(2 * std::tanh(dot / std::sqrt(double{channels}) / 2));
    sum += w[static_cast<std::size_t>(j)];
  }
  for (double& x : w) x = sum > 0 ? x / sum : 0;
  return w;
}

struct no_third {
  static constexpr heed::stage when = heed::stage::mask;
  bool operator()(const heed::position& p) const noexcept { return p.key % 5 != 3; }
};

struct nothing_at_all {
  static constexpr heed::stage when = heed::stage::mask;
  bool operator()(const heed::position&) const noexcept { return false; }
};

template <class... P>
heed::weight_map map(const heed::weight_map_options& o, const P&... pattern) {
  heed::thread_pool pool(2);
  return heed::map_weights(pool, q, k, o, pattern..., at_the_end, heed::causal(), no_third{},
                           heed::softcap(2.0F));
}

// Weights are sums of `channels` products, then shares of at most 50 keys: some hundred eps.
constexpr double tolerance = 200 * std::numeric_limits<float>::epsilon();

void expect_textbook(const heed::weight_map& m, index rows, index columns) {
  const index qc = heed::ceil_div(queries, rows);
  const index kc = heed::ceil_div(keys, columns);
  ASSERT_EQ(m.share.extent(0), heed::ceil_div(queries, qc));
  ASSERT_EQ(m.share.extent(1), heed::ceil_div(keys, kc));
  heed::tensor<double, 2> expected({m.share.extent(0), m.share.extent(1)});
  const index first = m.head.value_or(0);
  const index last = m.head ? first + 1 : heads;
  for (index h = first; h < last; ++h) {
    for (index i = 0; i < queries; ++i) {
      const index in_row = std::min((i / qc + 1) * qc, queries) - i / qc * qc;
      const auto w = textbook_row(m.batch, h, i);
      for (index j = 0; j < keys; ++j) {
        expected(i / qc, j / kc) +=
            w[static_cast<std::size_t>(j)] / static_cast<double>(in_row * (last - first));
      }
    }
  }
  for (index r = 0; r < m.share.extent(0); ++r)
    for (index c = 0; c < m.share.extent(1); ++c)
      EXPECT_NEAR(m.share(r, c), expected(r, c), tolerance) << r << ' ' << c;
}

TEST(WeightMap, IsTheTextbooksWeights) {
  expect_textbook(map({.batch = 1, .head = 3}), queries, keys);
  expect_textbook(map({.batch = 0}), queries, keys);
}

TEST(WeightMap, IsPooledIntoCells) {
  expect_textbook(map({.batch = 1, .head = 2, .rows = 10, .columns = 7}), 10, 7);
  expect_textbook(map({.batch = 1, .rows = 1, .columns = 1}), 1, 1);
}

TEST(WeightMap, ASinkTakesItsPart) {
  heed::serial_executor exec;
  const heed::tensor<float, 2> q0({3, 2});  // zero: every score is 0
  const heed::tensor<float, 2> k0({3, 2});
  const std::vector<float> logits{std::log(3.0F)};
  const auto m = heed::map_weights(exec, q0, k0, {.columns = 1}, {}, heed::sink(logits));
  for (index r = 0; r < 3; ++r) EXPECT_NEAR(m.share(r, 0), 0.5, tolerance);
}

TEST(WeightMap, TellsTheRecallOfAPattern) {
  heed::serial_executor exec;
  const heed::pattern_extents e{1, 1, keys, keys, 8, 8};
  const heed::block_pattern near(exec, e, heed::window{.left = 5, .right = 5});
  const auto m = map({.batch = 1, .head = 1}, near);
  ASSERT_TRUE(m.recall.has_value());
  double expected = 0;
  for (index i = 0; i < queries; ++i) {
    const auto w = textbook_row(1, 1, i);
    for (index j = 0; j < keys; ++j) {
      const bool seen = near.at(0, 0, (offset + i) / 8, j / 8) != heed::coverage::empty;
      if (seen) expected += w[static_cast<std::size_t>(j)] / double{queries};
    }
  }
  EXPECT_LT(expected, 0.9);
  EXPECT_NEAR(*m.recall, expected, tolerance);
}

TEST(WeightMap, RowsThatSeeNothingHaveNoRecall) {
  heed::serial_executor exec;
  const heed::tensor<float, 2> q0({4, 2});
  const heed::tensor<float, 2> k0({4, 2});
  const heed::block_pattern all(exec, {1, 1, 4, 4, 2, 2}, heed::all_visible{});
  const auto m = heed::map_weights(exec, q0, k0, {}, all, {}, nothing_at_all{});
  EXPECT_FALSE(m.recall.has_value());
  EXPECT_EQ(heed::to_svg(m).find("fill-opacity"), std::string::npos);
}

TEST(WeightMap, RefusesWhatQDoesNotHave) {
  EXPECT_THROW((void)map({.batch = 2}), heed::option_error);
  EXPECT_THROW((void)map({.head = heads}), heed::option_error);
  EXPECT_THROW((void)map({.head = -1}), heed::option_error);
  EXPECT_THROW((void)map({.rows = 0}), heed::option_error);
}

std::size_t count(const std::string& text, const std::string& word) {
  std::size_t n = 0;
  for (std::size_t at = 0; (at = text.find(word, at)) != std::string::npos; ++at) ++n;
  return n;
}

heed::weight_map two_by_two() {
  heed::weight_map m;
  m.share = heed::tensor<double, 2>({2, 2});
  m.share(0, 0) = 1;
  m.share(1, 0) = m.share(1, 1) = 0.25;
  m.queries = m.keys = 2;
  m.head = 0;
  return m;
}

TEST(WeightPicture, ShadesAreRootsOfShares) {
  const std::string svg = heed::to_svg(two_by_two(), {.side = 20});
  EXPECT_EQ(count(svg, "<path"), 2U);
  EXPECT_EQ(count(svg, "fill-opacity=\"1\" d=\"M0 0h10v10h-10z\""), 1U);
  EXPECT_EQ(count(svg, "fill-opacity=\"0.5\" d=\"M0 10h20v10h-20z\""), 1U);
  EXPECT_EQ(count(svg, "prefers-color-scheme"), 1U);
  EXPECT_EQ(count(heed::to_svg(two_by_two(), {.theme = heed::svg::theme::dark}), "#0d1117"), 1U);
  EXPECT_EQ(count(heed::to_svg(two_by_two(), {.theme = heed::svg::theme::dark}), "#ffffff"), 0U);
}

TEST(WeightPicture, ThePatternIsOutlined) {
  heed::weight_map m = two_by_two();
  const std::vector<std::vector<index>> diagonal{{0}, {1}};
  m.pattern = heed::block_pattern({1, 1, 2, 2, 1, 1}, diagonal);
  m.recall = 0.625;
  const std::string svg = heed::to_svg(m, {.side = 20});
  const auto at = svg.find("class=\"mark\"");
  ASSERT_NE(at, std::string::npos);
  const std::string path = svg.substr(at, svg.find("/>", at) - at);
  // Two squares have eight sides; the one point where they meet belongs to four of them.
  EXPECT_EQ(count(path, "V"), 4U);
  EXPECT_EQ(count(path, "H"), 4U);
  EXPECT_EQ(count(svg, "recall 0.625"), 2U);  // title and caption
}

TEST(WeightPicture, LabelsAreEscapedAndCounted) {
  const std::vector<std::string> labels{"<a & \"b\">", "c\n"};
  const std::string svg =
      heed::to_svg(two_by_two(), {.title = "x<y", .query_labels = labels, .key_labels = labels});
  EXPECT_EQ(count(svg, "&lt;a &amp; &quot;b&quot;&gt;</text>"), 2U);
  EXPECT_EQ(count(svg, ">c</text>"), 2U);
  EXPECT_EQ(count(svg, "x&lt;y: head 0"), 2U);
  EXPECT_THROW((void)heed::to_svg(two_by_two(), {.key_labels = {"one"}}), heed::shape_error);
}

TEST(WeightPicture, NumbersThatAreNoneAreNotDrawn) {
  heed::weight_map m = two_by_two();
  m.share(0, 0) = std::numeric_limits<double>::quiet_NaN();
  const std::string svg = heed::to_svg(m, {.side = 20});
  EXPECT_EQ(count(svg, "nan"), 0U);
  EXPECT_EQ(count(svg, "fill-opacity"), 1U);
}

}  // namespace
