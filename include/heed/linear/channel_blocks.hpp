// SPDX-License-Identifier: MIT
// Blocks of channels for recurrences whose channels never meet: lanes of packets across channels.
//
// Tiles of tokens come into scratch from any strides and scalar, rows one token each, padded with
// zeros; the outputs are stored the same way.
#pragma once

#include <algorithm>
#include <cstddef>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/kernel/copy_strided.hpp"
#include "heed/parallel/executor.hpp"
#include "heed/simd/exponential.hpp"
#include "heed/simd/packet.hpp"
#include "heed/tensor/view.hpp"

namespace heed::inline HEED_TARGET::detail {

/// Tokens brought in at a time: a tile of a few inputs stays in the first-level cache.
inline constexpr index scan_tile = 64;

/// Consecutive channels of one sequence; `group` of them share what a scan has in groups.
struct channel_block {
  index sequence = 0;  ///< of the state
  index batch = 0;     ///< of the inputs and the output
  index group = 0;
  index first = 0;
  index count = 0;
};

/// What a scan reads after a tile: these channels, from this token on.
struct channel_ahead {
  channel_block block;
  index token = 0;
};

/// How channels of several sequences are cut. Groups are of equal size.
struct channel_plan {
  index sequences = 0;
  index groups = 1;
  index channels = 0;   ///< of all groups
  index width = 1;      ///< most channels of a block
  bool ragged = false;  ///< the sequences of a ragged batch all lie in the first batch entry

  [[nodiscard]] index group_size() const noexcept { return groups == 0 ? 0 : channels / groups; }
  [[nodiscard]] index blocks_per_group() const noexcept { return ceil_div(group_size(), width); }
  [[nodiscard]] index blocks_per_sequence() const noexcept { return groups * blocks_per_group(); }
  [[nodiscard]] index blocks() const noexcept { return sequences * blocks_per_sequence(); }
  [[nodiscard]] channel_block at(index block) const noexcept {
    const index per = blocks_per_group();
    const index group = block / per % groups;
    const index offset = block % per * width;
    const index sequence = block / per / groups;
    return {sequence, ragged ? 0 : sequence, group, group * group_size() + offset,
            (std::min)(width, group_size() - offset)};
  }
};

/// Most channels of a task: a page of memory's row, so that a tile of a few tensors stays in the
/// second-level cache, with what the channels carry from tile to tile.
template <class A>
inline constexpr index task_channels = 4096 / static_cast<index>(sizeof(A));

/// How many channels a task takes: many, but two tasks for each of several workers even out, and
/// one worker has nothing to wait for. A multiple of `unit`.
template <executor E>
[[nodiscard]] index channels_per_task(E& exec, index sequences, index channels, index unit) {
  const index units = ceil_div(channels, unit);
  const auto workers = static_cast<index>(exec.concurrency());
  return unit * std::max<index>(workers <= 1 ? units : sequences * units / (2 * workers), 1);
}

/// Most packets of channels in a block: rows long enough for the hardware to see them as streams.
inline constexpr index scan_packets = 8;

/// Channels of a block of tokens to rows `width` numbers apart, zeros up to a multiple of `unit`.
template <class T, class A>
void load_channels(const view<const T, 3>& x, const channel_block& c, range t, A* to, index width,
                   index unit) noexcept {
  const T* from = x.data() + c.batch * x.stride(0) + t.begin * x.stride(1) + c.first * x.stride(2);
  copy_tile(rectangle<const T>{from, x.stride(1), x.stride(2)}, rectangle<A>{to, width, 1},
            t.size(), c.count);
  const index padded = round_up(c.count, unit);
  if (padded == c.count) return;
  for (index i = 0; i < t.size(); ++i) {
    std::fill(to + i * width + c.count, to + i * width + padded, A(0));
  }
}

/// Rows of scratch to the output, rounded to its scalar.
template <class A, class T>
void store_channels(const A* from, index width, const view<T, 3>& x, const channel_block& c,
                    range t) noexcept {
  T* to = x.data() + c.batch * x.stride(0) + t.begin * x.stride(1) + c.first * x.stride(2);
  copy_tile(rectangle<const A>{from, width, 1}, rectangle<T>{to, x.stride(1), x.stride(2)},
            t.size(), c.count);
}

/// exp of N packets, or 2 to their power with `Binary`. With `Decaying` no argument is positive;
/// otherwise any may be, and those that are not give the same bits as with it.
template <class A, int N, bool Decaying, bool Binary = false>
HEED_INLINE void scan_exp(simd::packet<A>* x) noexcept {
  const auto nonpositive = [](simd::packet<A>* at) HEED_INLINE_LAMBDA {
    if constexpr (Binary) {
      simd::exp2_nonpositive<A, N>(at);
    } else {
      simd::exp_nonpositive<A, N>(at);
    }
  };
  if constexpr (Decaying) {
    nonpositive(x);
  } else {
    simd::packet<A> size[std::size_t{N}];
    simd::unroll<N>(
        [&](auto i) HEED_INLINE_LAMBDA { size[i] = simd::sub(simd::zero<A>(), simd::abs(x[i])); });
    nonpositive(size);
    simd::unroll<N>([&](auto i) HEED_INLINE_LAMBDA {
      x[i] = simd::select(simd::less(simd::zero<A>(), x[i]),
                          simd::div(simd::broadcast(A(1)), size[i]), size[i]);
    });
  }
}

/// Whether any of `rows` x `columns` numbers times `sign` is above 0; NaNs may be passed over.
/// `columns` is a multiple of the lanes.
template <class A>
[[nodiscard]] bool any_positive(const A* x, index stride, index rows, index columns,
                                A sign = A(1)) noexcept {
  simd::packet<A> m[4];  // a maximum waits for the one before it
  simd::unroll<4>([&](auto i) HEED_INLINE_LAMBDA { m[i] = simd::zero<A>(); });
  const auto take = [&](auto& most, index r, index c) HEED_INLINE_LAMBDA {
    most = (simd::max)(most, simd::mul(simd::broadcast(sign), simd::load<A>(x + r * stride + c)));
  };
  for (index c = 0; c < columns; c += simd::lanes<A>) {
    index r = 0;
    for (; r + 4 <= rows; r += 4) {
      simd::unroll<4>([&](auto i) HEED_INLINE_LAMBDA { take(m[i], r + i, c); });
    }
    for (; r < rows; ++r) take(m[0], r, c);
  }
  return simd::largest((simd::max)((simd::max)(m[0], m[1]), (simd::max)(m[2], m[3]))) > A(0);
}

}  // namespace heed::inline HEED_TARGET::detail
