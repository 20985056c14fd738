// SPDX-License-Identifier: MIT
// A block of a source's rows as the few-query kernel reads them: run by run where they lie, or a
// copy.
#pragma once

#include <algorithm>

#include "heed/kernel/plain_block.hpp"
#include "heed/kernel/split_tile.hpp"

namespace heed::detail {

/// The runs of a head's keys, and of its values, from a token on. Named, so that kernels which read
/// them are compiled once for a source, whatever the modifiers.
template <class Source>
struct key_runs {
  const Source* source;
  index batch;
  index kv_head;
  [[nodiscard]] auto operator()(index j) const noexcept { return source->keys(batch, kv_head, j); }
};
template <class Source>
struct value_runs {
  const Source* source;
  index batch;
  index kv_head;
  [[nodiscard]] auto operator()(index j) const noexcept {
    return source->values(batch, kv_head, j);
  }
};

/// The rows of a block as a kernel reads them: the runs of its source in place, in their own
/// scalar, or where those are too short or oddly cut, a copy. `run(j)` is the source's run from
/// token j on.
template <class A, class T, class Run>
class block_runs {
 public:
  using plan = split_plan<A>;
  /// Fewest rows of a run that are read where they lie, if the block has several.
  static constexpr index shortest = 16;

  block_runs(const Run& run, range block, index channels, index channel_stride, A* copy) noexcept
      : run_(&run), block_(block) {
    if (channel_stride == 1 && in_place()) return;
    copy_ = block_rows<A, T>(run, block, channels, channel_stride, copy, stride_);
  }

  /// use(data, stride, rows left of the run, first row within the block, rows) for each piece.
  template <class Use>
  void each(Use&& use) const noexcept {
    if (copy_ != nullptr) return use(copy_, stride_, index{0}, index{0}, block_.size());
    for (index j = block_.begin; j < block_.end;) {
      const row_run<T> r = (*run_)(j);
      const index n = std::min(r.count, block_.end - j);
      use(r.data, r.stride, r.count, j - block_.begin, n);
      j += n;
    }
  }

 private:
  /// Probabilities are made in whole packets: only the last piece may end within one.
  [[nodiscard]] bool in_place() const noexcept {
    for (index j = block_.begin; j < block_.end;) {
      const index n = (*run_)(j).count;
      if (n >= block_.end - j) return true;
      if (n < shortest || n % plan::lanes != 0) return false;
      j += n;
    }
    return true;
  }

  const Run* run_;
  range block_;
  const A* copy_ = nullptr;
  index stride_ = 0;
};

}  // namespace heed::detail
