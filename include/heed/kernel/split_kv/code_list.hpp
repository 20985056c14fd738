// SPDX-License-Identifier: MIT
// The codes of a block of tokens that lie in pages: where each row is, and their scales side by side,
// so that the kernels for few queries read the block at once and not page by page.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "heed/core/target.hpp"
#include "heed/kernel/kv_source.hpp"
#include "heed/kernel/row_pointers.hpp"
#include "heed/kernel/split_kv/tuning.hpp"

namespace heed::inline HEED_TARGET::kernel {

template <class A>
struct code_list {
  static constexpr std::size_t most = split_plan<A>::keys;
  const void* row[most];
  A scale[most];
  A zero[most];

  /// Takes in the tokens of `block`, of which run(j) is the run from token j on, rows of `bytes`
  /// bytes. False where some of them are not codes with one scale a token.
  template <class Run>
  [[nodiscard]] bool gather(const Run& run, range block, index bytes) noexcept {
    // All that is far away is requested before any of it is waited for.
    for (index j = block.begin; j < block.end;) {
      const code_run r = run(j);
      if (r.codes == nullptr || r.by_channel || r.group > 0) return false;
      const index count = (std::min)(r.count, block.end - j);
      prefetch_row<1>(r.scale, count);
      prefetch_row<1>(r.zero, count);
      for (index i = 0; i < count; ++i) row[j - block.begin + i] = r.codes + i * r.stride;
      j += count;
    }
    const index ahead = (std::min)(block.size(), split_plan<A>::ahead_bytes / bytes);
    for (index i = 0; i < ahead; ++i) {
      prefetch_row<1>(static_cast<const std::uint8_t*>(row[i]), bytes);
    }
    for (index j = block.begin; j < block.end;) {
      const code_run r = run(j);
      const index count = (std::min)(r.count, block.end - j);
      std::copy_n(r.scale, count, scale + (j - block.begin));
      std::copy_n(r.zero, count, zero + (j - block.begin));
      j += count;
    }
    return true;
  }
};

}  // namespace heed::inline HEED_TARGET::kernel
