// SPDX-License-Identifier: MIT
// Recall: the share of exact attention's probability that a mask, a pattern or a selection keeps.
//
//   recall of row i = sum of p_ij over the keys j kept / sum of p_ij over all keys it may see
//   p = softmax(scale q.k), causal or not
//
// What attention to the kept keys alone loses is at most 2 (1 - recall) max |v|: recall says
// whether a pattern suits a model's heads, before anything is built on it.
//
//   auto share = attention_recall(exec, q, k, blocks(pattern), {.stride = 64});
//   auto share = selection_recall(exec, q, k, mixture_of_blocks(...), 128, {.stride = 64});
//   auto share = log_sum_exp_recall(lse_of_lsh_attention, lse_of_attention);
//
// The results are [batch, heads], means over the rows looked at, in double; mean_recall(share) is
// that of all heads. Rows without a visible key do not count; a head without any other has 1. A
// NaN in a row's scores makes its head's recall NaN. Products and exponentials are in the
// accumulator type, their sums in double: relative error about (sqrt(head dim) |q||k| scale + 4)
// eps. Cost 2 D FLOPs and an exponential for each key and row looked at; memory O(M) a worker.
// Parallel over rows, the same bits for any number of threads. Throws shape_error, option_error,
// std::bad_alloc.
#pragma once

#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "heed/api/overloads.hpp"
#include "heed/core/target.hpp"
#include "heed/score/concepts.hpp"
#include "heed/sparse/select/top_k.hpp"

namespace heed::inline HEED_TARGET {

struct recall_options {
  index stride = 1;                            ///< every stride-th row, counted from the last
  bool causal = false;                         ///< a row may see keys up to its own position alone
  index offset = 0;                            ///< position of row 0
  std::optional<double> scale = std::nullopt;  ///< 1 / sqrt(head dim) where absent
};

namespace detail {

/// `kept(weights, where)` is the mass that is kept of a row of weights, `where` its tile.
template <class A, class E, class TQ, class TK, class Kept>
[[nodiscard]] tensor<double, 2> recall_of(E& exec, const view<const TQ, 4>& q,
                                          const view<const TK, 4>& k, const recall_options& o,
                                          const Kept& kept) {
  const index n = q.extent(2);
  const index heads = q.extent(1);
  const index d = q.extent(3);
  const index group = k.extent(1) > 0 ? heads / k.extent(1) : 1;
  const A scale = checked_finite<A>(
      "scale", o.scale ? *o.scale : 1 / std::sqrt(static_cast<double>(std::max<index>(d, 1))));
  const index first = n > 0 ? (n - 1) % o.stride : 0;
  const index sampled = ceil_div(n - first, o.stride);
  constexpr index rows = split_plan<A>::tile_rows;
  const index steps = ceil_div(sampled, rows);
  tensor<double, 3> of_rows({q.extent(0), heads, sampled});
  const auto keys_of = [&](index i) {
    return choosable({.causal = o.causal, .offset = o.offset}, i, k.extent(2));
  };
  for_each_scored<A>(exec, q.extent(0) * heads * steps, rows, k.extent(2), d,
                     [&](row_scores_scratch<A>& s, index t) noexcept {
                       const index b = t / steps / heads;
                       const index h = t / steps % heads;
                       const range m =
                           intersect({0, sampled}, {t % steps * rows, (t % steps + 1) * rows});
                       for (index r = 0; r < m.size(); ++r) {
                         s.load(r, &q(b, h, first + (m.begin + r) * o.stride, 0), q.stride(3), d);
                       }
                       s.score(m.size(), k, b, h / group, keys_of(first + (m.end - 1) * o.stride));
                       for (index r = 0; r < m.size(); ++r) {
                         const index i = first + (m.begin + r) * o.stride;
                         const index p = o.offset + i;
                         const tile where{b, h, h / group, {p, p + 1}, {0, keys_of(i)}, o.offset};
                         A* const weights = s.row(r);
                         softmax_weights(weights, where.keys.size(), scale);
                         double all = 0;
                         for (index j = 0; j < where.keys.end; ++j)
                           all += static_cast<double>(weights[j]);
                         // No key was visible: -1 marks a row that does not count.
                         of_rows(b, h, m.begin + r) = all == 0 ? -1.0 : kept(weights, where) / all;
                       }
                     });
  tensor<double, 2> recall({q.extent(0), heads});
  for (index b = 0; b < q.extent(0); ++b) {
    for (index h = 0; h < heads; ++h) {
      double sum = 0;
      index count = 0;
      for (index m = 0; m < sampled; ++m) {
        if (of_rows(b, h, m) == -1.0) continue;
        sum += of_rows(b, h, m);
        ++count;
      }
      recall(b, h) = count > 0 ? sum / static_cast<double>(count) : 1.0;
    }
  }
  return recall;
}

inline void check_recall(const std::array<index, 4>& q, const std::array<index, 4>& k,
                         const recall_options& o) {
  check_selection_call(q, k, {});
  check_row_positions(o.offset, q[2]);
  if (o.stride < 1) {
    fail<option_error>("stride is " + std::to_string(o.stride) + ", must be at least 1");
  }
}

}  // namespace detail

namespace detail {

struct attention_recall_method : api::method<recall_options> {
  template <class E, tensor_like Q, tensor_like K, mask_function M>
  [[nodiscard]] static tensor<double, 2> call(E& exec, const Q& q, const K& k, const M& of,
                                              const recall_options& o) {
    const auto q4 = detail::selection_input(q);
    const auto k4 = detail::selection_input(k);
    detail::check_recall(q4.extents(), k4.extents(), o);
    auto&& mask =
        bind_modifier(of, {q4.extent(0), q4.extent(1), k4.extent(1), q4.extent(2), k4.extent(2)});
    using A = accumulate_t<scalar_of<const Q&>>;
    constexpr index block = 128;  // keys a question to the mask
    return detail::recall_of<A>(exec, q4, k4, o, [&](const A* weights, const tile& where) {
      double kept = 0;
      tile t = where;
      while (!t.keys.empty()) {
        const range seen = intersect(t.keys, visible_keys_of(mask, t));
        if (seen.empty()) break;
        t.keys = {seen.begin, (std::min)(seen.end, (seen.begin / block + 1) * block)};
        const coverage c = coverage_of(mask, t);
        for (index j = t.keys.begin; c != coverage::empty && j < t.keys.end; ++j) {
          const position p{t.batch, t.head, t.kv_head, t.queries.begin, j, t.rows().begin};
          if (c == coverage::full || mask(p)) kept += static_cast<double>(weights[j]);
        }
        t.keys = {t.keys.end, where.keys.end};
      }
      return kept;
    });
  }
};

}  // namespace detail

/// attention_recall([executor,] q, k, mask, options): of any mask, combined masks and
/// `blocks(pattern)` among them. Tiles that the mask can tell are empty or full evaluate it no
/// more.
inline constexpr api::function<detail::attention_recall_method,
                               api::form<detail::attention_recall_method, 3>>
    attention_recall{};

namespace detail {

struct selection_recall_method : api::method<recall_options> {
  template <class E, tensor_like Q, tensor_like K, tensor_like S>
  [[nodiscard]] static tensor<double, 2> call(E& exec, const Q& q, const K& k, const S& selection,
                                              index block, const recall_options& o) {
    static_assert(std::is_integral_v<std::remove_const_t<scalar_of<const S&>>>,
                  "heed: a selection is a tensor of integers");
    const auto q4 = detail::selection_input(q);
    const auto k4 = detail::selection_input(k);
    const auto s4 = as_rank4(as_view(selection));
    detail::check_recall(q4.extents(), k4.extents(), o);
    if (block < 1) fail<option_error>("block is " + std::to_string(block) + ", must be at least 1");
    const bool heads =
        s4.extent(1) == 1 || s4.extent(1) == k4.extent(1) || s4.extent(1) == q4.extent(1);
    if ((s4.extent(0) != 1 && s4.extent(0) != q4.extent(0)) || !heads ||
        s4.extent(2) != q4.extent(2)) {
      fail<shape_error>("selection has extents " + format_extents(s4.extents()) +
                        " (batch, heads, queries, selected), q has " +
                        format_extents(q4.extents()) + " and k " + std::to_string(k4.extent(1)) +
                        " heads");
    }
    block = (std::min)(block, std::max<index>(k4.extent(2), 1));
    using A = accumulate_t<scalar_of<const Q&>>;
    return detail::recall_of<A>(exec, q4, k4, o, [&](A* weights, const tile& where) {
      const index b = s4.extent(0) == 1 ? 0 : where.batch;
      const index h = s4.extent(1) == 1              ? 0
                      : s4.extent(1) == q4.extent(1) ? where.head
                                                     : where.kv_head;
      double kept = 0;
      for (index c = 0; c < s4.extent(3); ++c) {
        const auto n = static_cast<index>(s4(b, h, where.rows().begin, c));
        if (n < 0 || n > where.keys.end / block) continue;
        for (index j = n * block; j < (std::min)(where.keys.end, (n + 1) * block); ++j) {
          // What has been counted is 0 a second time.
          kept += static_cast<double>(std::exchange(weights[j], A(0)));
        }
      }
      return kept;
    });
  }
};

}  // namespace detail

/// selection_recall([executor,] q, k, selection, block, options): of the keys that
/// `selected_attention` reads, [batch or 1, heads or kv heads or 1, queries, indices] blocks of
/// `block` keys; a negative index is none, a block selected twice counts once.
inline constexpr api::function<detail::selection_recall_method,
                               api::form<detail::selection_recall_method, 3, index>>
    selection_recall{};

/// log_sum_exp_recall(kept, exact): of any method that gives the log-sum-exps [batch, heads,
/// queries] of the keys it keeps, beside those of exact attention under the same causality and
/// modifiers: exp(kept - exact), no product at all. Without sinks: they join a sum, not a key.
template <tensor_like L, tensor_like M>
[[nodiscard]] tensor<double, 2> log_sum_exp_recall(const L& kept, const M& exact) {
  static_assert(rank_of<const L&> == 3 && rank_of<const M&> == 3,
                "heed: log-sum-exps have axes batch, heads, queries");
  const auto a = as_view(kept);
  const auto b = as_view(exact);
  if (a.extents() != b.extents()) {
    fail<shape_error>("kept has extents " + format_extents(a.extents()) + ", exact " +
                      format_extents(b.extents()));
  }
  tensor<double, 2> recall({a.extent(0), a.extent(1)});
  for (index n = 0; n < a.extent(0); ++n) {
    for (index h = 0; h < a.extent(1); ++h) {
      double sum = 0;
      index rows = 0;
      for (index i = 0; i < a.extent(2); ++i) {
        const auto whole = static_cast<double>(b(n, h, i));
        if (whole == -std::numeric_limits<double>::infinity()) continue;
        sum += std::exp(static_cast<double>(a(n, h, i)) - whole);
        ++rows;
      }
      recall(n, h) = rows > 0 ? sum / static_cast<double>(rows) : 1.0;
    }
  }
  return recall;
}

/// The mean over all batches and heads; 1 where there are none.
[[nodiscard]] inline double mean_recall(const tensor<double, 2>& recall) {
  double sum = 0;
  for (index i = 0; i < recall.size(); ++i) sum += recall.data()[i];
  return recall.size() > 0 ? sum / static_cast<double>(recall.size()) : 1.0;
}

}  // namespace heed::inline HEED_TARGET
