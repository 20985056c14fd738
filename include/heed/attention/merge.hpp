// SPDX-License-Identifier: MIT
// Merging the results of attention over disjoint sets of keys into that over their union.
//
//   m = max(l1, l2), w = exp(l - m), out = (w1 out1 + w2 out2) / (w1 + w2), l = m + log(w1 + w2)
//
// with l the log-sum-exp of each. -inf is the empty result and merges as nothing; empty with empty
// is empty, whatever its output holds. Associative and commutative up to rounding: a merge is computed
// in double and rounds once, the output by eps / 2 of its size (of the stored scalar) and l by
// eps / 2 |l|, so that n merges err by at most n / 2 eps max |out| and as much of l.
// Throws shape_error before anything is written.
#pragma once

#include "heed/api/attention_arguments.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/online_softmax.hpp"

namespace heed::inline HEED_TARGET {

/// `out`, `lse` become the merge of themselves with `other_out`, `other_lse`.
template <writable_tensor Out, writable_tensor Lse, tensor_like Other, tensor_like OtherLse>
void merge_partials(Out&& out, Lse&& lse, const Other& other_out, const OtherLse& other_lse) {
  static_assert(rank_of<Out> == rank_of<const Other&>,
                "heed: the two outputs have different ranks");
  using A = accumulate_t<scalar_of<Out>>;
  const auto a = as_rank4(as_view(out));
  const auto b = api::input4(other_out);
  if (a.extents() != b.extents()) {
    fail<shape_error>("the other output has extents " + format_extents(b.extents()) +
                      ", the output has " + format_extents(a.extents()));
  }
  constexpr int rank = rank_of<Out>;
  api::check_lse<view_of<Lse>, rank>(as_view(lse), as_view(out).extents());
  api::check_lse<view_of<const OtherLse&>, rank>(as_view(other_lse), as_view(out).extents());
  const auto la = api::lse_as_rank3<A>(as_view(lse));
  const auto lb = api::lse_as_rank3<const A>(view<const A, rank - 1>(as_view(other_lse)));

  for (index n = 0; n < a.extent(0) * a.extent(1) * a.extent(2); ++n) {
    const index i = n % a.extent(2);
    const index h = n / a.extent(2) % a.extent(1);
    const index batch = n / (a.extent(1) * a.extent(2));
    A& l = la(batch, h, i);
    // A normalised result is a state whose sum is 1 at its log-sum-exp.
    using state_type = kernel::softmax_state<double>;
    const auto state_of = [](A x) {
      const auto at = static_cast<double>(x);
      return at == state_type::empty_max ? state_type{} : state_type{at, 1.0};
    };
    state_type state = state_of(l);
    const auto w = state.merge(state_of(lb(batch, h, i)));
    const double self = w.self * state.normaliser();
    const double rest = w.other * state.normaliser();
    for (index c = 0; c < a.extent(3); ++c) {
      const double x = self == 0 ? 0 : self * static_cast<double>(a(batch, h, i, c));
      const double y = rest == 0 ? 0 : rest * static_cast<double>(b(batch, h, i, c));
      a(batch, h, i, c) = static_cast<scalar_of<Out>>(static_cast<A>(x + y));
    }
    l = static_cast<A>(state.log_sum_exp());
  }
}

}  // namespace heed::inline HEED_TARGET
