// SPDX-License-Identifier: MIT
// Matrix units: the plain form of a tile's product beside the manual's words, and attention through
// tiles beside the textbook. The plain form runs here on every processor; matrix_unit_test.cpp has
// the unit itself.
#undef HEED_COMPILED  // heed::compiled has no tiles
#define HEED_EMULATED_TILES

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <random>
#include <string>
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

// ------------------------------------------------------------------------------ codes of 8 bits

template <class Cache>
using source_of = heed::api::kv_source_reference<Cache>;
using block = heed::kernel::code_block<float>;
static_assert(block::serves<float, source_of<heed::int8_cache>>);
static_assert(block::serves<bfloat16, source_of<heed::paged_int8_cache>>);
static_assert(!block::serves<float, source_of<heed::int4_cache>>);
static_assert(!block::serves<float, source_of<heed::contiguous_cache<float>>>);

struct rows {
  heed::tensor<float, 4> k;
  heed::tensor<float, 4> v;
};
template <class Cache>
rows widened_rows(const Cache& cache) {
  const index n = cache.length(0);
  rows wide{heed::tensor<float, 4>({cache.batch(), cache.kv_heads(), n, cache.head_dim()}),
            heed::tensor<float, 4>({cache.batch(), cache.kv_heads(), n, cache.value_dim()})};
  for (index b = 0; b < cache.batch(); ++b) {
    for (index h = 0; h < cache.kv_heads(); ++h) {
      cache.widen_keys(b, h, {0, n}, &wide.k(b, h, 0, 0));
      cache.widen_values(b, h, {0, n}, &wide.v(b, h, 0, 0));
    }
  }
  return wide;
}

rows random_rows(index batch, index kv_heads, index keys, index head_dim, index value_dim) {
  return {oracle::random_tensor<float, 4>({batch, kv_heads, keys, head_dim}, 5),
          oracle::random_tensor<float, 4>({batch, kv_heads, keys, value_dim}, 6)};
}
heed::int8_cache codes_of(const rows& r) {
  heed::int8_cache cache({.batch = r.k.extent(0),
                          .kv_heads = r.k.extent(1),
                          .capacity = r.k.extent(2),
                          .head_dim = r.k.extent(3),
                          .value_dim = r.v.extent(3)});
  cache.append(r.k, r.v);
  return cache;
}
heed::contiguous_cache<float> floats_of(const rows& r) {
  heed::contiguous_cache<float> cache({.batch = r.k.extent(0),
                                       .kv_heads = r.k.extent(1),
                                       .capacity = r.k.extent(2),
                                       .head_dim = r.k.extent(3),
                                       .value_dim = r.v.extent(3)});
  cache.append(r.k, r.v);
  return cache;
}

/// The largest sum of |x| over the channels of a row.
template <class Tensor>
double largest_row_sum(const Tensor& t) {
  const index n = t.extent(t.rank - 1);
  double most = 0;
  for (index i = 0; i < t.size(); i += n) {
    double sum = 0;
    for (index c = 0; c < n; ++c) sum += std::abs(static_cast<double>(t.data()[i + c]));
    most = std::max(most, std::isfinite(sum) ? sum : 0);
  }
  return most;
}

/// Prefill over codes beside the textbook in double on the widened rows, to what
/// kernel/tiled/kv_block_int8.hpp says it errs by: "" or the difference.
template <class Q, class Cache, class... M>
std::string check_codes(const Q& q, const Cache& cache, const heed::attention_options& options,
                        const M&... modifiers) {
  const rows wide = widened_rows(cache);
  heed::attention_options whole = options;
  whole.offset = cache.length(0) - q.extent(2);
  const auto e = oracle::expected(q, wide.k, wide.v, whole, modifiers...);
  heed::tensor<float, 4> out(e.output.extents());
  heed::tensor<float, 3> lse(e.log_sum_exp.extents());
  heed::decode_into(heed::into(out, lse), q, cache, options, modifiers...);

  const double scale = options.scale.value_or(1 / std::sqrt(static_cast<double>(q.extent(3))));
  const double units = oracle::largest(q) / 65278 * largest_row_sum(wide.k);
  // 255 scale is a row's range, at most twice its largest number; scale zero at most that.
  const double roundings = std::ldexp(largest_row_sum(q) * 3 * oracle::largest(wide.k), -21);
  const double score = std::abs(scale) * (units + roundings);
  const oracle::tolerance<float> near(e.sizes);
  const double value = oracle::largest(wide.v);
  for (index i = 0; i < out.size(); ++i) {
    const double want = e.output.data()[i];
    const double within = near.output(want) + (std::expm1(2 * score) + std::ldexp(1.0, -8)) * value;
    if (!oracle::agrees(double{out.data()[i]}, want, within)) {
      return "out " + std::to_string(i) + ": " + std::to_string(out.data()[i]) + ", not " +
             std::to_string(want) + " within " + std::to_string(within);
    }
  }
  for (index i = 0; i < lse.size(); ++i) {
    const double want = e.log_sum_exp.data()[i];
    const double within = near.log_sum_exp(want) + score;
    if (!oracle::agrees(double{lse.data()[i]}, want, within)) {
      return "lse " + std::to_string(i) + ": " + std::to_string(lse.data()[i]) + ", not " +
             std::to_string(want) + " within " + std::to_string(within);
    }
  }
  return "";
}

// Whole tiles and one more or less in every direction. Where whole tiles find no room (1, 16 and 31
// channels, 1 of values) and only there, the result has the bits of the widened rows.
TEST(MatrixTiles, CodesAreAttendedToAsTheirRows) {
  const auto each = [](index queries, index keys, index head_dim, index value_dim, bool tiles) {
    const rows r = random_rows(1, 1, keys, head_dim, value_dim);
    const heed::int8_cache cache = codes_of(r);
    const auto q = oracle::random_tensor<float, 4>({1, 2, queries, head_dim}, 7);
    EXPECT_EQ(check_codes(q, cache, {}), "") << keys << ' ' << head_dim << ' ' << value_dim;
    EXPECT_NE(
        oracle::same_bits(heed::decode(q, cache), heed::decode(q, floats_of(widened_rows(cache)))),
        tiles)
        << keys << ' ' << head_dim << ' ' << value_dim;
  };
  for (const index keys : {9, 15, 16, 17, 31, 33, 127, 128, 129, 300}) {
    each(std::min<index>(keys, 100), keys, 64, 64, true);
  }
  for (const index queries : {9, 23, 24, 25, 47, 48, 49, 200}) each(queries, 260, 64, 33, true);
  for (const index head_dim : {32, 33, 64, 65, 128, 192}) each(30, 150, head_dim, 48, true);
  for (const index value_dim : {8, 15, 16, 17, 31, 128}) each(30, 150, 128, value_dim, true);
  for (const index head_dim : {1, 16, 31}) each(30, 150, head_dim, 48, false);
  each(30, 150, 64, 1, false);
}

TEST(MatrixTiles, CodesBehindMasksAndModifiers) {
  const heed::int8_cache cache = codes_of(random_rows(2, 2, 333, 64, 40));
  const auto q = oracle::random_tensor<float, 4>({2, 6, 111, 64}, 7);
  EXPECT_EQ(check_codes(q, cache, {.scale = -0.2}, heed::causal()), "");
  EXPECT_EQ(check_codes(
                q, cache, {}, heed::window{.left = 40, .right = 3}, heed::softcap(5),
                [](auto s, heed::position p) {
                  using S = decltype(s);
                  return s - S(0.01) * static_cast<S>(static_cast<int>(p.query - p.key));
                },
                [](heed::position p) { return (p.key + p.row + p.head) % 5 != 0; }),
            "");
}

// Codes in pages have the bits of those in one piece; groups of channels take the other way.
TEST(MatrixTiles, CodesInPages) {
  const rows r = random_rows(2, 2, 203, 64, 40);
  const heed::int8_cache whole = codes_of(r);
  const auto q = oracle::random_tensor<float, 4>({2, 4, 90, 64}, 7);
  const auto want = heed::decode(q, whole, {}, heed::causal());
  const auto pages = [&](index page_size, std::optional<index> group) {
    heed::paged_int8_cache cache({.sequences = 2,
                                  .kv_heads = 2,
                                  .pages = 128,
                                  .page_size = page_size,
                                  .head_dim = 64,
                                  .value_dim = 40,
                                  .group = group});
    cache.append(r.k, r.v);
    return cache;
  };
  for (const index page_size : {7, 16, 256}) {
    EXPECT_TRUE(oracle::same_bits(
        heed::decode(q, pages(page_size, std::nullopt), {}, heed::causal()), want))
        << page_size;
  }
  const auto grouped = pages(16, 32);
  EXPECT_TRUE(
      oracle::same_bits(heed::decode(q, grouped, {}, heed::causal()),
                        heed::decode(q, floats_of(widened_rows(grouped)), {}, heed::causal())));
}

// A query that no fixed point holds is what it is with widened keys, its neighbours as ever.
TEST(MatrixTiles, CodesMeetQueriesOfAnySize) {
  const heed::int8_cache cache = codes_of(random_rows(1, 1, 150, 64, 40));
  auto q = oracle::random_tensor<float, 4>({1, 1, 60, 64}, 7);
  const auto clean = heed::decode(q, cache, {}, heed::causal());
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const auto set = [&](index i, float x) {
    for (index c = 0; c < 64; ++c) q(0, 0, i, c) = x;
  };
  q(0, 0, 3, 7) = std::numeric_limits<float>::quiet_NaN();
  q(0, 0, 20, 63) = infinity;
  q(0, 0, 21, 0) = -infinity;
  set(22, infinity);
  set(30, std::numeric_limits<float>::denorm_min());
  set(31, 0);
  for (index c = 0; c < 64; ++c) q(0, 0, 33, c) *= 0x1p-118F;
  for (index c = 0; c < 64; ++c) q(0, 0, 59, c) *= 1e4F;
  const auto got = heed::decode(q, cache, {}, heed::causal());
  const auto want = heed::decode(q, floats_of(widened_rows(cache)), {}, heed::causal());
  for (index i = 0; i < 60; ++i) {
    const bool same = i != 3 && (i < 20 || i > 22) && i != 30 && i != 31 && i != 33 && i != 59;
    for (index c = 0; c < 40; ++c) {
      const double x = double{got(0, 0, i, c)};
      if (same) {
        EXPECT_EQ(x, double{clean(0, 0, i, c)}) << i;
      } else {
        EXPECT_TRUE(oracle::agrees(x, double{want(0, 0, i, c)}, 0.03)) << i << ' ' << x;
      }
    }
  }
}

// Queries so small that their units have no digits, of keys so large that their products matter.
TEST(MatrixTiles, CodesMeetQueriesWithoutUnits) {
  rows r = random_rows(1, 1, 150, 64, 40);
  auto q = oracle::random_tensor<float, 4>({1, 1, 60, 64}, 7);
  for (index i = 0; i < r.k.size(); ++i) r.k.data()[i] *= 0x1p111F;
  for (index i = 0; i < q.size(); ++i) q.data()[i] *= 0x1p-111F;
  EXPECT_EQ(check_codes(q, codes_of(r), {}, heed::causal()), "");
}

// A NaN that is hidden, of keys or of values, is never seen; one that is not propagates. Values near
// the largest number have a mean, though sums of weights times their scales have none.
TEST(MatrixTiles, CodesOfRowsOfAnySize) {
  rows r = random_rows(1, 1, 150, 64, 40);
  const auto q = oracle::random_tensor<float, 4>({1, 1, 60, 64}, 7);
  for (index j = 130; j < 150; ++j) {
    r.k(0, 0, j, 3) = std::numeric_limits<float>::quiet_NaN();
    r.v(0, 0, j, 5) = std::numeric_limits<float>::quiet_NaN();
  }
  for (index c = 0; c < 40; ++c) r.v(0, 0, 7, c) = 0.5F;  // a constant row
  EXPECT_EQ(check_codes(q, codes_of(r), {}, heed::causal()), "");
  for (index i = 0; i < r.v.size(); ++i) r.v.data()[i] *= 5e37F;
  EXPECT_EQ(check_codes(q, codes_of(r), {}, heed::causal()), "");
  for (index i = 0; i < r.v.size(); ++i) r.v.data()[i] *= 1e-38F * 1e-30F;
  EXPECT_EQ(check_codes(q, codes_of(r), {}, heed::causal()), "");
}

TEST(ParallelMatrixTiles, CodesHaveTheSameBitsForAnyNumberOfThreads) {
  const heed::int8_cache cache = codes_of(random_rows(2, 2, 300, 64, 64));
  const auto q = oracle::random_tensor<float, 4>({2, 4, 300, 64}, 7);
  const auto serial = heed::decode(heed::serial_executor{}, q, cache, {}, heed::causal());
  for (const int threads : {2, 3}) {
    heed::thread_pool pool(threads);
    EXPECT_TRUE(oracle::same_bits(heed::decode(pool, q, cache, {}, heed::causal()), serial));
  }
}

}  // namespace
