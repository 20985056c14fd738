// SPDX-License-Identifier: MIT
// The textbook: scores, softmax, weighted sum, every score materialised. The oracle of every
// kernel.
//
//   s_ij = scale q_i.k_j -> softcap -> score modifiers -> bias -> mask (-inf)
//   p_ij = exp(s_ij - max_j s_ij) / sum_j exp(s_ij - max_j s_ij),   out_i = sum_j p_ij v_j
//
// Dot products, sums and weighted sums are made in double, in the order of the keys; scores, which
// modifiers see, are rounded to the accumulator type. For inputs of float and narrower the result is
// thus that of its rounded scores, within an eps or two of float at any length; for double the sums
// add (head dim + keys) eps. A masked pair contributes nothing whatever k and v hold; an unmasked
// NaN propagates; a row without a visible key gives 0 and log-sum-exp -inf. A score of -inf counts
// for nothing, as if masked. Cost per head: 4 N M D FLOPs; N M scores of scratch a worker. Rows of
// k and v past `lengths` are never read. Vaswani et al. 2017, arXiv 1706.03762, equation 1. Throws
// shape_error, option_error, std::bad_alloc, before anything is written.
#pragma once

#include "heed/api/attention_overloads.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/online_softmax.hpp"

namespace heed::inline HEED_TARGET {

/// The scores of a call at every stage, [batch, heads, queries, keys], and the result.
template <class A>
struct attention_stages {
  tensor<A, 4> scaled;         ///< scale q.k, of masked pairs too
  tensor<A, 4> softcapped;     ///< after softcap
  tensor<A, 4> masked;         ///< after score modifiers, bias and masks; -inf where masked
  tensor<A, 4> probabilities;  ///< after softmax (dropout and probability modifiers included)
  tensor<A, 4> output;
  tensor<A, 3> log_sum_exp;
};

namespace detail {

/// Scores and output of one head, in full view of the reader. `scores` holds queries x keys, `sums`
/// a row of the output; `stages` may be null.
template <class Call, class A>
void naive_head(const Call& call, index b, index h, A* scores, double* sums,
                attention_stages<A>* stages) noexcept {
  const index queries = call.queries(b);
  const index kv = h / call.group();
  const index keys = call.source.length(b);
  const index offset = call.options.offset[b];
  const index kc = call.source.key_channel_stride();
  const index vc = call.source.value_channel_stride();
  constexpr A masked = softmax_state<A>::empty_max;

  for (index i = 0; i < queries; ++i) {
    const auto q = call.query_rows(b, h, i);
    A* s = scores + i * keys;
    for (index j = 0; j < keys; ++j) {
      const position p{b, h, kv, offset + i, j, i};
      const bool visible = call.program.visible(p);
      if (!visible && stages == nullptr) {
        s[j] = masked;
        continue;
      }
      const auto* k = call.source.keys(b, kv, j).data;
      double dot = 0;
      for (index c = 0; c < call.q.extent(3); ++c) {
        dot += static_cast<double>(*q.at(0, c)) * static_cast<double>(k[c * kc]);
      }
      const A scaled = static_cast<A>(dot * static_cast<double>(call.scale));
      const A capped = call.program.softcapped(scaled, p);
      s[j] = visible ? call.program.modified(capped, p) : masked;
      if (stages != nullptr) {
        stages->scaled(b, h, i, j) = scaled;
        stages->softcapped(b, h, i, j) = capped;
        stages->masked(b, h, i, j) = s[j];
      }
    }
  }

  for (index i = 0; i < queries; ++i) {
    const A* s = scores + i * keys;
    A top = call.program.sink_logit(h);
    for (index j = 0; j < keys; ++j) top = !(s[j] <= top) ? s[j] : top;
    const auto exponential = [top](A score) {
      return std::exp(static_cast<double>(score) - static_cast<double>(top));
    };
    double sum = 0;
    if constexpr (Call::program_type::template has<stage::sink>) {
      const A sink = call.program.sink_logit(h);
      if (sink != masked) sum = exponential(sink);
    }
    for (index j = 0; j < keys; ++j) {
      if (s[j] != masked) sum += exponential(s[j]);
    }
    for (index c = 0; c < call.out.extent(3); ++c) sums[c] = 0;
    for (index j = 0; j < keys; ++j) {
      const position p{b, h, kv, offset + i, j, i};
      double weight = 0;
      if (s[j] != masked) {
        weight = exponential(s[j]) / sum * static_cast<double>(call.program.dropout_factor(p));
        if constexpr (Call::program_type::template has<stage::probability>) {
          weight = static_cast<double>(call.program.changed_probability(static_cast<A>(weight), p));
        }
      }
      if (stages != nullptr) stages->probabilities(b, h, i, j) = static_cast<A>(weight);
      if (s[j] == masked) continue;
      const auto* v = call.source.values(b, kv, j).data;
      for (index c = 0; c < call.out.extent(3); ++c) {
        sums[c] += weight * static_cast<double>(v[c * vc]);
      }
    }
    const auto out = call.output_rows(b, h, i);
    for (index c = 0; c < call.out.extent(3); ++c) {
      *out.at(0, c) = static_cast<typename Call::output_scalar>(static_cast<A>(sums[c]));
    }
    if (A* lse = call.lse_rows(b, h, i))
      *lse = sum == 0 ? masked : static_cast<A>(static_cast<double>(top) + std::log(sum));
  }
}

struct naive_kernel {
  template <class E, class Call>
  static void run(E& exec, const Call& call, attention_stages<typename Call::A>* stages = nullptr) {
    using A = typename Call::A;
    const score_extents e = call.extents;
    const index tasks = e.batch * e.heads;
    const index workers = worker_count(exec, tasks);
    scratch_lease memory(call.options.scratch);
    const auto allocate = [&](arena c, A*& scores, double*& sums) {
      scores = c.allocate<A>(e.queries, e.keys);
      sums = c.allocate<double>(call.out.extent(3));
      return c.used();
    };
    A* scores = nullptr;
    double* sums = nullptr;
    const std::size_t each = allocate(arena(), scores, sums);
    std::byte* const block = memory.reserve(each, workers);
    for_each_task(exec, workers, tasks, [&](index worker, index t) {
      A* s = nullptr;
      double* row = nullptr;
      (void)allocate(arena(block + static_cast<std::size_t>(worker) * each), s, row);
      naive_head(call, t / e.heads, t % e.heads, s, row, stages);
    });
  }
};

}  // namespace detail

/// naive_attention([executor,] q, k, v, options = {}, modifiers...) -> a tensor of q's family
inline constexpr api::returning_form<detail::naive_kernel> naive_attention{};
/// naive_attention_into([executor,] out | into(out, lse), q, k, v, options = {}, modifiers...)
inline constexpr api::writing_form<detail::naive_kernel> naive_attention_into{};
/// naive_attention_with_lse([executor,] q, k, v, options = {}, modifiers...) -> attention_result
inline constexpr api::lse_form<detail::naive_kernel> naive_attention_with_lse{};

/// The same, with every stage of the scores.
template <class Q, class K, class V, class... M>
[[nodiscard]] auto naive_attention_stages(const Q& q, const K& k, const V& v,
                                          const attention_options& options = {},
                                          const M&... modifiers) {
  using A = accumulate_t<scalar_of<const Q&>>;
  tensor<A, rank_of<const Q&>> out(api::result_extents(q, v));
  auto lse = api::make_lse(q);
  auto call = api::open_call(into(out, lse), q, k, v, options, modifiers...);
  const score_extents e = call.extents;
  const std::array<index, 4> scores{e.batch, e.heads, e.queries, e.keys};
  attention_stages<A> stages{tensor<A, 4>(scores),
                             tensor<A, 4>(scores),
                             tensor<A, 4>(scores),
                             tensor<A, 4>(scores),
                             tensor<A, 4>({e.batch, e.heads, e.queries, call.out.extent(3)}),
                             tensor<A, 3>({e.batch, e.heads, e.queries})};
  call.out = as_view(stages.output);
  call.lse = as_view(stages.log_sum_exp);
  serial_executor exec;
  detail::naive_kernel::run(exec, call, &stages);
  return stages;
}

}  // namespace heed::inline HEED_TARGET
