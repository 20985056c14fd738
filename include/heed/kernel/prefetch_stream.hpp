// SPDX-License-Identifier: MIT
// Prefetches the memory of the next block of tokens while this one is computed.
#pragma once

#include <array>
#include <cstddef>

#include "heed/core/config.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/simd/packet.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// Memory that the next block will read, prefetched a few cache lines at a time while this one is
/// computed: fetched only when its block begins, it would keep the arithmetic waiting, and fetched
/// for all at once, it would keep this block's own loads waiting. It waits in the second-level
/// cache; the first is full of this block.
class prefetch_stream {
 public:
  /// Lines prefetched by each call of `issue`. As it is: a linear chunk of 64 tokens of 64
  /// channels is some 44 register tiles, and 1024 lines.
  explicit prefetch_stream(index lines_a_call = 24) noexcept : lines_a_call_(lines_a_call) {}

  /// `rows` rows of `bytes` bytes, `stride` bytes apart. Rows past the twelfth call are ignored.
  void add(const void* data, index stride, index bytes, index rows) noexcept {
    if (count_ < streams_.size() && bytes > 0 && rows > 0) {
      streams_[count_++] = {static_cast<const std::byte*>(data), stride, bytes, rows};
    }
  }

  /// The next rows, of so many lines or a few more.
  HEED_INLINE void issue() noexcept {
    if (at_ == count_) return;
    stream& s = streams_[at_];
    const std::byte* row = s.row;
    index rows = s.rows;
    for (index lines = 0; lines < lines_a_call_ && rows > 0; --rows, row += s.stride) {
      for (index i = 0; i < s.bytes; i += 64, ++lines) simd::prefetch<2>(row + i);
    }
    s.row = row;
    s.rows = rows;
    if (rows == 0) ++at_;
  }

 private:
  struct stream {
    const std::byte* row = nullptr;
    index stride = 0;
    index bytes = 0;
    index rows = 0;
  };
  std::array<stream, 12> streams_{};
  std::size_t count_ = 0;
  std::size_t at_ = 0;
  index lines_a_call_;
};

}  // namespace heed::inline HEED_TARGET::kernel
