// SPDX-License-Identifier: MIT
// Operands of a matrix unit's tiles, and their product by any form of the unit: AMX's tiles, and pairs of
// rows as Arm's instruction takes them.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "heed/attention.hpp"  // its kernels use tiles, and the single header has no tile_matrix.hpp

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

/// 16 rows of `numbers` numbers, and as many rows of 12 columns.
struct row_operands {
  heed::index numbers;
  std::vector<float> a = std::vector<float>(static_cast<std::size_t>(16 * numbers));
  std::vector<float> b = std::vector<float>(static_cast<std::size_t>(12 * numbers));
};

/// Numbers of bfloat16, up to 2^spread times as large or as small as 1; with `odd` some that are
/// denormal, zero, infinite or NaN.
inline row_operands random_rows(heed::index numbers, unsigned seed, int spread, bool odd) {
  std::mt19937 engine(seed);
  const auto number = [&] {
    const auto bits = static_cast<std::uint32_t>(engine());
    const int exponent = static_cast<int>((bits >> 8U) % static_cast<unsigned>(2 * spread + 1));
    std::uint32_t x = (bits & 0x807FU) << 16U;
    x |= static_cast<std::uint32_t>(127 - spread + exponent) << 23U;
    if (odd && bits >> 27U == 0) x &= 0x807F0000U;
    if (odd && bits >> 27U == 1) x = (x & 0x80000000U) | ((bits >> 24U & 1U) << 31U);
    if (odd && bits >> 23U == 1U << 6U) x |= 0x7F800000U;
    return std::bit_cast<float>(x);
  };
  row_operands o{numbers};
  for (auto& x : o.a) x = number();
  for (auto& x : o.b) x = number();
  return o;
}

/// a b by a form that takes rows in pairs; packets of `Tiles::columns` columns.
template <class Tiles>
std::vector<float> product(const row_operands& o) {
  const auto at = [](heed::index i) { return static_cast<std::size_t>(i); };
  std::vector<Eigen::bfloat16> a(o.a.size());
  std::vector<Eigen::bfloat16> b(o.b.size());
  const auto rounded = [](float x) {
    const auto bits = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(x) >> 16U);
    return std::bit_cast<Eigen::bfloat16>(bits);
  };
  for (heed::index k = 0; k < o.numbers; ++k) {
    for (heed::index m = 0; m < 16; ++m) {
      a[at(Tiles::a_at(m, k, o.numbers))] = rounded(o.a[at(m * o.numbers + k)]);
    }
    for (heed::index i = 0; i < 12; ++i) {
      b[at(2 * Tiles::word_at(k / 2, i, 12) + k % 2)] = rounded(o.b[at(k * 12 + i)]);
    }
  }
  std::vector<float> words(b.size() / 2);
  std::memcpy(words.data(), b.data(), b.size() * sizeof(Eigen::bfloat16));
  std::vector<float> sums(16 * 12);
  Tiles tiles;
  heed::simd::tile_products<2, static_cast<int>(12 / Tiles::columns)>(
      tiles, a.data(), o.numbers, words.data(), 12, o.numbers / Tiles::depth, sums.data(), 12);
  return sums;
}

/// The same in double, and the sum of the terms' sizes.
struct exact_product {
  std::vector<double> sums = std::vector<double>(16 * 12);
  std::vector<double> sizes = std::vector<double>(16 * 12);

  explicit exact_product(const row_operands& o) {
    const auto n = static_cast<std::size_t>(o.numbers);
    for (std::size_t m = 0; m < 16; ++m) {
      for (std::size_t i = 0; i < 12; ++i) {
        for (std::size_t k = 0; k < n; ++k) {
          const double term = double{o.a[m * n + k]} * double{o.b[k * 12 + i]};
          sums[m * 12 + i] += term;
          sizes[m * 12 + i] += std::abs(term);
        }
      }
    }
  }
};

}  // namespace oracle
