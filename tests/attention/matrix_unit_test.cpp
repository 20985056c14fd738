// SPDX-License-Identifier: MIT
// The processor's matrix unit or instruction, where the target and the system have one: its products
// have the bits of the plain form. With or without it bfloat16 attention is the textbook's: a
// processor that lacks the unit, or a system that grants none, takes the other way. Each test prints
// which it was.
#undef HEED_COMPILED  // heed::compiled has no tiles
#define HEED_TILES

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <cstdio>

#include "heed/attention.hpp"
#include "heed/simd/tile_matrix.hpp"
#include "support/attention_oracle.hpp"
#include "support/tile_operands.hpp"

namespace {

using heed::bfloat16;
using heed::index;

bool unit_is_here() {
  const bool here = heed::simd::has_bf16_matrix && heed::simd::tile_unit_granted();
  std::printf("matrix unit: %s\n", here                      ? "the processor's"
                                   : HEED_HAS_TILE_UNIT != 0 ? "compiled, not granted"
                                                             : "none for this target");
  return here;
}

TEST(MatrixUnit, ItsProductsHaveTheBitsOfThePlainForm) {
  EXPECT_EQ(heed::simd::has_tile_matrix, HEED_HAS_TILE_UNIT != 0);
  const int seeds = unit_is_here() ? 200 : 1;
  for (int seed = 0; seed < seeds; ++seed) {
    const oracle::operands o = oracle::random_operands(static_cast<unsigned>(seed), seed % 60);
    const auto plain = oracle::product<heed::simd::emulated_tiles<16>>(o.a, o.b, o.c);
#if HEED_HAS_TILE_UNIT
    if (heed::simd::tile_unit_granted()) {
      const auto unit = oracle::product<heed::simd::tile_unit>(o.a, o.b, o.c);
      for (std::size_t i = 0; i < unit.size(); ++i)
        ASSERT_EQ(unit[i], plain[i]) << seed << ' ' << i;
    }
#endif
    // Sums of two operands of 32 numbers differ from what they began with.
    EXPECT_NE(plain, o.c);
  }
}

TEST(MatrixUnit, ItsProductsOfBytesAreThoseOfThePlainForm) {
  const unsigned seeds = unit_is_here() ? 200 : 3;
  for (unsigned seed = 0; seed < seeds; ++seed) {
    const oracle::byte_operands o = oracle::random_bytes(seed, 16);
    const auto plain = oracle::byte_product<heed::simd::emulated_tiles<16>>(o.a, o.b, o.c);
#if HEED_HAS_TILE_UNIT && defined(__AMX_INT8__)
    if (heed::simd::tile_unit_granted()) {
      ASSERT_EQ(oracle::byte_product<heed::simd::tile_unit>(o.a, o.b, o.c), plain) << seed;
    }
#endif
    EXPECT_NE(plain, o.c);
  }
}

#if HEED_HAS_BF16_ROWS
TEST(MatrixUnit, ItsPairsOfRowsHaveTheBitsOfThePlainForm) {
  (void)unit_is_here();
  for (unsigned seed = 0; seed < 200; ++seed) {
    const oracle::row_operands o =
        oracle::random_rows(64, seed, static_cast<int>(seed) % 120, seed % 4 == 3);
    const auto plain = oracle::product<heed::simd::emulated_bf16_rows<4>>(o);
    const auto unit = oracle::product<heed::simd::bf16_rows>(o);
    for (std::size_t i = 0; i < unit.size(); ++i) {
      ASSERT_EQ(std::bit_cast<std::uint32_t>(unit[i]), std::bit_cast<std::uint32_t>(plain[i]))
          << seed << ' ' << i;
    }
  }
}
#endif

TEST(MatrixUnit, AttentionIsTheTextbooksWithOrWithoutIt) {
  (void)unit_is_here();
  for (const index keys : {1, 33, 128, 300}) {
    const auto q = oracle::random_tensor<bfloat16, 4>({1, 2, 100, 40}, 1);
    const auto k = oracle::random_tensor<bfloat16, 4>({1, 1, keys, 40}, 2);
    const auto v = oracle::random_tensor<bfloat16, 4>({1, 1, keys, 33}, 3);
    EXPECT_EQ(oracle::check(q, k, v, {}), "") << keys << " keys";
    EXPECT_EQ(oracle::check(q, k, v, {}, heed::causal()), "") << keys << " keys, causal";
  }
}

}  // namespace
