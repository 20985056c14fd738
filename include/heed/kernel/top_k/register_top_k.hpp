// SPDX-License-Identifier: MIT
// The largest sixteen of a row, in order, in registers while scores join them: no branch depends on
// where one of them goes.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "heed/core/target.hpp"
#include "heed/simd/packet.hpp"

namespace heed::inline HEED_TARGET::kernel {

template <class A>
class register_top_k {
 public:
  static constexpr index size = 16;

  /// `values` largest first, and their keys as `key_bits` has them; `size` of each.
  HEED_INLINE register_top_k(const A* values, const A* keys) noexcept {
    simd::unroll<packets>([&](auto i) HEED_INLINE_LAMBDA {
      value_[i] = simd::load(values + i * lanes);
      key_[i] = simd::load(keys + i * lanes);
    });
  }
  HEED_INLINE void store(A* values, A* keys) const noexcept {
    simd::unroll<packets>([&](auto i) HEED_INLINE_LAMBDA {
      simd::store(values + i * lanes, value_[i]);
      simd::store(keys + i * lanes, key_[i]);
    });
  }
  /// Behind its equals; what was last goes.
  HEED_INLINE void insert(A value, A key) noexcept {
    const packet x = simd::broadcast(value);
    const packet k = simd::broadcast(key);
    // From the last packet on: each takes in the last lane of the one before it.
    simd::unroll<packets>([&](auto n) HEED_INLINE_LAMBDA {
      constexpr int i = packets - 1 - decltype(n)::value;
      constexpr int before = i > 0 ? i - 1 : 0;
      // The largest comes behind infinity, from which nothing is taken.
      const packet first = simd::broadcast(std::numeric_limits<A>::infinity());
      const packet values = behind(i > 0 ? value_[before] : first, value_[i]);
      const packet keys = behind(key_[before], key_[i]);
      const packet moves = simd::less(value_[i], x);
      const packet follows = simd::less(values, x);
      value_[i] = simd::select(moves, simd::select(follows, values, x), value_[i]);
      key_[i] = simd::select(moves, simd::select(follows, keys, k), key_[i]);
    });
  }

  /// Keys lie in the lanes of numbers, bit by bit.
  [[nodiscard]] static A key_bits(index key) noexcept {
    const auto x = static_cast<integer>(key);
    A bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
  }
  [[nodiscard]] static index key_of(const A& bits) noexcept {
    integer key;
    std::memcpy(&key, &bits, sizeof key);
    return static_cast<index>(key);
  }

 private:
  using packet = simd::packet<A>;
  using integer = std::conditional_t<sizeof(A) == 4, std::int32_t, std::int64_t>;
  static constexpr index lanes = simd::lanes<A>;
  static constexpr int packets = static_cast<int>(size / lanes);

  /// The last lane of `before`, then all of `x` but its last.
  HEED_INLINE static packet behind(const packet& before, const packet& x) noexcept {
    if constexpr (lanes == 1) {
      return before;
    } else {
      return [&]<int... I>(std::integer_sequence<int, I...>) HEED_INLINE_LAMBDA {
        return simd::shuffle<(static_cast<int>(lanes) - 1 + I)...>(before, x);
      }(std::make_integer_sequence<int, static_cast<int>(lanes)>{});
    }
  }

  packet value_[std::size_t{packets}];
  packet key_[std::size_t{packets}];
};

}  // namespace heed::inline HEED_TARGET::kernel
