// SPDX-License-Identifier: MIT
// Matrix units: products of small tiles of bfloat16, summed in float, or of bytes, summed as
// integers, and the same in plain C++.
//
//   tile_matrix tiles;                  configures the thread's unit; the destructor puts back what
//                                       configuration it had
//   tiles.zero<C>()                     C = 0
//   tiles.load<A>(from, stride)         tile A: up to 16 rows of 64 bytes, `stride` bytes apart
//   tiles.multiply<C, A, B>()           C_mn += sum_k A_m,2k B_k,2n + A_m,2k+1 B_k,2n+1
//   tiles.multiply_bytes<C, A, B>()     C_mn += sum_k sum_b A_m,4k+b B_k,4n+b,   b = 0 .. 3
//   tiles.store<C>(to, stride)          the sums of C, rows `stride` bytes apart
//
// A holds 16 rows of 32 numbers or of 64 unsigned bytes; B 16 rows, each of `columns` words of two
// numbers or of four signed bytes, so that a word is the terms of a sum; C 16 rows of `columns`
// floats or 32-bit integers. There are eight tiles, numbered by the caller.
//
// Semantics, of the unit (Intel 64 and IA-32 Architectures Software Developer's Manual, TDPBF16PS,
// TDPBUSD) and of the plain form, bit for bit. Of numbers: the even terms and the odd terms are two
// sums from 0 by fused multiply-adds in order of k; their sum joins C. Rounding to nearest even;
// denormal numbers count as zero, and results that would be denormal become zero. Of bytes: sums are
// exact modulo 2^32. Nothing saturates, and up to 65,793 products of codes 0 .. 255 and -128 .. 127
// stay within 32 bits.
//
// Which of the two: HEED_EMULATED_TILES compiles the plain one, for tests on any processor.
// HEED_TILES compiles the unit's where the target has it (AMX-BF16; for bytes AMX-INT8). It has not
// yet been run on such a processor, so that neither is compiled unless one of the two is defined.
// Arm's matrix instructions (tile_matrix_arm.hpp) sum otherwise; `bf16_matrix` is theirs where the
// target has them.
//
// Callers that multiply bfloat16 by either of the two use
//
//   tile_products<Rows, Packets>(tiles, a, row, b, group, steps, to, to_stride)
//
// and what lays operands out, `row_operands` or Arm's `paired_rows`.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/simd/packet.hpp"
#include "heed/simd/tile_matrix_arm.hpp"

#if defined(HEED_TILES) && !defined(HEED_EMULATED_TILES) && defined(__AMX_BF16__) && \
    defined(EIGEN_VECTORIZE_AVX512) && defined(__linux__)
#define HEED_HAS_TILE_UNIT 1
#include <sys/syscall.h>
#include <unistd.h>
#else
#define HEED_HAS_TILE_UNIT 0
#endif

namespace heed::inline HEED_TARGET::simd {

/// Rows of a tile, numbers of bfloat16 in a row of A, and bytes.
inline constexpr index tile_rows = 16;
inline constexpr index tile_depth = 32;
inline constexpr index tile_bytes = 64;

/// Operands of tiles of 16 rows: A's rows as they lie, any number of bytes apart; B's words in order of
/// pairs, then of columns.
struct row_operands {
  static constexpr index rows = tile_rows;
  static constexpr index depth = tile_depth;
  /// Whether A may be rows that were never packed.
  static constexpr bool reads_rows = true;

  /// Where number c of row r is in A, whose rows are of `length` numbers.
  [[nodiscard]] static constexpr index a_at(index r, index c, index length) noexcept {
    return r * length + c;
  }
  /// Where the word of the pair'th two numbers of column i is in B, of `group` columns.
  [[nodiscard]] static constexpr index word_at(index pair, index i, index group) noexcept {
    return pair * group + i;
  }

  /// A of `count` rows of `size` numbers: whole tiles of rows of `length` numbers, zeros behind.
  static void pack_rows(const Eigen::bfloat16* from, index stride, index count, index size,
                        index length, Eigen::bfloat16* to) noexcept {
    for (index r = 0; r < round_up(count, rows); ++r) {
      for (index c = 0; c < length; ++c) {
        to[a_at(r, c, length)] = r < count && c < size ? from[r * stride + c] : Eigen::bfloat16{};
      }
    }
  }
  /// A whose rows are the columns of `count` rows of `size` numbers: whole tiles of rows of `length`
  /// numbers, zeros behind the count'th at least up to whole tiles.
  static void pack_columns(const Eigen::bfloat16* from, index stride, index count, index size,
                           index length, Eigen::bfloat16* to) noexcept {
    for (index c = 0; c < round_up(size, rows); ++c) {
      for (index r = 0; r < length; ++r) {
        to[a_at(c, r, length)] = r < count && c < size ? from[r * stride + c] : Eigen::bfloat16{};
      }
    }
  }
  /// B of `count` rows of `group` floats, rounded to bfloat16, in their place; the rows of a pair are
  /// two of them, zeros behind the last up to whole tiles. Columns from `columns` on are left.
  template <index columns, index group>
  static void round_rows(float* p, index count) noexcept {
    for (index r = 0; r < round_up(count, depth); r += 2) {
      for (index i = 0; i < columns; ++i) {
        const float even = r < count ? p[r * group + i] : 0.0F;
        const float odd = r + 1 < count ? p[(r + 1) * group + i] : 0.0F;
        const Eigen::bfloat16 pair[2] = {Eigen::bfloat16(even), Eigen::bfloat16(odd)};
        std::memcpy(p + word_at(r / 2, i, group), pair, sizeof pair);
      }
    }
  }
};

/// The unit in plain C++, of any number of columns up to 16.
template <index Columns>
class emulated_tiles : public row_operands {
 public:
  static_assert(Columns >= 1 && Columns <= 16);
  static constexpr index columns = Columns;

  template <int C>
  void zero() noexcept {
    std::memset(tile_[C], 0, sizeof tile_[C]);
  }
  /// A tile of B has rows of 4 `columns` bytes; one of A reads 64.
  template <int T>
  void load(const void* from, index stride, index row_bytes = 64) noexcept {
    for (index r = 0; r < tile_rows; ++r) {
      std::memcpy(tile_[T][r], static_cast<const char*>(from) + r * stride,
                  static_cast<std::size_t>(row_bytes));
    }
  }
  template <int C, int A, int B>
  void multiply() noexcept {
    for (index m = 0; m < tile_rows; ++m) {
      for (index n = 0; n < columns; ++n) {
        float even = 0;
        float odd = 0;
        for (index k = 0; k < tile_depth / 2; ++k) {
          const std::uint32_t a = tile_[A][m][k];
          const std::uint32_t b = tile_[B][k][n];
          even = detail::flushed(std::fma(detail::lower_of(a), detail::lower_of(b), even));
          odd = detail::flushed(std::fma(detail::upper_of(a), detail::upper_of(b), odd));
        }
        const float before = detail::flushed(std::bit_cast<float>(tile_[C][m][n]));
        tile_[C][m][n] =
            std::bit_cast<std::uint32_t>(detail::flushed(before + detail::flushed(even + odd)));
      }
    }
  }
  template <int C, int A, int B>
  void multiply_bytes() noexcept {
    for (index m = 0; m < tile_rows; ++m) {
      for (index n = 0; n < columns; ++n) {
        for (index k = 0; k < tile_bytes / 4; ++k) {
          for (unsigned b = 0; b < 4; ++b) {
            const auto code = static_cast<std::uint8_t>(tile_[A][m][k] >> (8 * b));
            const auto number = static_cast<std::int8_t>(tile_[B][k][n] >> (8 * b));
            tile_[C][m][n] += static_cast<std::uint32_t>(code * number);
          }
        }
      }
    }
  }
  template <int C>
  void store(void* to, index stride) const noexcept {
    for (index r = 0; r < tile_rows; ++r) {
      std::memcpy(static_cast<char*>(to) + r * stride, tile_[C][r],
                  static_cast<std::size_t>(columns) * sizeof(tile_[C][r][0]));
    }
  }

 private:
  std::uint32_t tile_[8][16][16] = {};
};

#if HEED_HAS_TILE_UNIT

/// Whether the processor offers tiles of bfloat16 and the operating system grants this process their
/// registers: asked once a process. A virtual machine may name the unit and offer no palette.
[[nodiscard]] inline bool tile_unit_granted() noexcept {
  static const bool granted = [] {
    unsigned a = 0x1D;
    unsigned b = 0;
    unsigned c = 0;
    unsigned d = 0;
    asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    if (a == 0) return false;
    constexpr long request_state = 0x1023;  // ARCH_REQ_XCOMP_PERM
    constexpr long tile_data = 18;          // XFEATURE_XTILEDATA
    return ::syscall(SYS_arch_prctl, request_state, tile_data) == 0;
  }();
  return granted;
}

/// What a thread's unit is told: eight tiles of 16 rows of 64 bytes.
struct alignas(64) tile_configuration {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
inline constexpr tile_configuration whole_tiles{};

/// The unit. By the convention of the platform the contents of tiles are the caller's to save across
/// a call; their configuration is put back. In assembly, for the compilers' own functions take the
/// number of a tile from its spelling, and say less of what memory they read.
class tile_unit : public row_operands {
 public:
  static constexpr index columns = 16;

  tile_unit() noexcept {
    asm volatile("sttilecfg %0" : "=m"(before_));
    asm volatile("ldtilecfg %0" : : "m"(whole_tiles));
  }
  tile_unit(const tile_unit&) = delete;
  tile_unit& operator=(const tile_unit&) = delete;
  ~tile_unit() {
    if (before_.palette != 0) {
      asm volatile("ldtilecfg %0" : : "m"(before_));
    } else {
      asm volatile("tilerelease");
    }
  }

  template <int C>
  HEED_INLINE void zero() noexcept {
    asm volatile("tilezero %%tmm%c0" : : "i"(C));
  }
  template <int T>
  HEED_INLINE void load(const void* from, index stride, index = 64) noexcept {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(T) : "memory");
  }
  template <int C, int A, int B>
  HEED_INLINE void multiply() noexcept {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
  }
#if defined(__AMX_INT8__)
  template <int C, int A, int B>
  HEED_INLINE void multiply_bytes() noexcept {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
  }
#endif
  template <int C>
  HEED_INLINE void store(void* to, index stride) const noexcept {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(C) : "memory");
  }

 private:
  tile_configuration before_;
};

using tile_matrix = tile_unit;
inline constexpr bool has_tile_matrix = true;

#else

[[nodiscard]] constexpr bool tile_unit_granted() noexcept { return true; }

using tile_matrix = emulated_tiles<(lanes<float> < 16 ? lanes<float> : 16)>;
#if defined(HEED_EMULATED_TILES)
inline constexpr bool has_tile_matrix = true;
#else
inline constexpr bool has_tile_matrix = false;
#endif

#endif

/// Whether bytes are multiplied too.
#if HEED_HAS_TILE_UNIT && !defined(__AMX_INT8__)
inline constexpr bool has_byte_tiles = false;
#else
inline constexpr bool has_byte_tiles = has_tile_matrix;
#endif

/// What multiplies bfloat16.
#if HEED_HAS_BF16_ROWS
using bf16_matrix = bf16_rows;
inline constexpr bool has_bf16_matrix = true;
#else
using bf16_matrix = tile_matrix;
inline constexpr bool has_bf16_matrix = has_tile_matrix;
#endif

/// Rows x Packets tiles of sums of `steps` products, from 0, written `to_stride` floats a row: A's rows
/// are `row` numbers apart, B's rows of words `group`. Six tiles at most.
template <int Rows, int Packets, class Tiles>
HEED_INLINE void tile_products(Tiles& tiles, const Eigen::bfloat16* a, index row, const float* b,
                               index group, index steps, float* to, index to_stride) noexcept {
  constexpr auto word = static_cast<index>(sizeof(float));
  constexpr auto number = static_cast<index>(sizeof(Eigen::bfloat16));
  unroll<Rows * Packets>([&](auto t) HEED_INLINE_LAMBDA { tiles.template zero<t()>(); });
  for (index k = 0; k < steps; ++k) {
    unroll<Rows>([&](auto r) HEED_INLINE_LAMBDA {
      tiles.template load<6>(a + r() * Tiles::rows * row + k * Tiles::depth, row * number);
      unroll<Packets>([&](auto p) HEED_INLINE_LAMBDA {
        tiles.template load<7>(b + k * Tiles::depth / 2 * group + p() * Tiles::columns,
                               group * word, Tiles::columns * word);
        tiles.template multiply<r() * Packets + p(), 6, 7>();
      });
    });
  }
  unroll<Rows * Packets>([&](auto t) HEED_INLINE_LAMBDA {
    constexpr index r = t() / Packets;
    constexpr index p = t() % Packets;
    tiles.template store<t()>(to + r * Tiles::rows * to_stride + p * Tiles::columns,
                              to_stride * word);
  });
}

}  // namespace heed::inline HEED_TARGET::simd
