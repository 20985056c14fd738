// SPDX-License-Identifier: MIT
// Feature maps phi of kernelised attention: what makes phi(q).phi(k) the similarity of q and k.
//
// | map                   | phi(x)                         | F                     |
// |-----------------------|--------------------------------|-----------------------|
// | elu_plus_one          | x + 1 for x > 0, else exp x    | D                     |
// | identity_features     | x                              | D                     |
// | relu_features         | max(x, 0)                      | D                     |
// | squared_relu_features | max(x, 0)^2                    | D                     |
// | taylor_features       | 1, x, products of two          | 1 + D + D (D + 1) / 2 |
// | rebased_features      | products of two                | D (D + 1) / 2         |
// | your callable         | (A x) -> A, channel by channel | D                     |
// | your vector map       | (span<const A> x, span<A> phi) | features(D)           |
//
// Taylor's and rebased: polynomial_features.hpp.
// Sources: elu + 1: Katharopoulos et al. 2020, arXiv 2006.16236, section 3.2. Identity: Schlag,
// Irie, Schmidhuber 2021, arXiv 2102.11174. Relu: Choromanski et al. 2020, arXiv 2009.14794,
// section 2.2 (generalised attention). Squared relu: So et al. 2021, arXiv 2109.08668.
//
// A is the accumulator type (float, or double for double). A map must not throw and is called from
// several threads at once. Normalised attention wants phi > 0.
#pragma once

#include <concepts>
#include <cstddef>
#include <span>
#include <type_traits>

#include "heed/core/config.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/simd/convert.hpp"
#include "heed/simd/exponential.hpp"
#include "heed/simd/packet.hpp"

namespace heed::inline HEED_TARGET {

/// phi(x) = elu(x) + 1. Relative error as simd::exp_nonpositive; a NaN stays NaN.
///
/// As max(x + 1, exp(-|x|)): exp is convex and touches its tangent x + 1 at 0, so that for x <= 0
/// the exponential is the larger, and for x > 0 it is below 1. No lane needs a choice.
struct elu_plus_one {
  template <class A, int N>
  HEED_INLINE void on_packets(simd::packet<A>* x) const noexcept {
    using simd::unroll;
    simd::packet<A> e[std::size_t{N}];
    unroll<N>([&](auto i)
                  HEED_INLINE_LAMBDA { e[i] = simd::sub(simd::zero<A>(), simd::abs(x[i])); });
    simd::exp_nonpositive<A, N>(e);
    unroll<N>([&](auto i) HEED_INLINE_LAMBDA {
      x[i] = (simd::max)(simd::add(x[i], simd::broadcast(A(1))), e[i]);
    });
  }
};

/// phi(x) = x: attention without a kernel, as the operator standard's rule `linear`.
struct identity_features {
  template <class A, int N>
  HEED_INLINE void on_packets(simd::packet<A>*) const noexcept {}
};

/// phi(x) = max(x, 0); a NaN stays NaN. Exact.
struct relu_features {
  template <class A, int N>
  HEED_INLINE void on_packets(simd::packet<A>* x) const noexcept {
    simd::unroll<N>([&](auto i) HEED_INLINE_LAMBDA {
      x[i] = simd::select(simd::less(x[i], simd::zero<A>()), simd::zero<A>(), x[i]);
    });
  }
};

/// phi(x) = max(x, 0)^2; a NaN stays NaN. One rounding.
struct squared_relu_features {
  template <class A, int N>
  HEED_INLINE void on_packets(simd::packet<A>* x) const noexcept {
    relu_features{}.template on_packets<A, N>(x);
    simd::unroll<N>([&](auto i) HEED_INLINE_LAMBDA { x[i] = simd::mul(x[i], x[i]); });
  }
};

namespace detail {
template <class M, class A>
concept packet_feature_map =
    requires(const M& m, simd::packet<A>* x) { m.template on_packets<A, 1>(x); };
template <class M, class A>
concept channel_feature_map = requires(const M& m, A x) {
  { m(x) } -> std::convertible_to<A>;
};
template <class M, class A>
concept vector_feature_map = requires(const M& m, std::span<const A> x, std::span<A> phi, index d) {
  m(x, phi);
  { m.features(d) } -> std::convertible_to<index>;
};
}  // namespace detail

template <class M, class A>
concept feature_map = detail::packet_feature_map<M, A> || detail::channel_feature_map<M, A> ||
                      detail::vector_feature_map<M, A>;

/// F, the number of features that a map makes of `head_dim` channels.
template <class A, class M>
[[nodiscard]] index feature_count(const M& map, index head_dim) {
  if constexpr (detail::vector_feature_map<M, A>) {
    return static_cast<index>(map.features(head_dim));
  } else {
    return head_dim;
  }
}

namespace detail {

/// Features of N packets of channels, step by step together.
template <class A, int N, class T, class M>
HEED_INLINE void map_packets(const M& map, const T* from, A* to) noexcept {
  constexpr index w = simd::lanes<A>;
  simd::packet<A> x[std::size_t{N}];
  simd::unroll<N>([&](auto i) HEED_INLINE_LAMBDA { x[i] = simd::load_widened<A>(from + i * w); });
  map.template on_packets<A, N>(x);
  simd::unroll<N>([&](auto i) HEED_INLINE_LAMBDA { simd::store(to + i * w, x[i]); });
}

/// Features of one row of contiguous channels, for maps that keep the dimension. `from` may be
/// `to`.
template <class A, class T, class M>
HEED_INLINE void map_row(const M& map, const T* from, A* to, index channels) noexcept {
  if constexpr (packet_feature_map<M, A>) {
    constexpr index w = simd::lanes<A>;
    constexpr int together = simd::vector_registers == 32 ? 4 : 2;
    index c = 0;
    for (; c + together * w <= channels; c += together * w) {
      map_packets<A, together>(map, from + c, to + c);
    }
    for (; c + w <= channels; c += w) map_packets<A, 1>(map, from + c, to + c);
    if (c < channels) {
      A lane[static_cast<std::size_t>(w)] = {};
      for (index i = c; i < channels; ++i) lane[i - c] = static_cast<A>(from[i]);
      map_packets<A, 1>(map, lane, lane);
      for (index i = c; i < channels; ++i) to[i] = lane[i - c];
    }
  } else {
    for (index c = 0; c < channels; ++c) {
      to[c] = static_cast<A>(map(static_cast<A>(from[c])));
    }
  }
}

}  // namespace detail
}  // namespace heed::inline HEED_TARGET
