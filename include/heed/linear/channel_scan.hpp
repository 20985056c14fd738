// SPDX-License-Identifier: MIT
// The driver of diagonal scans: recurrences whose channels never meet, lanes of packets across
// channels.
//
// A block of some packets of channels of one sequence is one task, run over all its tokens. Tiles
// of tokens come into scratch from any strides and scalar, rows one token each, padded with zeros;
// the answers go home the same way. Every token of a channel undergoes the same operations wherever
// tiles and blocks end: the result has the same bits for any number of threads, and for a sequence
// in pieces.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <type_traits>

#include "heed/core/types.hpp"
#include "heed/core/workspace.hpp"
#include "heed/kernel/copy_tile.hpp"
#include "heed/parallel/executor.hpp"
#include "heed/simd/exponential.hpp"
#include "heed/simd/packet.hpp"
#include "heed/tensor/scalar.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed {

/// What every scan takes besides its inputs.
struct scan_options {
  workspace* scratch = nullptr;  ///< kept by the caller, so that a call allocates nothing
};

/// Tokens brought in at a time: a tile of a few inputs stays in the first-level cache.
inline constexpr index scan_tile = 64;

/// Consecutive channels of one sequence; `group` of them share what a scan has in groups.
struct channel_block {
  index batch = 0;
  index group = 0;
  index first = 0;
  index count = 0;
};

/// How tokens x channels of several sequences are cut. Groups are of equal size.
struct channel_plan {
  index batch = 0;
  index groups = 1;
  index channels = 0;  ///< of all groups
  index width = 1;     ///< most channels of a block

  [[nodiscard]] index group_size() const noexcept { return groups == 0 ? 0 : channels / groups; }
  [[nodiscard]] index blocks_per_group() const noexcept { return ceil_div(group_size(), width); }
  [[nodiscard]] index tasks() const noexcept { return batch * groups * blocks_per_group(); }
  [[nodiscard]] channel_block at(index task) const noexcept {
    const index per = blocks_per_group();
    const index group = task / per % groups;
    const index offset = task % per * width;
    return {task / per / groups, group, group * group_size() + offset,
            std::min(width, group_size() - offset)};
  }
};

/// Most packets of channels in a block: rows long enough for the hardware to see them as streams.
inline constexpr index scan_packets = 8;

/// How many channels a block takes: many, `Packets` at most, unless workers would then stay idle. A
/// multiple of `unit`.
template <class A, index Packets = scan_packets, executor E>
[[nodiscard]] index scan_block_width(E& exec, index sequences, index channels, index unit) {
  const index units = ceil_div(channels, unit);
  const index workers = std::max<index>(static_cast<index>(exec.concurrency()), index{1});
  // Two blocks a worker even out; one worker has nothing to wait for.
  const index share = workers == 1 ? units : sequences * units / (2 * workers);
  return unit * std::clamp<index>(share, index{1}, Packets * simd::lanes<A> / unit);
}

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

/// And home again, rounded to the output's scalar.
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
    most = simd::max(most, simd::mul(simd::broadcast(sign), simd::load<A>(x + r * stride + c)));
  };
  for (index c = 0; c < columns; c += simd::lanes<A>) {
    index r = 0;
    for (; r + 4 <= rows; r += 4) {
      simd::unroll<4>([&](auto i) HEED_INLINE_LAMBDA { take(m[i], r + i, c); });
    }
    for (; r < rows; ++r) take(m[0], r, c);
  }
  return simd::largest(simd::max(simd::max(m[0], m[1]), simd::max(m[2], m[3]))) > A(0);
}

/// Runs a scan: `carve(carver)`, then for every block `enter(block, scratch)`, `tile(block, tokens,
/// scratch)` in the order of the tokens, `Tile` at a time, `leave(block, scratch)`. All but `carve`
/// are noexcept.
template <index Tile = scan_tile, executor E, class Scan>
void run_channel_scan(E& exec, const channel_plan& plan, index tokens, const Scan& scan,
                      workspace* kept) {
  const index tasks = plan.tasks();
  if (tasks == 0) return;
  workspace own;
  workspace& memory = kept != nullptr ? *kept : own;
  const index workers = std::clamp<index>(static_cast<index>(exec.concurrency()), index{1}, tasks);
  carver measure;
  (void)scan.carve(measure);
  std::byte* const memory_block =
      memory.reserve(measure.used() * static_cast<std::size_t>(workers));
  for_each_task(exec, workers, tasks, [&](index worker, index task) noexcept {
    carver c(memory_block + static_cast<std::size_t>(worker) * measure.used());
    auto scratch = scan.carve(c);
    const channel_block channels = plan.at(task);
    scan.enter(channels, scratch);
    for (index t = 0; t < tokens; t += Tile) {
      scan.tile(channels, range{t, std::min(t + Tile, tokens)}, scratch);
    }
    scan.leave(channels, scratch);
  });
}

/// A tensor that a scan reads, and its scalar's compatibility with the accumulator type.
template <class A, int Rank, class T>
[[nodiscard]] auto scan_input(const T& t) {
  static_assert(tensor_like<const T&>,
                "heed: an input is not a tensor; specialise heed::tensor_traits for its type");
  static_assert(attention_scalar<scalar_of<const T&>>,
                "heed: inputs of a scan are float, double, half or bfloat16");
  static_assert(std::is_same_v<accumulate_t<scalar_of<const T&>>, A>,
                "heed: inputs of a scan accumulate in different types; double goes with double "
                "alone");
  static_assert(rank_of<const T&> == Rank, "heed: an input of a scan has the wrong rank");
  return view<const scalar_of<const T&>, Rank>(as_view(t));
}

/// Throws shape_error unless `what` has the extents.
template <std::size_t Rank>
void require_extents(const char* what, const std::array<index, Rank>& got,
                     const std::array<index, Rank>& needed) {
  if (got != needed) {
    fail<shape_error>(std::string(what) + " has extents " + format_extents(got) +
                      ", the call needs " + format_extents(needed));
  }
}

}  // namespace heed
