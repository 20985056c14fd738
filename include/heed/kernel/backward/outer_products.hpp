// SPDX-License-Identifier: MIT
// The third form of product a backward pass needs: sums over the queries of a group.
//
//   out[j][c] += sum_i p[j][i] rows[i][c]        j: keys, i: queries, c: channels in the lanes
//
// p is held as a tile of scores is, queries consecutive, `tile_plan::group` apart; rows and out are
// row by row, a whole number of packets apart. 2 FLOPs a term, in the order of i; the sum begins at
// 0 and is added to out.
#pragma once

#include <cstddef>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/kernel/tiled/microkernel.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// Sums of 24 packets or 12 as in the forward pass, but wide rather than tall: a load of a row serves
/// `keys` keys, a broadcast `packets` packets.
struct outer_plan {
  static constexpr int keys = 6;
  static constexpr int packets = simd::vector_registers == 32 ? 4 : 2;
};

template <class A, int Keys, int Packets>
HEED_INLINE void outer_register_tile(const A* p, const A* rows, index row_stride, index count,
                                     A* out, index out_stride) noexcept {
  using simd::unroll;
  using P = simd::packet<A>;
  constexpr index lanes = tile_plan<A>::lanes;
  constexpr index group = tile_plan<A>::group;
  P sum[std::size_t{Keys}][std::size_t{Packets}];
  unroll<Keys>([&](auto j) HEED_INLINE_LAMBDA {
    unroll<Packets>([&](auto c) HEED_INLINE_LAMBDA { sum[j][c] = simd::zero<A>(); });
  });
  for (index i = 0; i < count; ++i) {
    P row[std::size_t{Packets}];
    unroll<Packets>([&](auto c) HEED_INLINE_LAMBDA {
      row[c] = simd::load_once(rows + i * row_stride + c * lanes);
    });
    unroll<Keys>([&](auto j) HEED_INLINE_LAMBDA {
      const P weight = simd::broadcast(p[j * group + i]);
      unroll<Packets>(
          [&](auto c) HEED_INLINE_LAMBDA { sum[j][c] = simd::fmadd(weight, row[c], sum[j][c]); });
    });
  }
  unroll<Keys>([&](auto j) HEED_INLINE_LAMBDA {
    unroll<Packets>([&](auto c) HEED_INLINE_LAMBDA {
      A* const at = out + j * out_stride + c * lanes;
      simd::store(at, simd::add(simd::load(at), sum[j][c]));
    });
  });
}

/// Any number of keys; `stride` numbers a row of `rows` and of `out`, all of them computed.
template <class A>
HEED_NOINLINE void outer_tile(const A* p, index keys, const A* rows, index count, index stride,
                              A* out) noexcept {
  constexpr index lanes = tile_plan<A>::lanes;
  constexpr index group = tile_plan<A>::group;
  in_steps<outer_plan::packets>(stride / lanes, [&](auto packets, index c) {
    in_steps<outer_plan::keys>(keys, [&](auto step, index j) {
      outer_register_tile<A, decltype(step)::value, decltype(packets)::value>(
          p + j * group, rows + c * lanes, stride, count, out + j * stride + c * lanes, stride);
    });
  });
}

}  // namespace heed::inline HEED_TARGET::kernel
