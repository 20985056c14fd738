// SPDX-License-Identifier: MIT
// A block of keys and values in the accumulator type: read where it lies when its rows are in that
// type with channels next to each other, else brought to that form, once for a task's groups.
//
// Another form of keys needs only another block: what the tiled kernel needs of one is the concept
// `kv_block`.
#pragma once

#include <concepts>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/kernel/copy_strided.hpp"
#include "heed/kernel/kv_source.hpp"
#include "heed/kernel/row_pointers.hpp"
#include "heed/kernel/tiled/query_tile.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// Rows of tokens `keys` as the kernel wants them: in place, or copied to `copy`. `run(j)` is the
/// source's run from token j on.
template <class A, class T, class Run>
const A* block_rows(const Run& run, range keys, index channels, index channel_stride, A* copy,
                    index& stride) noexcept {
  row_run<T> r = run(keys.begin);
  if constexpr (std::is_same_v<T, A>) {
    const bool aliases =
        (r.stride * static_cast<index>(sizeof(A))) % tile_plan<A>::aliasing_bytes == 0 &&
        keys.size() > 1;
    if (channel_stride == 1 && r.count >= keys.size() && !aliases) {
      stride = r.stride;
      return r.data;
    }
  }
  stride = channels;
  for (index j = keys.begin; j < keys.end;) {
    const index count = r.count < keys.end - j ? r.count : keys.end - j;
    A* const to = copy + (j - keys.begin) * channels;
    if (channel_stride == 1 && count == 1) {
      // Listed keys come one by one: what a call to copy_tile costs, their rows do too.
      simd::widen_row(r.data, to, channels);
    } else {
      copy_tile<T, A>({r.data, r.stride, channel_stride}, {to, channels, 1}, count, channels);
    }
    j += count;
    if (j < keys.end) r = run(j);
  }
  return copy;
}

/// Whether all numbers of rows row(0) .. row(rows - 1) are finite: 0 x is 0 for a finite x and NaN
/// otherwise.
template <class A, class Rows>
[[nodiscard]] bool all_finite(const Rows& row, index rows, index columns) noexcept {
  auto probe = simd::zero<A>();
  A rest = A(0);
  for (index r = 0; r < rows; ++r) {
    const auto* const x = row(r);
    index c = 0;
    for (; c + simd::lanes<A> <= columns; c += simd::lanes<A>) {
      probe = simd::fmadd(simd::load_widened<A>(x + c), simd::zero<A>(), probe);
    }
    for (; c < columns; ++c) rest += static_cast<A>(x[c]) * A(0);
  }
  return simd::sum(probe) + rest == A(0);
}

/// Memory for a block that cannot be read in place.
template <class A>
struct block_copies {
  A* k = nullptr;  // [keys of a block][head dim]
  A* v = nullptr;  // [keys of a block][value dim]
};

/// What a task's blocks share, where that is nothing.
struct no_session {};

/// A block of keys and values for queries of scalar TQ. Source is a key_value_source.
template <class Block, class A, class TQ, class Source>
concept kv_block = requires(Block block, const Block& loaded, prefetch_stream& stream, A scale,
                            index n, rectangle<const TQ> q, const Source& source, const tile& where,
                            range keys, head_dims d, const block_copies<A>& copies, const A* packed,
                            typename Block::session& session, A* to, simd::packet<A>* maximum,
                            const running_values<A>& out) {
  /// Keys that a part may begin at.
  { Block::key_step } -> std::convertible_to<index>;
  /// `stream` is what `scores` and `values` prefetch; `session` is what a task's blocks share.
  Block(scale, stream, session);
  /// `n` queries of `n` channels, as `scores` reads them.
  Block::pack(q, n, n, scale, to);
  /// The keys `keys` of a head.
  block.load(source, where, keys, d, copies);
  /// The block from its n-th key on.
  { loaded.from(n) } -> std::same_as<Block>;
  /// Scaled scores of queries, of `n` channels, and `n` keys, and their maxima.
  loaded.template scores<1>(packed, n, n, to, maximum);
  /// out = rescale out + p v, of `n` keys from the `n`-th of the call on; p is scratch after.
  loaded.template values<1>(to, n, n, n, maximum, out);
  { loaded.value(n, n) } -> std::convertible_to<A>;
  /// Whether all of n keys' values, of n channels, are finite.
  { loaded.finite(n, n) } -> std::same_as<bool>;
};

template <class A>
class plain_block {
 public:
  static constexpr index key_step = 1;
  using session = no_session;

  /// The scale is in the packed queries.
  plain_block(A, prefetch_stream& stream, session&) noexcept : stream_(&stream) {}

  template <class T>
  static void pack(rectangle<const T> q, index rows, index head_dim, A scale, A* to) noexcept {
    constexpr index group = tile_plan<A>::group;
    if (rows < group) {
      for (index i = 0; i < head_dim * group; ++i) to[i] = A(0);
    }
    copy_tile<T, A>(q, {to, 1, group}, rows, head_dim);
    for (index i = 0; i < head_dim * group; ++i) to[i] *= scale;
  }

  template <class Source>
  void load(const Source& source, const tile& where, range keys, head_dims d,
            const block_copies<A>& copies) noexcept {
    if constexpr (widening_source<Source>) {
      source.widen_keys(where.batch, where.kv_head, keys, copies.k);
      source.widen_values(where.batch, where.kv_head, keys, copies.v);
      k_ = copies.k;
      v_ = copies.v;
      k_stride_ = d.head_dim;
      v_stride_ = d.value_dim;
    } else {
      load_rows(source, where, keys, d, copies);
    }
  }

  template <class Source>
  void load_rows(const Source& source, const tile& where, range keys, head_dims d,
                 const block_copies<A>& copies) noexcept {
    k_ = block_rows<A, typename Source::key_scalar>(
        [&](index j) { return source.keys(where.batch, where.kv_head, j); }, keys, d.head_dim,
        source.key_channel_stride(), copies.k, k_stride_);
    v_ = block_rows<A, typename Source::value_scalar>(
        [&](index j) { return source.values(where.batch, where.kv_head, j); }, keys, d.value_dim,
        source.value_channel_stride(), copies.v, v_stride_);
  }

  [[nodiscard]] plain_block from(index n) const noexcept {
    plain_block part = *this;
    part.k_ += n * k_stride_;
    part.v_ += n * v_stride_;
    return part;
  }

  template <int Packets>
  void scores(const A* q, index head_dim, index keys, A* s,
              simd::packet<A>* maximum) const noexcept {
    score_tile<A, Packets>(q, k_, k_stride_, head_dim, keys, s, maximum, *stream_);
  }
  template <int Packets>
  void values(A* p, index first, index keys, index value_dim, const simd::packet<A>* rescale,
              const running_values<A>& out) const noexcept {
    value_tile<A, Packets>(p, v_, v_stride_, first, keys, value_dim, rescale, out, *stream_);
  }

  [[nodiscard]] A value(index j, index c) const noexcept { return v_[j * v_stride_ + c]; }
  [[nodiscard]] bool finite(index keys, index value_dim) const noexcept {
    return all_finite<A>(strided_rows<A>{v_, v_stride_}, keys, value_dim);
  }

 private:
  prefetch_stream* stream_;
  const A* k_ = nullptr;
  const A* v_ = nullptr;
  index k_stride_ = 0;
  index v_stride_ = 0;
};

}  // namespace heed::inline HEED_TARGET::kernel
