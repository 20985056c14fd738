// SPDX-License-Identifier: MIT
// Operands of a matrix unit's tiles, and their product by any form of the unit.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

namespace oracle {

/// A word of two numbers, rounded towards zero to bfloat16.
inline std::uint32_t pair(float even, float odd) {
  const auto bits = [](float x) { return std::bit_cast<std::uint32_t>(x) >> 16U; };
  return bits(even) | (bits(odd) << 16U);
}

/// c + a b of whole tiles of words.
template <class Tiles>
std::vector<float> product(const std::vector<std::uint32_t>& a, const std::vector<std::uint32_t>& b,
                           std::vector<float> c) {
  Tiles tiles;
  // The sums' tile is loaded as any other: its words are floats.
  tiles.template load<0>(c.data(), 64);
  tiles.template load<6>(a.data(), 64);
  tiles.template load<7>(b.data(), 64);
  tiles.template multiply<0, 6, 7>();
  tiles.template store<0>(c.data(), 64);
  return c;
}

struct operands {
  std::vector<std::uint32_t> a = std::vector<std::uint32_t>(256);
  std::vector<std::uint32_t> b = std::vector<std::uint32_t>(256);
  std::vector<float> c = std::vector<float>(256);
};

inline operands random_operands(unsigned seed, int spread) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> exponent(-spread, spread);
  const auto number = [&] { return std::ldexp(normal(engine), exponent(engine)); };
  operands o;
  for (auto& x : o.a) x = pair(number(), number());
  for (auto& x : o.b) x = pair(number(), number());
  for (auto& x : o.c) x = number();
  return o;
}

}  // namespace oracle
