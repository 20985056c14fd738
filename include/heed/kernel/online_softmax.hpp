// SPDX-License-Identifier: MIT
// The online softmax: a running maximum and sum, and the one way in which two of them merge.
//
//   m = max(m1, m2),  w_i = exp(m_i - m),  sum = w1 sum1 + w2 sum2,  out = w1 out1 + w2 out2
//
// The output kept beside a state is not divided by the sum until the end. An empty state has
// maximum -inf and sum 0 and merges as nothing. Milakov, Gimelshein 2018, arXiv 1805.02867,
// algorithm 3; Dao et al. 2022, arXiv 2205.14135, section 3.1.
#pragma once

#include <cmath>
#include <limits>

#include "heed/core/target.hpp"
#include "heed/simd/exponential.hpp"

namespace heed::inline HEED_TARGET::kernel {

template <class A>
struct softmax_state {
  static constexpr A empty_max = -std::numeric_limits<A>::infinity();

  A max = empty_max;
  A sum = A(0);

  /// What multiplies the two outputs, and the two sums, when their states merge.
  struct weights {
    A self;
    A other;
  };

  /// Becomes the state of both. NaN in either propagates.
  weights merge(const softmax_state& other) noexcept {
    const A m = other.max > max ? other.max : max;
    const weights w{weight(max, m), weight(other.max, m)};
    sum = w.self * sum + w.other * other.sum;
    max = m;
    return w;
  }

  /// A sink's logit joins the sum (-inf: there is none); what rescales the output is returned.
  A join_sink(A logit) noexcept { return logit == empty_max ? A(1) : merge({logit, A(1)}).self; }

  /// Natural log of the sum of exponentials of the scores seen; -inf if there were none.
  [[nodiscard]] A log_sum_exp() const noexcept {
    return sum == A(0) ? empty_max : max + std::log(sum);
  }
  /// What the output is multiplied with at the end: 1 / sum, and 0 for a row that saw nothing.
  [[nodiscard]] A normaliser() const noexcept { return sum == A(0) ? A(0) : A(1) / sum; }

 private:
  static A weight(A from, A to) noexcept {
    return from == empty_max ? A(0) : from == to ? A(1) : std::exp(from - to);
  }
};

/// Lanes of running maxima meet the maxima of a block: the new maxima, what to subtract from the
/// scores (the maximum; 0 in lanes that saw nothing, so that -inf stays -inf), what rescales the
/// past.
template <class A>
struct block_maximum {
  simd::packet<A> max;
  simd::packet<A> shift;
  simd::packet<A> rescale;

  HEED_INLINE block_maximum(const simd::packet<A>& running, const simd::packet<A>& block) noexcept {
    const simd::packet<A> lowest = simd::broadcast(softmax_state<A>::empty_max);
    max = simd::max(running, block);
    shift = simd::select(simd::equal(max, lowest), simd::zero<A>(), max);
    rescale = simd::exp_nonpositive<A>(simd::sub(running, shift));
  }
};

}  // namespace heed::inline HEED_TARGET::kernel
