// SPDX-License-Identifier: MIT
// Tokens of a leaky sum, so that no digits go however little it forgets and however long it is.
//
//   h = exp(g) h + x     as   h + (expm1(g) h + x)     where exp(g) is above 1 / 2 or so
//
// The inner terms are small beside h, so that only the outer sum loses digits: those go to `low`,
// which joins the next token's x (Kahan 1965). expm1 is no difference of a rounded exponential: 1
// - 1e-6 rounded to float is 3 % of the gate off. A sum that decays by 1/16 or more with each token
// of a tile forgets its roundings as soon: one multiply-add does. So it does in double.
//
// With u = eps / 2 = 6e-8 in float, x_j the term of token j, G_tj the sum of the gates after it:
//
//   |computed - exact| <= sum_j (40 + 16 |G_tj|) u |x_j| exp(G_tj) + O(n u^2)
//
// 40 u are what 16 tokens remembered plainly add up to; compensated sums have 4 u in its place. 16
// |G_tj| u: the product with log2 e, and the exponential.
#pragma once

#include <cstddef>
#include <limits>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/linear/channel_blocks.hpp"
#include "heed/simd/exponential_parts.hpp"
#include "heed/simd/packet.hpp"

namespace heed::inline HEED_TARGET::detail {

/// How a tile of tokens is added up.
enum class decay_way {
  growing,     ///< plain, of any gates
  forgetting,  ///< plain, of gates below 0
  mixed,       ///< compensated, of gates below largest_gate
  near_one,    ///< compensated, of gates in [-1, 0]
};
/// Whether sums in A are compensated at all.
template <class A>
inline constexpr bool compensates = std::is_same_v<A, float>;
/// Sums that grow faster than this are added up plainly.
inline constexpr float largest_gate = 64.0F;

/// The way of gates between -fast and slow, lanes apart; a NaN makes no difference.
template <class A>
[[nodiscard]] HEED_INLINE decay_way way_of(const simd::packet<A>& fast,
                                           const simd::packet<A>& slow) noexcept {
  const A slowest = simd::largest(slow);
  if (!compensates<A>) return slowest > 0 ? decay_way::growing : decay_way::forgetting;
  if (slowest <= A(-0.0625)) return decay_way::forgetting;
  if (!(slowest > 0) && !(simd::largest(fast) > 1)) return decay_way::near_one;
  return slowest > A(largest_gate) ? decay_way::growing : decay_way::mixed;
}

/// One token: base h and factor expm1(g), or base 0 and factor exp(g). What was kept is in x.
template <class P>
HEED_INLINE void add_compensated_token(const P& factor, const P& base, P& h, P& low,
                                       const P& x) noexcept {
  const P term = simd::fmadd(factor, h, x);
  h = simd::opaque(simd::add(base, term));
  low = simd::sub(term, simd::opaque(simd::sub(h, base)));
}

/// N packets of gates, natural or with `Binary` powers of 2. Way is one of the compensated ones.
template <int N, bool Binary, decay_way Way>
class decay_step {
  using P = simd::packet<float>;
  static constexpr bool all_near = Way == decay_way::near_one;

 public:
  HEED_INLINE explicit decay_step(const P* gate) noexcept {
    simd::unroll<N>([&](auto i) HEED_INLINE_LAMBDA { factor_[i] = gate[i]; });
    if constexpr (all_near) {
      simd::expm1_near_zero<N, Binary>(factor_);
    } else {
      P power[std::size_t{N}];
      simd::exp_in_parts<N, Binary>(factor_, power);
      simd::unroll<N>([&](auto i) HEED_INLINE_LAMBDA {
        near_[i] = simd::less(simd::broadcast(0.499F), power[i]);
        const P one = simd::both(near_[i], simd::broadcast(1.0F));
        factor_[i] = simd::fmadd(factor_[i], power[i], simd::sub(power[i], one));
      });
    }
  }
  /// What of `low` joins the next term of packet i.
  template <class I>
  [[nodiscard]] HEED_INLINE P kept(I i, const P& low) const noexcept {
    if constexpr (all_near) {
      return low;
    } else {
      return simd::both(near_[i], low);
    }
  }
  /// h and its low part after the token; what was kept is in x.
  template <class I>
  HEED_INLINE void advance(I i, P& h, P& low, const P& x) const noexcept {
    add_compensated_token(factor_[i], kept(i, h), h, low, x);
  }

 private:
  P factor_[std::size_t{N}];
  P near_[std::size_t{all_near ? 1 : N}];
};

/// Whether a tile has left no new infinity or NaN in whole packets of sums. An infinite sum makes a
/// compensated one a NaN, where the formula has it stay.
template <class A>
[[nodiscard]] bool stayed_finite(const A* before, const A* after, index count) noexcept {
  A finite = A(0);
  for (index i = 0; i < count; i += simd::lanes<A>) {
    const auto was = simd::load<A>(before + i), is = simd::load<A>(after + i);
    const auto one =
        simd::both(simd::equal(simd::sub(is, is), simd::zero<A>()), simd::broadcast(A(1)));
    finite += simd::sum(simd::select(simd::equal(was, was), one, simd::broadcast(A(1))));
  }
  return finite == static_cast<A>(count);
}

/// A packet of a segment's own sum joins what came before it, decayed by all of the segment.
template <class A, bool Binary>
HEED_INLINE void join_decayed(const A* before, const A* before_low, const simd::packet<A>& gate,
                              A* h, A* low) noexcept {
  using P = simd::packet<A>;
  P e[1] = {gate};
  scan_exp<A, 1, false, Binary>(e);
  const P own = simd::load<A>(h);
  const P plain = simd::fmadd(e[0], simd::load<A>(before), own);
  if constexpr (compensates<A>) {
    const decay_step<1, Binary, decay_way::mixed> step(&gate);
    constexpr std::integral_constant<int, 0> first{};
    P sum = simd::load<A>(before), rest = simd::load<A>(before_low);
    step.advance(first, sum, rest, simd::add(own, step.kept(first, rest)));
    rest = simd::add(rest, simd::load<A>(low));
    const P most = simd::broadcast((std::numeric_limits<A>::max)());
    const P good =
        simd::both(simd::less(gate, simd::broadcast(largest_gate)),
                   simd::both(simd::less(simd::abs(rest), most), simd::less(simd::abs(sum), most)));
    simd::store(h, simd::select(good, sum, plain));
    simd::store(low, simd::both(good, rest));
  } else {
    simd::store(h, plain);
  }
}

/// sum[c] += x[t][c] over rows t, low[c] what the roundings have lost: whole packets.
template <class A>
void add_rows(const A* x, index rows, index columns, index stride, A* sum, A* low) noexcept {
  for (index c = 0; c < columns; c += simd::lanes<A>) {
    auto term = simd::load<A>(low + c);
    for (index t = 0; t < rows; ++t) term = simd::add(term, simd::load<A>(x + t * stride + c));
    const auto before = simd::load<A>(sum + c);
    const auto total = simd::opaque(simd::add(before, term));
    const auto lost = simd::sub(term, simd::opaque(simd::sub(total, before)));
    simd::store(sum + c, total);
    simd::store(low + c, simd::both(simd::equal(lost, lost), lost));
  }
}

}  // namespace heed::inline HEED_TARGET::detail
