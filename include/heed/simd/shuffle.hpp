// SPDX-License-Identifier: MIT
// Any lanes of two packets as one: the one operation that Eigen's packet math lacks.
//
//   shuffle<I...>(a, b)   lane n is lane I_n of a and b side by side
//
// The compilers spell it in two ways, g++ before version 12 in the older one; both become the same
// instructions. Elsewhere it goes through memory.
#pragma once

#include <cstdint>
#include <type_traits>

#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET::simd {

namespace detail {
template <class P>
using lane_type = typename Eigen::internal::unpacket_traits<P>::type;
}

template <int... I, class P>
HEED_INLINE P shuffle(const P& a, const P& b) noexcept {
#if HEED_HAS_EXTENSIONS && (defined(__clang__) || __GNUC__ >= 12)
  return static_cast<P>(__builtin_shufflevector(a, b, I...));
#elif HEED_HAS_EXTENSIONS
  using integer = std::conditional_t<sizeof(detail::lane_type<P>) == 4, std::int32_t, std::int64_t>;
  typedef integer vector __attribute__((vector_size(sizeof(P))));
  return __builtin_shuffle(a, b, vector{I...});
#else
  constexpr int w = static_cast<int>(sizeof...(I));
  detail::lane_type<P> from[2 * w];
  Eigen::internal::pstoreu(from, a);
  Eigen::internal::pstoreu(from + w, b);
  const detail::lane_type<P> to[] = {from[I]...};
  return Eigen::internal::ploadu<P>(to);
#endif
}

}  // namespace heed::inline HEED_TARGET::simd
