// SPDX-License-Identifier: MIT
// Where the codes of a row lie, in parts that can be read at once: channels that follow one another
// in memory and share a scale.
//
// 8 bits: byte c is channel c. 4 bits: byte i holds channel i in its low half, channel i + ceil(n / 2)
// in its high half. Groups of channels, each with a scale of its own, begin at multiples of their
// size; the last may be smaller, and one that has channels in both halves is two parts.
#pragma once

#include <algorithm>
#include <cstdint>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/simd/convert.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// `count` channels from `channel` on, whose codes are read as T from byte `byte` of the row on.
template <class T>
struct code_part {
  using scalar = T;
  index channel = 0;
  index count = 0;
  index byte = 0;
  index group = 0;

  [[nodiscard]] const T* codes(const std::uint8_t* row) const noexcept {
    return reinterpret_cast<const T*>(row + byte);
  }
};

/// use(code_part) for all parts of a row of `channels`, in the order of memory; `group` channels
/// share a scale, all where it is 0.
template <int Bits, class Use>
HEED_INLINE void each_code_part(index channels, index group, const Use& use) noexcept {
  const index size = group > 0 ? group : channels;
  const auto parts = [&]<class T>(T, index first, index end) HEED_INLINE_LAMBDA {
    for (index c = first; c < end;) {
      const index next = (std::min)(end, (c / size + 1) * size);
      use(code_part<T>{c, next - c, c - first, c / size});
      c = next;
    }
  };
  if constexpr (Bits == 8) {
    parts(std::uint8_t(), 0, channels);
  } else {
    const index low = ceil_div(channels, 2);
    parts(simd::low_nibble(), 0, low);
    parts(simd::high_nibble(), low, channels);
  }
}

}  // namespace heed::inline HEED_TARGET::kernel
