// SPDX-License-Identifier: MIT
// Tests of the graph interpreter of the conformance runner: graphs against the formulas they spell.
#include "conformance/graph.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>

namespace {

using conformance::score_graph;
using heed::index;
using heed::position;

constexpr index batch = 2;
constexpr index heads = 3;
constexpr index queries = 4;
constexpr index keys = 5;

/// A graph of nodes and initializers, in the notation of the cases.
score_graph parse(const std::string& initializers, const std::string& nodes) {
  const std::string text = R"({"inputs": [{"name": "s"}], "outputs": [{"name": "out"}],
    "initializers": [)" + initializers +
                           R"(], "nodes": [)" + nodes + "]}";
  return score_graph(nlohmann::json::parse(text), {batch, heads, queries, keys});
}

std::string node(const std::string& op, const std::string& in, const std::string& out,
                 const std::string& attrs = "{}") {
  return R"({"op": ")" + op + R"(", "inputs": [)" + in + R"(], "outputs": [")" + out +
         R"("], "attrs": )" + attrs + "}";
}

std::string number(const std::string& name, const std::string& type, const std::string& value) {
  return R"({"name": ")" + name + R"(", "dtype": ")" + type + R"(", "dims": [], "data": [)" +
         value + "]}";
}

void expect_formula(const score_graph& graph,
                    const std::function<double(double, const position&)>& f) {
  for (index b = 0; b < batch; ++b) {
    for (index h = 0; h < heads; ++h) {
      for (index i = 0; i < queries; ++i) {
        for (index j = 0; j < keys; ++j) {
          const position p{b, h, h, i, j, i};
          for (const double s : {-2.5, 0.0, 0.75}) {
            ASSERT_EQ(graph(s, p), f(s, p)) << "at " << b << h << i << j;
          }
        }
      }
    }
  }
}

// Positions as the cases make them: Shape, Gather, Range, Unsqueeze or Reshape.
const std::string row_and_key_numbers =
    number("zero", "int64", "0") + "," + number("one", "int64", "1") + "," +
    number("two", "int64", "2") + "," + number("three", "int64", "3") + "," +
    R"({"name": "last", "dtype": "int64", "dims": [1], "data": [-1]})";
const std::string row_and_key_nodes = node("Shape", R"("s")", "dims") + "," +
                                      node("Gather", R"("dims", "two")", "L") + "," +
                                      node("Gather", R"("dims", "three")", "S") + "," +
                                      node("Range", R"("zero", "L", "one")", "rows") + "," +
                                      node("Range", R"("zero", "S", "one")", "keys") + "," +
                                      node("Unsqueeze", R"("rows", "last")", "i") + "," +
                                      node("Sub", R"("i", "keys")", "distance") + ",";

TEST(ScoreGraph, AConstantIsAdded) {
  expect_formula(parse(number("c", "float32", R"("0.5")"), node("Add", R"("s", "c")", "out")),
                 [](double s, const position&) { return s + 0.5; });
}

TEST(ScoreGraph, SoftcapIsAChainOfElementwiseNodes) {
  expect_formula(parse(number("c", "float32", "2"), node("Div", R"("s", "c")", "a") + "," +
                                                        node("Tanh", R"("a")", "b") + "," +
                                                        node("Mul", R"("b", "c")", "out")),
                 [](double s, const position&) { return std::tanh(s / 2) * 2; });
}

TEST(ScoreGraph, ABandIsBuiltFromPositions) {
  expect_formula(parse(row_and_key_numbers + "," + number("inf", "float32", R"("-inf")"),
                       row_and_key_nodes + node("Abs", R"("distance")", "far") + "," +
                           node("LessOrEqual", R"("far", "one")", "near") + "," +
                           node("Where", R"("near", "s", "inf")", "out")),
                 [](double s, const position& p) {
                   return std::abs(p.row - p.key) <= 1 ? s
                                                       : -std::numeric_limits<double>::infinity();
                 });
}

TEST(ScoreGraph, IntegersDivideAndCastAsIntegers) {
  expect_formula(
      parse(row_and_key_numbers, row_and_key_nodes + node("Div", R"("distance", "two")", "half") +
                                     "," + node("Cast", R"("half")", "f", R"({"to": 1})") + "," +
                                     node("Add", R"("s", "f")", "out")),
      [](double s, const position& p) { return s + static_cast<double>((p.row - p.key) / 2); });
}

TEST(ScoreGraph, AnArrayPerHeadBroadcasts) {
  expect_formula(
      parse(R"({"name": "slope", "dtype": "float32", "dims": [3, 1, 1], "data": [1, 2, "4"]})",
            node("Mul", R"("s", "slope")", "out")),
      [](double s, const position& p) { return s * std::exp2(static_cast<double>(p.head)); });
}

TEST(ScoreGraph, AnOutputMayForgetTheScores) {
  expect_formula(parse(row_and_key_numbers,
                       row_and_key_nodes + node("Cast", R"("distance")", "out", R"({"to": 1})")),
                 [](double, const position& p) { return static_cast<double>(p.row - p.key); });
}

TEST(ScoreGraph, WhatMixesScoresOrIsUnknownIsUnsupported) {
  EXPECT_THROW(parse("", node("Softmax", R"("s")", "out")), conformance::unsupported);
  EXPECT_THROW(parse("", node("Transpose", R"("s")", "out")), conformance::unsupported);
  EXPECT_THROW(parse(number("c", "float32", "1"), node("Lambda", R"("c")", "out")),
               conformance::unsupported);
  EXPECT_THROW(score_graph(nlohmann::json("score_mod_bias"), {1, 1, 1, 1}),
               conformance::unsupported);
}

TEST(ScoreGraph, AReferenceToNothingIsAnError) {
  EXPECT_THROW(parse("", node("Add", R"("s", "missing")", "out")), std::runtime_error);
  EXPECT_THROW(parse("", node("Neg", R"("s")", "other")), std::runtime_error);
}

}  // namespace
