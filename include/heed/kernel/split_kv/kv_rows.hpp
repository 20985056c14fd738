// SPDX-License-Identifier: MIT
// A block of a source's rows as the few-query kernel reads them: run by run or row by row where
// they lie, or a copy.
#pragma once

#include <algorithm>

#include "heed/core/target.hpp"
#include "heed/kernel/split_kv/microkernel.hpp"
#include "heed/kernel/tiled/kv_block.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// The runs of a head's keys, and of its values, from a token on. Named, so that kernels which read
/// them are compiled once for a source, whatever the modifiers.
template <class Source>
struct key_runs {
  const Source* source;
  index batch;
  index kv_head;
  [[nodiscard]] auto operator()(index j) const noexcept { return source->keys(batch, kv_head, j); }
  void widen(range rows, float* to) const noexcept
    requires widening_source<Source>
  {
    source->widen_keys(batch, kv_head, rows, to);
  }
  /// Where each of the rows lies, from a source that knows it of all of them together.
  [[nodiscard]] bool list(range rows, const void** to) const noexcept
    requires requires { source->list_keys(batch, kv_head, rows, to); }
  {
    return source->list_keys(batch, kv_head, rows, to);
  }
};
template <class Source>
struct value_runs {
  const Source* source;
  index batch;
  index kv_head;
  [[nodiscard]] auto operator()(index j) const noexcept {
    return source->values(batch, kv_head, j);
  }
  void widen(range rows, float* to) const noexcept
    requires widening_source<Source>
  {
    source->widen_values(batch, kv_head, rows, to);
  }
  [[nodiscard]] bool list(range rows, const void** to) const noexcept
    requires requires { source->list_values(batch, kv_head, rows, to); }
  {
    return source->list_values(batch, kv_head, rows, to);
  }
};

/// The rows of a block as a kernel reads them: in place where one run of its source holds them, each
/// where it lies where several do, if its channels are next to each other, and else a copy.
/// `run(j)` is the source's run from token j on; `list` has room for the block's rows.
template <class A, class T, class Run>
class block_runs {
 public:
  block_runs(const Run& run, range block, index channels, index channel_stride, A* copy,
             const void** list) noexcept
      : run_(&run), block_(block) {
    if constexpr (widens) {
      run.widen(block, copy);
      copy_ = copy;
      stride_ = channels;
    } else {
      find_rows(run, block, channels, channel_stride, copy, list);
    }
  }

  /// use(rows): once, of all of the block.
  template <class Use>
  void each(Use&& use) const noexcept {
    if (copy_ != nullptr) return use(strided_rows<A>{copy_, stride_, index{0}});
    if constexpr (!widens) {
      if (list_ != nullptr) return use(listed_rows<T>{list_, listed_});
      const row_run<T> r = (*run_)(block_.begin);
      use(strided_rows<T>{r.data, r.stride, r.count});
    }
  }

 private:
  static constexpr bool widens = requires(const Run& r, A* to) { r.widen(range{}, to); };

  void find_rows(const Run& run, range block, index channels, index channel_stride, A* copy,
                 const void** list) noexcept {
    if (channel_stride != 1) {
      copy_ = block_rows<A, T>(run, block, channels, channel_stride, copy, stride_);
      return;
    }
    if constexpr (requires { run.list(block, list); }) {
      if (run.list(block, list)) {
        list_ = list;
        return;
      }
    }
    if (run(block.begin).count >= block.size()) return;
    for (index j = block.begin; j < block.end;) {
      const row_run<T> r = run(j);
      const index end = j + (std::min)(r.count, block.end - j);
      for (const T* row = r.data; j < end; ++j, row += r.stride) list[j - block.begin] = row;
    }
    list_ = list;
    listed_ = block.size();
  }

  const Run* run_;
  range block_;
  const void* const* list_ = nullptr;
  index listed_ = 0;  // rows of the list that are worth prefetching
  const A* copy_ = nullptr;
  index stride_ = 0;
};

}  // namespace heed::inline HEED_TARGET::kernel
