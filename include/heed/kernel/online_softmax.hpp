// SPDX-License-Identifier: MIT
// The online softmax: a running reference and sum, how a block of keys joins them, and the one way
// in which two of them merge.
//
//   p_j = exp(s_j - m),  sum = sum_j p_j,  out = sum_j p_j v_j          over the keys seen so far
//   block:  r = exp(m - m'),  sum = r sum + (the block's sum),  out = r out + (the block's values)
//   merge:  m = max(m1, m2),  w_i = exp(m_i - m),  sum = w1 sum1 + w2 sum2,  out alike
//
// The reference m is a maximum of scores that follows late: it moves to a block's maximum only where
// that lies more than `softmax_slack` above it, so that weights are at most exp(8). Rounding of r
// does not accumulate: each r that is not 1 leaves the past e^8 times lighter.
//
// Digits. A block's sums begin at 0 and join the past with a compensation term (Kahan 1965; Dekker
// 1971, fast two-sum), so that with n keys, chains of at most 32 terms within a block of at most 4,
// b = 35, and u = eps / 2
//
//   |computed - exact| <= (b + 5 + c n u) u sum_j |p_j v_j|,   c of order 1
//
// for the sum (v = 1) and each channel of the output: what does not depend on n is all there is
// until n reaches 1 / u. Weights add the error of the exponential, 4u + |s_j - m| u, and that of
// their scores. Data seen: below 2e-6 in float for a million keys (tests/attention).
//
// Range. Values near the largest number overflow in a sum of weights that exceed 1 together, though
// their mean does not: where a row's output is not finite but its sum is, the row is computed again
// with weights times `small_weight`, a power of 2, and takes the channels that were not finite from
// there.
//
// The output kept beside a state is not divided by the sum until the end. An empty state has
// reference -inf and sum 0 and merges as nothing. Milakov, Gimelshein 2018, arXiv 1805.02867,
// algorithm 3; Dao et al. 2022, arXiv 2205.14135, section 3.1.
#pragma once

#include <cmath>
#include <limits>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/simd/exponential.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// How far a block's maximum may lie above the reference before that follows.
template <class A>
inline constexpr A softmax_slack = A(8);

/// Keys whose values are summed in a chain; aligned to a block's first key, so that tiles that begin
/// elsewhere sum alike.
inline constexpr index keys_of_chain = 32;

/// past = rescale past + part, `lost` the sum of what rounding took from it. An infinite past makes
/// `lost` a NaN: see `total`.
template <class P>
HEED_INLINE void add_to_past(P& past, P& lost, const P& rescale, const P& part) noexcept {
  const P before = simd::opaque(simd::mul(past, rescale));
  past = simd::opaque(simd::add(before, part));
  const P added = simd::opaque(simd::sub(past, before));
  lost = simd::fmadd(lost, rescale, simd::sub(part, added));
}
/// past + lost, and past where that is not finite.
template <class P>
[[nodiscard]] HEED_INLINE P total(const P& past, const P& lost) noexcept {
  return simd::select(simd::equal(lost, lost), simd::add(past, lost), past);
}

/// The same for `count` numbers in memory.
template <class A>
HEED_INLINE void add_to_past(A* past, A* lost, A rescale, const A* part, index count) noexcept {
  const auto r = simd::broadcast(rescale);
  index c = 0;
  for (; c + simd::lanes<A> <= count; c += simd::lanes<A>) {
    auto sum = simd::load(past + c);
    auto rest = simd::load(lost + c);
    add_to_past(sum, rest, r, simd::load(part + c));
    simd::store(past + c, sum);
    simd::store(lost + c, rest);
  }
  for (; c < count; ++c) add_to_past(past[c], lost[c], rescale, part[c]);
}
template <class A>
HEED_INLINE void add_lost(A* past, const A* lost, index count) noexcept {
  for (index c = 0; c < count; ++c) past[c] += lost[c] == lost[c] ? lost[c] : A(0);
}

/// What weights are multiplied with where values are so large that their sums overflow: with it a
/// sum of 2^52 weights is below 1, and the smallest weights that are kept are 2^-62 of the largest.
template <class A>
inline constexpr A small_weight = A(1) / A(18446744073709551616.0);
/// A result that is not finite becomes what small weights give, unless that is a NaN: they may have
/// lost a weight that an infinite value needs.
template <class T, class A>
HEED_INLINE void mend(T& result, A again) noexcept {
  const A first = static_cast<A>(result);
  if (!(first - first == A(0)) && again == again) result = static_cast<T>(again);
}

template <class A>
struct softmax_state {
  static constexpr A empty_max = -std::numeric_limits<A>::infinity();

  A max = empty_max;  // the reference
  A sum = A(0);
  A lost = A(0);  // what rounding has taken from the sum

  /// What multiplies the two outputs, and the two sums, when their states merge.
  struct weights {
    A self;
    A other;
  };

  /// Becomes the state of both. NaN in either propagates.
  weights merge(const softmax_state& other) noexcept {
    const A m = other.max > max ? other.max : max;
    const weights w{weight(max, m), weight(other.max, m)};
    add_to_past(sum, lost, w.self, w.other * other.sum);
    lost += w.other * other.lost;
    max = m;
    return w;
  }

  /// The reference becomes one for scores up to `block_max` too; what rescales the past is returned.
  A raise(A block_max) noexcept {
    if (!(block_max > max + softmax_slack<A>)) return A(1);
    const A rescale = weight(max, block_max);
    sum *= rescale;
    lost *= rescale;
    max = block_max;
    return rescale;
  }
  /// The sum of some weights relative to the reference joins.
  HEED_INLINE void add(A block_sum) noexcept { add_to_past(sum, lost, A(1), block_sum); }

  /// A sink's logit joins the sum (-inf: there is none); what rescales the output is returned.
  A join_sink(A logit) noexcept { return logit == empty_max ? A(1) : merge({logit, A(1)}).self; }

  /// Whether sums of values have left the range of A while that of the weights has not.
  [[nodiscard]] bool overflowed(const A* out, index channels) const noexcept {
    return sum - sum == A(0) && !finite(out, channels);
  }
  [[nodiscard]] static bool finite(const A* out, index channels) noexcept {
    auto none = simd::zero<A>();
    A rest = A(0);
    index c = 0;
    for (; c + simd::lanes<A> <= channels; c += simd::lanes<A>) {
      none = simd::fmadd(simd::load(out + c), simd::zero<A>(), none);
    }
    for (; c < channels; ++c) rest += out[c] * A(0);
    return simd::sum(none) + rest == A(0);
  }

  [[nodiscard]] A whole_sum() const noexcept { return lost == lost ? sum + lost : sum; }
  /// Natural log of the sum of exponentials of the scores seen; -inf if there were none.
  [[nodiscard]] A log_sum_exp() const noexcept {
    return sum == A(0) ? empty_max : max + std::log(whole_sum());
  }
  /// What the output is multiplied with at the end: 1 / sum, and 0 for a row that saw nothing.
  [[nodiscard]] A normaliser() const noexcept { return sum == A(0) ? A(0) : A(1) / whole_sum(); }

  /// exp(from - to); an empty state weighs 0.
  [[nodiscard]] static A weight(A from, A to) noexcept {
    return from == empty_max ? A(0) : from == to ? A(1) : std::exp(from - to);
  }
};

/// Lanes of references meet the maxima of a block: the new references, what to subtract from the
/// scores (the reference; 0 in lanes that saw nothing, so that -inf stays -inf), what rescales the
/// past.
template <class A>
struct block_maximum {
  simd::packet<A> max;
  simd::packet<A> shift;
  simd::packet<A> rescale;

  HEED_INLINE block_maximum(const simd::packet<A>& running, const simd::packet<A>& block) noexcept {
    const simd::packet<A> lowest = simd::broadcast(softmax_state<A>::empty_max);
    const auto limit = simd::add(running, simd::broadcast(softmax_slack<A>));
    max = simd::select(simd::less(limit, block), block, running);
    shift = simd::select(simd::equal(max, lowest), simd::zero<A>(), max);
    rescale = simd::exp_nonpositive<A>(simd::sub(running, shift));
  }
};

}  // namespace heed::inline HEED_TARGET::kernel
