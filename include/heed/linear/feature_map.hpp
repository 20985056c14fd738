// SPDX-License-Identifier: MIT
// Feature maps phi of kernelised attention: what makes phi(q).phi(k) the similarity of q and k.
//
// | map                | phi(x)                      | F    | source |
// |--------------------|-----------------------------|------|------------------------------------------|
// | elu_plus_one       | x + 1 for x > 0, else exp x | D    | Katharopoulos et al. 2020,
// 2006.16236, 7 | | identity_features  | x                           | D    | Schlag et al. 2021,
// 2102.11174           | | your callable      | (A x) -> A, channel by channel                | D
// |                        | | your vector map    | (span<const A> x, span<A> phi), features(D)   |
// F  |                        |
//
// A is the accumulator type (float, or double for double). A map must not throw and is called from
// several threads at once. Normalised attention wants phi > 0.
#pragma once

#include <concepts>
#include <span>
#include <type_traits>

#include "heed/core/types.hpp"
#include "heed/simd/exponential.hpp"
#include "heed/simd/packet.hpp"

namespace heed {

/// phi(x) = elu(x) + 1. Relative error as simd::exp_nonpositive; a NaN stays NaN.
struct elu_plus_one {
  template <class A>
  [[nodiscard]] simd::packet<A> on_packet(simd::packet<A> x) const noexcept {
    const auto zero = simd::zero<A>();
    const auto positive = simd::less(zero, x);
    const auto e = simd::exp_nonpositive<A>(simd::select(positive, zero, x));
    return simd::select(positive, simd::add(x, simd::broadcast(A(1))), e);
  }
};

/// phi(x) = x: attention without a kernel, as the operator standard's rule `linear`.
struct identity_features {
  template <class A>
  [[nodiscard]] simd::packet<A> on_packet(simd::packet<A> x) const noexcept {
    return x;
  }
};

namespace detail {
template <class M, class A>
concept packet_feature_map = requires(const M& m, simd::packet<A> x) {
  { m.template on_packet<A>(x) } -> std::same_as<simd::packet<A>>;
};
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

/// One row of channels replaced by its features, for maps that keep the dimension.
template <class A, class M>
void map_row_in_place(const M& map, A* row, index channels) noexcept {
  if constexpr (packet_feature_map<M, A>) {
    constexpr index w = simd::lanes<A>;
    index c = 0;
    for (; c + w <= channels; c += w) {
      simd::store(row + c, map.template on_packet<A>(simd::load(row + c)));
    }
    if (c < channels) {
      A lane[static_cast<std::size_t>(w)] = {};
      for (index i = c; i < channels; ++i) lane[i - c] = row[i];
      simd::store(lane, map.template on_packet<A>(simd::load<A>(lane)));
      for (index i = c; i < channels; ++i) row[i] = lane[i - c];
    }
  } else {
    for (index c = 0; c < channels; ++c) row[c] = static_cast<A>(map(row[c]));
  }
}

}  // namespace detail
}  // namespace heed
