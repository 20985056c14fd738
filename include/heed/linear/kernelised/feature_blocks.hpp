// SPDX-License-Identifier: MIT
// Kernelised attention whose features need more than the token: its position, or whether it is a
// query.
//
// Tokens are taken a block at a time: features of the block's queries and keys are written to two
// arrays, and the recurrence of linear_attention with identity features goes on from the state.
// Memory is that of one block and of the state's low parts, whatever the number of tokens.
#pragma once

#include <algorithm>
#include <utility>

#include "heed/api/linear_overloads.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/linear/kernelised/linear_attention.hpp"

namespace heed::inline HEED_TARGET::detail {

/// Rows of features to be written, and of which tokens: of queries or of keys.
template <class A>
struct feature_request {
  index batch;
  index head;
  range tokens;
  bool query;
  view<A, 2> to;
};

template <class A>
struct feature_call {
  index features;
  bool causal;
  double eps;
  linear_state_view<A> state;
  workspace* scratch;
};

/// fill(x, request) writes features of rows of x, noexcept, from several threads.
template <class A, class E, class TQ, class TK, class TV, class TO, class Fill>
void run_feature_blocks(E& exec, const view<const TQ, 4>& q, const view<const TK, 4>& k,
                        const view<const TV, 4>& v, const view<TO, 4>& out,
                        const feature_call<A>& call, const Fill& fill) {
  const index block = (std::min)(tuning<kernel::feature_blocks, A>::tokens,
                                 std::max<index>({q.extent(2), k.extent(2), 1}));
  tensor<A, 4> phi_q({q.extent(0), q.extent(1), block, call.features});
  tensor<A, 4> phi_k({k.extent(0), k.extent(1), block, call.features});
  // One recurrence with one chunk size for every block: what the first of them reserves suffices for
  // the others, so that nothing is written by a call that cannot be completed.
  const index tokens = (std::max)(q.extent(2), k.extent(2));
  const index step = tokens < 8 ? 1 : std::min<index>(block, linear_options{}.chunk);
  const identity_features map;
  kernelised_recurrence<A, A, A, TV, TO, identity_features> r{as_view(std::as_const(phi_q)),
                                                              as_view(std::as_const(phi_k)),
                                                              v,
                                                              out,
                                                              call.state,
                                                              map,
                                                              call.features,
                                                              step,
                                                              true,
                                                              static_cast<A>(call.eps),
                                                              A(1)};
  // The low parts of the sums go from block to block.
  const bool several = k.extent(2) > block;
  linear_state<A> low({several ? k.extent(0) : 0, k.extent(1), call.features, v.extent(3)});
  if (several) r.low = low;
  scratch_lease lease(call.scratch);
  workspace& memory = lease.memory();
  const auto fill_all = [&](const auto& x, tensor<A, 4>& phi, range t, bool query) {
    const index heads = x.extent(1);
    const index tasks = x.extent(0) * heads;
    const index workers = worker_count(exec, tasks);
    for_each_task(exec, workers, tasks, [&](index, index i) noexcept {
      const view<A, 4> all = as_view(phi);
      fill(x, feature_request<A>{i / heads, i % heads, t, query, all[i / heads][i % heads]});
    });
    return as_view(std::as_const(phi)).slice(2, 0, t.size());
  };
  const auto blocks = [block](index count, const auto& f) {
    for (index t = 0; t < count; t += block) f(range{t, (std::min)(t + block, count)});
  };
  const auto select = [&](range queries, range keys) {
    r.q = fill_all(q, phi_q, queries, true);
    r.k = fill_all(k, phi_k, keys, false);
    r.v = v.slice(2, keys.begin, keys.end);
    r.out = out.slice(2, queries.begin, queries.end);
  };
  const range none{0, 0};
  if (call.causal) {
    blocks(q.extent(2), [&](range t) {
      select(t, t);
      if (step == 1) {
        run_recurrent(exec, r, memory);
      } else {
        run_chunked(exec, r, memory);
      }
    });
  } else {
    blocks(k.extent(2), [&](range t) {
      select(none, t);
      run_separately(exec, r, step, memory);
    });
    blocks(q.extent(2), [&](range t) {
      select(t, none);
      run_separately(exec, r, step, memory);
    });
  }
}

/// Checks what a call of this kind shares with linear_attention, and runs it from the caller's
/// state or an own one.
template <class A, class E, class Out, class Q, class K, class V, class State, class Fill>
void call_feature_blocks(E& exec, Out&& out, const Q& q, const K& k, const V& v, State&& state,
                         feature_call<A> call, const Fill& fill) {
  static_assert(writable_tensor<Out>, "heed: the output is not a tensor that can be written");
  const auto q4 = linear_input(q);
  const auto k4 = linear_input(k);
  const auto v4 = linear_input(v);
  check_linear_shapes(q4.extents(), k4.extents(), v4.extents(), call.causal);
  const auto o4 = as_rank4(as_view(std::forward<Out>(out)));
  const std::array<index, 4> expected{q4.extent(0), q4.extent(1), q4.extent(2), v4.extent(3)};
  if (o4.extents() != expected) {
    fail<shape_error>("out has extents " + format_extents(o4.extents()) + ", the result has " +
                      format_extents(expected));
  }
  const std::array<index, 4> sum{k4.extent(0), k4.extent(1), call.features, v4.extent(3)};
  if constexpr (std::is_same_v<std::remove_cvref_t<State>, no_state>) {
    linear_state<A> own({sum[0], sum[1], sum[2], sum[3]});
    call.state = own;
    run_feature_blocks(exec, q4, k4, v4, o4, call, fill);
  } else {
    static_assert(linear_state_like<State>,
                  "heed: the state is no linear_state or linear_state_view, or is constant");
    if constexpr (linear_state_like<State>) call.state = state;
    check_linear_state<A>(call.state, sum, true);
    run_feature_blocks(exec, q4, k4, v4, o4, call, fill);
  }
}

}  // namespace heed::inline HEED_TARGET::detail
