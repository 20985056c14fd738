// SPDX-License-Identifier: MIT
// Operands of a matrix unit's tiles, and their product by any form of the unit.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "heed/core/types.hpp"

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

/// c + a b of whole tiles of bytes: words of four, `Tiles::columns` of them in a row of b and of c.
template <class Tiles>
std::vector<std::uint32_t> byte_product(const std::vector<std::uint32_t>& a,
                                        const std::vector<std::uint32_t>& b,
                                        std::vector<std::uint32_t> c) {
  constexpr heed::index row = 4 * Tiles::columns;
  Tiles tiles;
  tiles.template load<5>(c.data(), row, row);
  tiles.template load<1>(a.data(), 64);
  tiles.template load<4>(b.data(), row, row);
  tiles.template multiply_bytes<5, 1, 4>();
  tiles.template store<5>(c.data(), row);
  return c;
}

struct byte_operands {
  std::vector<std::uint32_t> a;
  std::vector<std::uint32_t> b;
  std::vector<std::uint32_t> c;
};

/// Random bytes; every third seed has the extremes alone.
inline byte_operands random_bytes(unsigned seed, std::size_t columns) {
  std::mt19937 engine(seed);
  const auto word = [&] { return static_cast<std::uint32_t>(engine()); };
  const auto extreme = [&](std::uint32_t low, std::uint32_t high) {
    std::uint32_t x = 0;
    for (unsigned i = 0; i < 4; ++i) x |= (engine() % 2 == 0 ? low : high) << (8 * i);
    return x;
  };
  byte_operands o;
  for (std::size_t i = 0; i < 256; ++i) o.a.push_back(seed % 3 == 0 ? extreme(0, 255) : word());
  for (std::size_t i = 0; i < 16 * columns; ++i) {
    o.b.push_back(seed % 3 == 0 ? extreme(128, 127) : word());
    o.c.push_back(word());
  }
  return o;
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
