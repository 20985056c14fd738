// SPDX-License-Identifier: MIT
// Matrix units: the plain form of a tile's product beside the manual's words, and attention through
// tiles beside the textbook. The plain form runs here on every processor; matrix_unit_test.cpp has
// the unit itself.
#undef HEED_COMPILED  // heed::compiled has no tiles
#define HEED_EMULATED_TILES

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/parallel.hpp"
#include "heed/simd/tile_matrix.hpp"
#include "support/attention_oracle.hpp"
#include "support/tile_operands.hpp"

namespace {

using heed::bfloat16;
using heed::index;
using columns16 = heed::simd::emulated_tiles<16>;
using oracle::operands;
using oracle::pair;
using oracle::product;
using oracle::random_operands;

TEST(MatrixTiles, ThePlainFormIsTheManualsWords) {
  const operands o = random_operands(1, 3);
  const std::vector<float> got = product<columns16>(o.a, o.b, o.c);
  for (std::size_t m = 0; m < 16; ++m) {
    for (std::size_t n = 0; n < 16; ++n) {
      float even = 0;
      float odd = 0;
      double exact = double{o.c[m * 16 + n]};
      double size = std::abs(exact);
      for (std::size_t k = 0; k < 16; ++k) {
        const auto low = [](std::uint32_t x) { return std::bit_cast<float>(x << 16U); };
        const auto high = [](std::uint32_t x) { return std::bit_cast<float>(x & 0xFFFF0000U); };
        const std::uint32_t x = o.a[m * 16 + k];
        const std::uint32_t y = o.b[k * 16 + n];
        even = std::fma(low(x), low(y), even);
        odd = std::fma(high(x), high(y), odd);
        exact += double{low(x)} * double{low(y)} + double{high(x)} * double{high(y)};
        size +=
            std::abs(double{low(x)} * double{low(y)}) + std::abs(double{high(x)} * double{high(y)});
      }
      EXPECT_EQ(got[m * 16 + n], o.c[m * 16 + n] + (even + odd));
      // 16 roundings of a sum, and two that join them.
      EXPECT_LE(std::abs(double{got[m * 16 + n]} - exact), 18 * std::ldexp(size, -24));
    }
  }
}

TEST(MatrixTiles, DenormalNumbersCountAsZero) {
  operands o;
  const float least = (std::numeric_limits<float>::min)();
  o.a[0] = pair(least / 2, 1);  // a denormal times a large number
  o.b[0] = pair(std::ldexp(1.0F, 100), least / 4);
  o.c[0] = least / 2;                         // and a denormal sum before
  o.a[16] = pair(std::ldexp(1.0F, -100), 0);  // row 1: a product that would be denormal
  o.b[1] = pair(std::ldexp(1.0F, -30), 0);
  o.a[32] = pair(std::numeric_limits<float>::infinity(), 1);
  const std::vector<float> got = product<columns16>(o.a, o.b, o.c);
  EXPECT_EQ(got[0], 0.0F);
  EXPECT_EQ(got[17], 0.0F);
  EXPECT_EQ(got[32], std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(got[34])) << "infinity times the zero of column 2";
}

/// The product of bytes beside loops over bytes as they lie in memory, in 64 bits.
template <index Columns>
void bytes_as_loops() {
  constexpr auto columns = static_cast<std::size_t>(Columns);
  for (unsigned seed = 0; seed < 6; ++seed) {
    const oracle::byte_operands o = oracle::random_bytes(seed, columns);
    const auto got = oracle::byte_product<heed::simd::emulated_tiles<Columns>>(o.a, o.b, o.c);
    const auto* const a = reinterpret_cast<const unsigned char*>(o.a.data());
    const auto* const b = reinterpret_cast<const signed char*>(o.b.data());
    for (std::size_t m = 0; m < 16; ++m) {
      for (std::size_t n = 0; n < columns; ++n) {
        std::int64_t sum = o.c[m * columns + n];
        for (std::size_t k = 0; k < 64; ++k) {
          sum += std::int64_t{a[m * 64 + k]} * b[k / 4 * columns * 4 + n * 4 + k % 4];
        }
        ASSERT_EQ(got[m * columns + n], static_cast<std::uint32_t>(sum)) << seed << ' ' << m;
      }
    }
  }
}

TEST(MatrixTiles, BytesAreMultipliedAsLoopsDo) {
  bytes_as_loops<1>();
  bytes_as_loops<2>();
  bytes_as_loops<4>();
  bytes_as_loops<8>();
  bytes_as_loops<11>();
  bytes_as_loops<16>();
}

using paired = heed::simd::emulated_bf16_rows<4>;

// Sums of whole numbers of 2^-39, rounded by their bits.
TEST(MatrixRows, SumsAreRoundedToOdd) {
  using heed::simd::detail::add_to_odd;
  const float ulp = std::numeric_limits<float>::epsilon();
  const float most = (std::numeric_limits<float>::max)();
  const float least = (std::numeric_limits<float>::min)();
  EXPECT_EQ(add_to_odd(1, std::ldexp(ulp, -60)), 1 + ulp);
  EXPECT_EQ(add_to_odd(1, -std::ldexp(ulp, -60)), 1 - ulp / 2);
  EXPECT_EQ(add_to_odd(1 + ulp, ulp / 2), 1 + ulp);
  EXPECT_EQ(add_to_odd(most, 1), most);
  EXPECT_EQ(add_to_odd(most, most), std::numeric_limits<float>::infinity());
  EXPECT_EQ(add_to_odd(least, -std::nextafter(least, 1.0F)), 0.0F);
  EXPECT_FALSE(std::signbit(add_to_odd(1, -1)));
  std::mt19937 engine(5);
  for (int i = 0; i < 20000; ++i) {
    const auto number = [&] {
      const auto bits = static_cast<std::uint32_t>(engine());
      return std::bit_cast<float>((bits & 0x807FFFFFU) | ((112 + bits / 8 % 30) << 23U));
    };
    const float a = number();
    const float b = number();
    const auto whole = [](float x) { return static_cast<std::int64_t>(std::ldexp(double{x}, 39)); };
    const std::int64_t sum = whole(a) + whole(b);
    std::int64_t kept = std::abs(sum);
    int shift = 0;
    bool inexact = false;
    for (; kept >= 1 << 24; kept /= 2, ++shift) inexact = inexact || kept % 2 != 0;
    if (inexact) kept |= 1;
    const float want = std::ldexp(static_cast<float>(sum < 0 ? -kept : kept), shift - 39);
    ASSERT_EQ(add_to_odd(a, b), want) << a << " + " << b;
  }
}

// Two roundings of less than a unit for each pair of terms.
TEST(MatrixRows, ThePlainFormIsWithinItsBound) {
  for (const index numbers : {8, 64, 128}) {
    const oracle::row_operands o = oracle::random_rows(numbers, 7, 3, false);
    const std::vector<float> got = product<paired>(o);
    const oracle::exact_product want(o);
    for (std::size_t i = 0; i < got.size(); ++i) {
      const double bound = static_cast<double>(numbers) * std::ldexp(want.sizes[i], -23);
      EXPECT_LE(std::abs(double{got[i]} - want.sums[i]), bound) << numbers << ' ' << i;
    }
  }
}

struct arguments {
  heed::tensor<bfloat16, 4> q;
  heed::tensor<bfloat16, 4> k;
  heed::tensor<bfloat16, 4> v;
};
arguments random_arguments(index kv_heads, index group, index queries, index keys, index head_dim,
                           index value_dim) {
  return {oracle::random_tensor<bfloat16, 4>({1, kv_heads * group, queries, head_dim}, 1),
          oracle::random_tensor<bfloat16, 4>({1, kv_heads, keys, head_dim}, 2),
          oracle::random_tensor<bfloat16, 4>({1, kv_heads, keys, value_dim}, 3)};
}

static_assert(heed::kernel::matrix_block<float>::serves<
                  bfloat16, heed::api::tensor_source<bfloat16, bfloat16>>,
              "this file must go through tiles");

// Whole tiles and one more or less in every direction: queries, keys, channels of either side; 8 and
// 5 channels find no room for whole tiles and take the other way.
TEST(MatrixTiles, AttentionIsTheTextbooks) {
  for (const index keys : {1, 15, 16, 17, 31, 33, 127, 128, 129, 300}) {
    const auto in = random_arguments(1, 2, 100, keys, 64, 64);
    EXPECT_EQ(oracle::check(in.q, in.k, in.v, {}), "") << keys << " keys";
  }
  for (const index head_dim : {5, 8, 16, 17, 31, 32, 33, 40, 80, 128}) {
    const auto in = random_arguments(1, 1, 70, 150, head_dim, 48);
    EXPECT_EQ(oracle::check(in.q, in.k, in.v, {.scale = 0.3}), "") << head_dim << " channels";
  }
  for (const index value_dim : {1, 8, 15, 16, 17, 32, 33, 80}) {
    const auto in = random_arguments(1, 1, 70, 150, 32, value_dim);
    EXPECT_EQ(oracle::check(in.q, in.k, in.v, {}), "") << value_dim << " channels of values";
  }
  for (const index queries : {9, 47, 48, 49, 200, 401}) {
    const auto in = random_arguments(1, 1, queries, 130, 64, 64);
    EXPECT_EQ(oracle::check(in.q, in.k, in.v, {}), "") << queries << " queries";
  }
}

TEST(MatrixTiles, MasksAndModifiers) {
  const auto in = random_arguments(2, 2, 200, 333, 64, 40);
  const std::vector<index> lengths = {217};
  EXPECT_EQ(oracle::check(in.q, in.k, in.v, {}, heed::causal()), "");
  EXPECT_EQ(oracle::check(in.q, in.k, in.v, {}, heed::window{.left = 40, .right = 3}), "");
  EXPECT_EQ(oracle::check(in.q, in.k, in.v, {}, heed::lengths(lengths)), "");
  EXPECT_EQ(oracle::check(in.q, in.k, in.v, {}, heed::softcap(5), heed::causal()), "");
  EXPECT_EQ(oracle::check(in.q, in.k, in.v, {},
                          [](auto s, heed::position p) {
                            using S = decltype(s);
                            return s - S(0.01) * static_cast<S>(static_cast<int>(p.query - p.key));
                          }),
            "");
}

// What a hidden pair holds is never seen, and tiles that begin elsewhere sum alike.
TEST(MatrixTiles, HiddenKeysChangeNoBits) {
  auto in = random_arguments(1, 1, 120, 200, 48, 64);
  const auto hidden = [](heed::position p) { return p.key >= 40 && p.key < 180; };
  const auto clean = heed::attention(in.q, in.k, in.v, {}, hidden);
  for (index j = 0; j < 40; ++j) {
    in.k(0, 0, j, 3) = std::numeric_limits<bfloat16>::quiet_NaN();
    in.v(0, 0, j, 5) = std::numeric_limits<bfloat16>::infinity();
  }
  const auto poisoned = heed::attention(in.q, in.k, in.v, {}, hidden);
  // Weights meet values unrounded where some values are not finite.
  const auto e = oracle::expected(in.q, in.k, in.v, {}, hidden);
  EXPECT_EQ(oracle::difference<bfloat16>(poisoned, oracle::widened(clean), e.sizes), "");
}

TEST(ParallelMatrixTiles, AnyNumberOfThreadsHasTheSameBits) {
  const auto in = random_arguments(2, 3, 500, 400, 64, 64);
  const auto serial =
      heed::attention(heed::serial_executor{}, in.q, in.k, in.v, {}, heed::causal());
  for (const int threads : {2, 3}) {
    heed::thread_pool pool(threads);
    EXPECT_TRUE(
        oracle::same_bits(heed::attention(pool, in.q, in.k, in.v, {}, heed::causal()), serial));
  }
}

}  // namespace
