// SPDX-License-Identifier: MIT
// Prefetches the memory of a scan's next tile: rows of few channels, far apart, are no stream that
// the hardware would see.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>

#include "heed/core/target.hpp"
#include "heed/linear/channel_blocks.hpp"
#include "heed/simd/packet.hpp"
#include "heed/tensor/view.hpp"

namespace heed::inline HEED_TARGET::detail {

/// Where a block's channels of a token begin.
template <class T>
[[nodiscard]] T* channel_row(const view<T, 3>& x, const channel_block& k, index token) noexcept {
  return x.data() + k.batch * x.stride(0) + token * x.stride(1) + k.first * x.stride(2);
}

/// Row by row and a line of channels at a time, of each tensor one with each call of `issue`.
class channel_lines {
 public:
  /// What is ahead: at most `rows` tokens of it, of `tokens` in all. Lines are counted in floats.
  channel_lines(const channel_ahead& a, index rows, index tokens) noexcept
      : rows_((std::min)(rows, tokens - a.token)), columns_(ceil_div(a.block.count, line)) {}

  /// At most four tensors.
  template <class T>
  void add(const view<T, 3>& x, const channel_ahead& a) noexcept {
    constexpr auto size = static_cast<index>(sizeof(T));
    at_[count_++] = {reinterpret_cast<const std::byte*>(channel_row(x, a.block, a.token)),
                     x.stride(1) * size, x.stride(2) * line * size};
  }
  HEED_INLINE void issue() noexcept {
    if (rows_ <= 0) return;
    for (std::size_t i = 0; i < count_; ++i) {
      simd::prefetch<2>(at_[i].row + column_ * at_[i].step);
    }
    if (++column_ < columns_) return;
    column_ = 0;
    --rows_;
    for (std::size_t i = 0; i < count_; ++i) at_[i].row += at_[i].stride;
  }

 private:
  static constexpr index line = 64 / sizeof(float);
  struct stream {
    const std::byte* row = nullptr;
    index stride = 0;  // bytes, as the step from one line to the next
    index step = 0;
  };
  std::array<stream, 4> at_{};
  std::size_t count_ = 0;
  index rows_;
  index columns_;
  index column_ = 0;
};

}  // namespace heed::inline HEED_TARGET::detail
