// SPDX-License-Identifier: MIT
// Arm's matrix instructions: products of pairs of rows of bfloat16, summed in float (BFMMLA of FEAT_BF16),
// and the same in plain C++.
//
//   tile_products<Rows, Packets>(tiles, a, row, b, group, steps, to, to_stride)
//                                to_mi = sum_k A_mk B_ki, of Rows x 8 rows and Packets x `columns`
//                                columns, over 8 `steps` numbers k
//
// One instruction multiplies two rows of four numbers by two columns of four. So A holds pairs of rows, four
// numbers of the one and four of the other by turns, and B pairs of columns alike, in words of two
// numbers: `paired_rows` says where. Sums stay in registers, 4 pairs of rows by 6 of columns, from the
// first step to the last: ten loads for 24 instructions.
//
// Semantics, of the instruction with FPCR.EBF = 0, as it is unless a program sets it (Arm Architecture
// Reference Manual, BFMMLA), and of the plain form, bit for bit: sums join in order of k, two terms at a
// time: c + (a_0 b_0 + a_1 b_1), each product and each of the two sums rounded to odd. Denormal numbers
// count as zero, and results that would be denormal become zero; the rounding mode is not read.
// To odd: an inexact result is of its two neighbours the one whose last bit is 1, so that a sum is off
// by less than one unit in its last place, to either side.
//
// HEED_HAS_BF16_ROWS is 1 where the target has the instruction and Eigen's packets are Neon's. It has been
// run by an emulator of the processor (qemu), not yet on one.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/simd/packet.hpp"

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) && defined(EIGEN_VECTORIZE_NEON) && \
    defined(__aarch64__) && !defined(__ARM_BIG_ENDIAN) && HEED_HAS_EXTENSIONS &&      \
    !defined(HEED_EMULATED_TILES)
#define HEED_HAS_BF16_ROWS 1
#else
#define HEED_HAS_BF16_ROWS 0
#endif

namespace heed::inline HEED_TARGET::simd {

namespace detail {

/// x, or a zero of its sign if it is denormal.
[[nodiscard]] inline float flushed(float x) noexcept {
  return std::fabs(x) < (std::numeric_limits<float>::min)() ? std::copysign(0.0F, x) : x;
}
/// The numbers of a word of two bfloat16.
[[nodiscard]] inline float lower_of(std::uint32_t pair) noexcept {
  return flushed(std::bit_cast<float>(pair << 16U));
}
[[nodiscard]] inline float upper_of(std::uint32_t pair) noexcept {
  return flushed(std::bit_cast<float>(pair & 0xFFFF0000U));
}

/// a + b rounded to odd, too large numbers to infinity.
[[nodiscard]] inline float add_to_odd(float a, float b) noexcept {
  const double x = double{a};
  const double y = double{b};
  const double sum = x + y;
  if (std::isnan(sum)) return std::bit_cast<float>(0x7FC00000U);
  if (std::isinf(sum)) return static_cast<float>(sum);
  const double joined = sum - x;
  const double lost = (x - (sum - joined)) + (y - joined);
  auto bits = std::bit_cast<std::uint64_t>(sum);
  if (lost != 0 && bits % 2 == 0) bits += (lost > 0) == (sum > 0) ? 1U : ~std::uint64_t{0};
  // In double to odd, so that of the 29 bits that a float lacks none says less than the exact sum does.
  const double odd = std::bit_cast<double>(bits);
  if (std::fabs(odd) < double{(std::numeric_limits<float>::min)()}) {
    return std::copysign(0.0F, static_cast<float>(odd));
  }
  if (std::fabs(odd) >= 0x1p128) {
    return std::copysign(std::numeric_limits<float>::infinity(), static_cast<float>(odd));
  }
  constexpr std::uint64_t below = (std::uint64_t{1} << 29U) - 1;
  const auto kept = static_cast<float>(std::bit_cast<double>(bits & ~below));
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(kept) |
                              std::uint32_t{(bits & below) != 0});
}

/// c and the two products of words a and b, as one half of the instruction sums them.
[[nodiscard]] inline float add_pair_to_odd(float c, std::uint32_t a, std::uint32_t b) noexcept {
  const float first = flushed(lower_of(a) * lower_of(b));  // exact but where it is denormal
  const float second = flushed(upper_of(a) * upper_of(b));
  return add_to_odd(flushed(c), add_to_odd(first, second));
}

}  // namespace detail

/// Operands in pairs of rows.
struct paired_rows {
  static constexpr index rows = 8;
  static constexpr index depth = 8;
  static constexpr bool reads_rows = false;

  /// As `row_operands` has them (tile_matrix.hpp); `length` is a multiple of 4, `group` an even number.
  [[nodiscard]] static constexpr index a_at(index r, index c, index length) noexcept {
    return r / 2 * 2 * length + c / 4 * 8 + r % 2 * 4 + c % 4;
  }
  [[nodiscard]] static constexpr index word_at(index pair, index i, index group) noexcept {
    return pair / 2 * 2 * group + i / 2 * 4 + i % 2 * 2 + pair % 2;
  }
};

/// The instruction in plain C++.
template <index Columns>
struct emulated_bf16_rows : paired_rows {
  static constexpr index columns = Columns;
};

template <int Rows, int Packets, index Columns>
void tile_products(emulated_bf16_rows<Columns>&, const Eigen::bfloat16* a, index row,
                   const float* b, index group, index steps, float* to, index to_stride) noexcept {
  using tiles = emulated_bf16_rows<Columns>;
  for (index m = 0; m < Rows * tiles::rows; ++m) {
    for (index i = 0; i < Packets * Columns; ++i) {
      float sum = 0;
      for (index k = 0; k < steps * tiles::depth; k += 2) {
        std::uint32_t words[2];
        std::memcpy(&words[0], a + tiles::a_at(m, k, row), sizeof words[0]);
        std::memcpy(&words[1], b + tiles::word_at(k / 2, i, group), sizeof words[1]);
        sum = detail::add_pair_to_odd(sum, words[0], words[1]);
      }
      to[m * to_stride + i] = sum;
    }
  }
}

#if HEED_HAS_BF16_ROWS

namespace detail {
HEED_INLINE uint16x8_t load_halves(const Eigen::bfloat16* p) noexcept {
  uint16x8_t x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
HEED_INLINE void store_halves(Eigen::bfloat16* p, uint16x8_t x) noexcept {
  std::memcpy(static_cast<void*>(p), &x, sizeof x);
}
}  // namespace detail

/// The instruction. It needs no configuration.
struct bf16_rows : paired_rows {
  static constexpr index columns = 4;

  /// As `row_operands` has them.
  static void pack_rows(const Eigen::bfloat16* from, index stride, index count, index size,
                        index length, Eigen::bfloat16* to) noexcept {
    for (index r = 0; r < round_up(count, rows); r += 2) {
      index c = 0;
      for (; r + 1 < count && c + 8 <= size; c += 8) {
        const Eigen::bfloat16* const at = from + r * stride + c;
        const auto even = vreinterpretq_u64_u16(detail::load_halves(at));
        const auto odd = vreinterpretq_u64_u16(detail::load_halves(at + stride));
        Eigen::bfloat16* const pair = to + a_at(r, c, length);
        detail::store_halves(pair, vreinterpretq_u16_u64(vzip1q_u64(even, odd)));
        detail::store_halves(pair + 8, vreinterpretq_u16_u64(vzip2q_u64(even, odd)));
      }
      pack_rest(to, length, r, r + 2, c, length, [&](index row, index number) noexcept {
        return row < count && number < size ? from[row * stride + number] : Eigen::bfloat16{};
      });
    }
  }
  /// As `row_operands` has them: 4 rows by 8 columns at a time.
  static void pack_columns(const Eigen::bfloat16* from, index stride, index count, index size,
                           index length, Eigen::bfloat16* to) noexcept {
    for (index r = 0; r < round_up(count, depth); r += 4) {
      index c = 0;
      for (; r + 4 <= count && c + 8 <= size; c += 8) {
        const Eigen::bfloat16* const at = from + r * stride + c;
        const auto x0 = detail::load_halves(at);
        const auto x1 = detail::load_halves(at + stride);
        const auto x2 = detail::load_halves(at + 2 * stride);
        const auto x3 = detail::load_halves(at + 3 * stride);
        Eigen::bfloat16* pair = to + a_at(c, r, length);
        const auto put = [&](uint16x8_t even, uint16x8_t odd) HEED_INLINE_LAMBDA {
          detail::store_halves(pair, vzip1q_u16(even, odd));
          detail::store_halves(pair + 2 * length, vzip2q_u16(even, odd));
          pair += 4 * length;
        };
        put(vzip1q_u16(x0, x2), vzip1q_u16(x1, x3));
        put(vzip2q_u16(x0, x2), vzip2q_u16(x1, x3));
      }
      const auto number = [&](index column, index row) noexcept {
        return row < count && column < size ? from[row * stride + column] : Eigen::bfloat16{};
      };
      pack_rest(to, length, c, round_up(size, rows), r, r + 4, number);
    }
  }
  /// As `row_operands` has them: 4 rows at a time, all of their columns before any is written.
  template <index Width, index Group>
  static void round_rows(float* p, index count) noexcept {
    index r = 0;
    for (; r + 4 <= count; r += 4) round_four<Width, Group>(p, r, 4);
    for (; r < round_up(count, depth); r += 4) round_four<Width, Group>(p, r, count - r);
  }

 private:
  /// Rows r .. r + 3, of which `rest` are there.
  template <index Width, index Group>
  HEED_INLINE static void round_four(float* p, index r, index rest) noexcept {
    constexpr int packets = static_cast<int>(Width / columns);
    float32x4_t x[std::size_t{packets}][4];
    unroll<packets>([&](auto i) HEED_INLINE_LAMBDA {
      unroll<4>([&](auto n) HEED_INLINE_LAMBDA {
        x[i][n] = n < rest ? vld1q_f32(p + (r + n) * Group + i * columns) : vdupq_n_f32(0);
      });
    });
    unroll<packets>([&](auto i) HEED_INLINE_LAMBDA {
      const auto rounded = [](float32x4_t a, float32x4_t b) HEED_INLINE_LAMBDA {
        return vreinterpretq_u16_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(a), b));
      };
      const uint16x8_t even = rounded(x[i][0], x[i][2]);
      const uint16x8_t odd = rounded(x[i][1], x[i][3]);
      const auto first = vreinterpretq_f32_u16(vzip1q_u16(even, odd));
      const auto second = vreinterpretq_f32_u16(vzip2q_u16(even, odd));
      float* const to = p + word_at(r / 2, i * columns, Group);
      vst1q_f32(to, vzip1q_f32(first, second));
      vst1q_f32(to + 4, vzip2q_f32(first, second));
    });
  }

  template <class Number>
  static void pack_rest(Eigen::bfloat16* to, index length, index first_row, index end_row,
                        index first, index end, Number&& number) noexcept {
    for (index r = first_row; r < end_row; ++r) {
      for (index c = first; c < end; ++c) to[a_at(r, c, length)] = number(r, c);
    }
  }
};

namespace detail {
/// Pairs x 2 rows by Packets x 4 columns.
template <int Pairs, int Packets>
HEED_INLINE void bf16_register_tile(const Eigen::bfloat16* a, index row, const float* b,
                                    index group, index steps, float* to, index to_stride) noexcept {
  constexpr int columns = 2 * Packets;
  float32x4_t sum[std::size_t{Pairs}][std::size_t{columns}];
  unroll<Pairs * columns>(
      [&](auto n) HEED_INLINE_LAMBDA { sum[n / columns][n % columns] = vdupq_n_f32(0); });
  for (index k = 0; k < 2 * steps; ++k, a += 8, b += 2 * group) {
    bfloat16x8_t column[std::size_t{columns}];
    unroll<columns>([&](auto i) HEED_INLINE_LAMBDA {
      column[i] = vreinterpretq_bf16_f32(vld1q_f32(b + i * 4));
    });
    unroll<Pairs>([&](auto m) HEED_INLINE_LAMBDA {
      const auto pair = vreinterpretq_bf16_u16(load_halves(a + m * 2 * row));
      unroll<columns>([&](auto i) HEED_INLINE_LAMBDA {
        sum[m][i] = vbfmmlaq_f32(sum[m][i], pair, column[i]);
        order_after(a, sum[m][i]);
      });
    });
  }
  unroll<Pairs * Packets>([&](auto n) HEED_INLINE_LAMBDA {
    constexpr int m = n() / Packets;
    constexpr int p = n() % Packets;
    const auto left = vreinterpretq_f64_f32(sum[m][2 * p]);
    const auto right = vreinterpretq_f64_f32(sum[m][2 * p + 1]);
    float* const at = to + 2 * m * to_stride + p * 4;
    vst1q_f32(at, vreinterpretq_f32_f64(vzip1q_f64(left, right)));
    vst1q_f32(at + to_stride, vreinterpretq_f32_f64(vzip2q_f64(left, right)));
  });
}
}  // namespace detail

template <int Rows, int Packets>
HEED_INLINE void tile_products(bf16_rows&, const Eigen::bfloat16* a, index row, const float* b,
                               index group, index steps, float* to, index to_stride) noexcept {
  constexpr int pairs = Packets == 1 ? 4 * Rows : 4;
  for (index m = 0; m < Rows * bf16_rows::rows; m += 2 * pairs) {
    detail::bf16_register_tile<pairs, Packets>(a + m * row, row, b, group, steps,
                                               to + m * to_stride, to_stride);
  }
}

#endif

}  // namespace heed::inline HEED_TARGET::simd
