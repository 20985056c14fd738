// SPDX-License-Identifier: MIT
// Probabilities of the compressed blocks for one group of rows, the heads of a KV head one after
// another: queries in the lanes, a block of keys at a time, so that no row of scores is ever whole.
#pragma once

#include <algorithm>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/core/workspace.hpp"
#include "heed/kernel/tiled/kv_block.hpp"
#include "heed/sparse/nsa/compressed.hpp"

namespace heed::inline HEED_TARGET::detail {

/// A worker's scratch: the heads of a group for one group of rows, and the weights of their blocks.
template <class A>
struct importance_scratch {
  using plan = tile_plan<A>;

  A* q = nullptr;           // [heads][head dim][group]
  A* shift = nullptr;       // [heads][group]: the log-sum-exp; 0 for a row that sees nothing
  A* sum = nullptr;         // [heads][group], while the log-sum-exp is found
  A* rest = nullptr;        // [heads][group], what rounding has taken from `sum`
  A* scores = nullptr;      // [keys of a block][group]
  A* copy = nullptr;        // a copied block of keys
  A* importance = nullptr;  // [selection blocks][group]
  A* rows = nullptr;        // [group][selection blocks], and a group behind the last row

  void allocate(arena& c, index heads, index head_dim, index blocks) noexcept {
    q = c.allocate<A>(heads * head_dim * plan::group);
    shift = c.allocate<A>(heads * plan::group);
    sum = c.allocate<A>(heads * plan::group);
    rest = c.allocate<A>(heads * plan::group);
    scores = c.allocate<A>(plan::keys * plan::group);
    copy = c.allocate<A>(plan::keys * head_dim);
    importance = c.allocate<A>(blocks * plan::group);
    rows = c.allocate<A>((blocks + 1) * plan::group);
  }
};

/// Rows [rows) of the heads of one KV head, across the lanes, against the compressed keys.
template <class TK, class A>
class compressed_scores {
 public:
  using plan = tile_plan<A>;

  /// `keys` of `count` compressed blocks; the first row is at position `first`.
  compressed_scores(const row_run<TK>& keys, index channel_stride, index head_dim,
                    const compressed_blocks& blocks, index first, index rows,
                    importance_scratch<A>& scratch) noexcept
      : keys_(keys),
        channel_stride_(channel_stride),
        head_dim_(head_dim),
        blocks_(blocks),
        first_(first),
        rows_(rows),
        seen_by_all_((std::min)(keys.count, blocks.whole(first + 1))),
        seen_((std::min)(keys.count, blocks.whole(first + rows))),
        scratch_(&scratch) {}

  /// use(keys, integral_constant packets) for each block of keys and head, whose probabilities are
  /// in the scratch's scores.
  template <class Use>
  void each_probability(index heads, Use&& use) const noexcept {
    each_tile(heads, [&](range keys, index h, auto packets) noexcept {
      subtract<packets()>(keys.size(), scratch_->shift + h * plan::group);
      hide(keys, A(0));
      use(keys, packets);
    });
  }

  /// Every head's log-sum-exp becomes its shift.
  void find_shifts(index heads) const noexcept {
    std::fill_n(scratch_->shift, heads * plan::group, softmax_state<A>::empty_max);
    std::fill_n(scratch_->sum, heads * plan::group, A(0));
    std::fill_n(scratch_->rest, heads * plan::group, A(0));
    each_tile(heads, [&](range keys, index h, auto packets) noexcept {
      hide(keys, softmax_state<A>::empty_max);
      join<packets()>(keys.size(), scratch_->shift + h * plan::group,
                      {scratch_->sum + h * plan::group, scratch_->rest + h * plan::group});
    });
    for (index i = 0; i < heads * plan::group; ++i) {
      const softmax_state<A> state{scratch_->shift[i], scratch_->sum[i], scratch_->rest[i]};
      scratch_->shift[i] = state.sum == A(0) ? A(0) : state.log_sum_exp();
    }
  }

 private:
  /// use(keys, head, integral_constant packets) for each visible block of keys and head, whose
  /// scores are in the scratch; as few packets as hold the rows.
  template <class Use>
  void each_tile(index heads, Use&& use) const noexcept {
    in_packets<A>(rows_, [&](auto packets) noexcept { each_tile_of<packets()>(heads, use); });
  }
  template <int Packets, class Use>
  void each_tile_of(index heads, Use&& use) const noexcept {
    for (index begin = 0; begin < seen_; begin += plan::keys) {
      const range keys{begin, (std::min)(seen_, begin + plan::keys)};
      index stride = 0;
      const A* const k = block_rows<A, TK>(
          [&](index j) {
            return row_run<TK>{keys_.data + j * keys_.stride, keys_.stride, keys_.count - j};
          },
          keys, head_dim_, channel_stride_, scratch_->copy, stride);
      for (index h = 0; h < heads; ++h) {
        simd::packet<A> top[std::size_t{Packets}];
        for (int p = 0; p < Packets; ++p) top[p] = simd::zero<A>();
        prefetch_stream none;
        score_tile<A, Packets>(scratch_->q + h * head_dim_ * plan::group, k, stride, head_dim_,
                               keys.size(), scratch_->scores, top, none);
        use(keys, h, std::integral_constant<int, Packets>{});
      }
    }
  }
  /// Scores become exp(score - shift).
  template <int Packets>
  void subtract(index keys, const A* shifts) const noexcept {
    simd::packet<A> shift[std::size_t{Packets}];
    simd::packet<A> sum[std::size_t{Packets}];
    for (int p = 0; p < Packets; ++p) {
      shift[p] = simd::load(shifts + p * plan::lanes);
    }
    exponential_tile<A, Packets>(scratch_->scores, 0, keys, shift, sum);
  }
  /// The scores join the running maxima and sums.
  template <int Packets>
  void join(index keys, A* max, const running_values<A>& sum) const noexcept {
    simd::packet<A> shift[std::size_t{Packets}];
    simd::packet<A> rescale[std::size_t{Packets}];
    simd::packet<A> part[std::size_t{Packets}];
    for (int p = 0; p < Packets; ++p) {
      auto top = simd::broadcast(softmax_state<A>::empty_max);
      for (index j = 0; j < keys; ++j) {
        top = (simd::max)(top, simd::load(scratch_->scores + j * plan::group + p * plan::lanes));
      }
      const block_maximum<A> m(simd::load(max + p * plan::lanes), top);
      simd::store(max + p * plan::lanes, m.max);
      shift[p] = m.shift;
      rescale[p] = m.rescale;
    }
    exponential_tile<A, Packets>(scratch_->scores, 0, keys, shift, part);
    for (int p = 0; p < Packets; ++p) sum.add(p * plan::lanes, rescale[p], part[p]);
  }
  /// `value` where a row does not see a key: only keys behind those that all rows see.
  void hide(range at, A value) const noexcept {
    for (index j = (std::max)(at.begin, seen_by_all_); j < at.end; ++j) {
      const index blind = std::clamp<index>(blocks_.tokens(j).end - 1 - first_, 0, rows_);
      std::fill_n(scratch_->scores + (j - at.begin) * plan::group, blind, value);
    }
  }

  row_run<TK> keys_;
  index channel_stride_;
  index head_dim_;
  compressed_blocks blocks_;
  index first_;
  index rows_;
  index seen_by_all_;
  index seen_;
  importance_scratch<A>* scratch_;
};

}  // namespace heed::inline HEED_TARGET::detail
