// SPDX-License-Identifier: MIT
// Exact attention whose probabilities a modifier changes: row by row, for the modifier sees what a
// whole row has been summed to.
//
//   out_i = sum over visible j of f(exp(s_ij - lse_i) dropout_ij, position) v_j
//
// How `attention`, `decode` and ragged attention run with `probability(f)`. Products of q and k are
// in the accumulator type, sums over keys in double. Cost: 2 (D + Dv) FLOPs a visible pair, without
// packets; scratch of a worker: a row of scores and one of the output.
#pragma once

#include <cmath>

#include "heed/api/attention_overloads.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/online_softmax.hpp"
#include "heed/parallel/scratch_tasks.hpp"

namespace heed::inline HEED_TARGET::detail {

/// The scratch of one worker.
template <class A>
struct probability_scratch {
  A* scores = nullptr;    // [keys]
  double* out = nullptr;  // [value dim]
};

/// Row i of head h: scores, their log-sum-exp, then the values.
template <class Call>
void probability_row(const Call& call, index b, index h, index i,
                     const probability_scratch<typename Call::A>& scratch) noexcept {
  using A = typename Call::A;
  constexpr A hidden = softmax_state<A>::empty_max;
  const index kv = h / call.group();
  const index keys = call.source.length(b);
  const index kc = call.source.key_channel_stride();
  const index vc = call.source.value_channel_stride();
  const auto q = call.query_rows(b, h, i);
  position p{b, h, kv, call.options.offset[b] + i, 0, i};

  const A sink = call.program.sink_logit(h);
  A most = sink;
  for (index j = 0; j < keys; ++j) {
    p.key = j;
    scratch.scores[j] = hidden;
    if (!call.program.visible(p)) continue;
    const auto* const k = call.source.keys(b, kv, j).data;
    A dot = A(0);
    for (index c = 0; c < call.q.extent(3); ++c) {
      dot += static_cast<A>(*q.at(0, c)) * static_cast<A>(k[c * kc]);
    }
    const A s = call.program.modified(call.program.softcapped(dot * call.scale, p), p);
    scratch.scores[j] = s;
    if (!(s <= most)) most = s;  // a NaN is kept
  }
  double sum = sink == hidden ? 0.0 : std::exp(static_cast<double>(sink) - most);
  for (index j = 0; j < keys; ++j) {
    if (scratch.scores[j] != hidden) sum += std::exp(static_cast<double>(scratch.scores[j]) - most);
  }
  const double log_sum_exp = static_cast<double>(most) + std::log(sum);

  const index channels = call.out.extent(3);
  for (index c = 0; c < channels; ++c) scratch.out[c] = 0;
  for (index j = 0; j < keys; ++j) {
    if (scratch.scores[j] == hidden) continue;
    p.key = j;
    const double share = std::exp(static_cast<double>(scratch.scores[j]) - most) / sum;
    const A changed = call.program.changed_probability(
        static_cast<A>(share * static_cast<double>(call.program.dropout_factor(p))), p);
    const auto* const v = call.source.values(b, kv, j).data;
    for (index c = 0; c < channels; ++c) {
      scratch.out[c] += static_cast<double>(changed) * static_cast<double>(v[c * vc]);
    }
  }
  const auto out = call.output_rows(b, h, i);
  for (index c = 0; c < channels; ++c) {
    *out.at(0, c) = static_cast<typename Call::output_scalar>(static_cast<A>(scratch.out[c]));
  }
  if (A* lse = call.lse_rows(b, h, i)) *lse = sum == 0 ? hidden : static_cast<A>(log_sum_exp);
}

struct probability_kernel {
  template <class E, class Call>
  static void run(E& exec, const Call& call) {
    using A = typename Call::A;
    const score_extents e = call.extents;
    scratch_lease lease(call.options.scratch);
    workspace& memory = lease.memory();
    const auto allocate = [&](arena& c) noexcept {
      probability_scratch<A> s;
      s.scores = c.allocate<A>(e.keys);
      s.out = c.allocate<double>(call.out.extent(3));
      return s;
    };
    for_each_with_scratch(exec, e.batch * e.heads, memory, allocate,
                          [&](const probability_scratch<A>& scratch, index t) noexcept {
                            const index b = t / e.heads;
                            for (index i = 0; i < call.queries(b); ++i) {
                              probability_row(call, b, t % e.heads, i, scratch);
                            }
                          });
  }
};

}  // namespace heed::inline HEED_TARGET::detail
