// SPDX-License-Identifier: MIT
// Where one cost overtakes another, and the largest problem that a budget allows.
//
// Both answers are found by bisection on the token count, so that they are exact integers of the
// model, whatever its formula. They need monotone costs: `crossover` a quotient a(n) / b(n) that
// does not fall, `largest_affordable` a time and a memory that do not.
#pragma once

#include <optional>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/cost/attention.hpp"
#include "heed/cost/band.hpp"
#include "heed/cost/model.hpp"
#include "heed/cost/work.hpp"

namespace heed::inline HEED_TARGET::cost {

/// Searches stop here, where the pairs of one head still fit an index.
inline constexpr index max_tokens = index{1} << 31;

namespace detail {
/// The smallest n in [low, high] with holds(n), or high + 1. `holds` stays true once it is.
template <class Predicate>
constexpr index first_true(index low, index high, const Predicate& holds) {
  index end = high + 1;
  while (low < end) {
    const index middle = low + (end - low) / 2;
    if (holds(middle)) {
      end = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}
}  // namespace detail

/// The smallest n >= 1 with a(n) >= b(n); none when a stays below b up to `limit`.
template <class A, class B>
[[nodiscard]] constexpr std::optional<index> crossover(const A& a, const B& b,
                                                       index limit = max_tokens) {
  const index n = detail::first_true(1, limit, [&](index i) { return a(i) >= b(i); });
  if (n > limit) return std::nullopt;
  return n;
}

/// What a crossover of attention with the feed-forward layer counts on attention's side.
enum class attention_part {
  products,         ///< Q K' and P V only
  with_projections  ///< and the projections to queries, keys, values and output
};

/// The number of tokens at which one layer's attention does as many FLOPs as its feed-forward
/// layer: the smallest n with attention(n) >= feed_forward(n). In closed form, with W the
/// feed-forward weights a token meets, W' the attention projections when they count (else 0), and
/// c = Hq (D + Dv):
///
///   every key visible   n >= (W - W') / c           (4 d for the plain layer of width 4 d)
///   causal              n >= 2 (W - W') / c - 1     (8 d - 1)
///
/// `layer` matters for mixtures of experts, whose first layers may be dense.
[[nodiscard]] constexpr index attention_overtakes_feed_forward(
    const model& m, bool causal_mask = false, attention_part part = attention_part::products,
    std::optional<index> layer = {}) noexcept {
  const double width = static_cast<double>(m.query_heads * (m.head_dim + m.values()));
  const double surplus =
      active_feed_forward_weights(m, layer.value_or(m.layers - 1)) -
      (part == attention_part::with_projections ? attention_projection_weights(m) : 0.0);
  const auto n = static_cast<index>(surplus / width);  // towards zero
  const auto holds = [&](index i) {
    const double pairs_per_token =
        causal_mask ? (static_cast<double>(i) + 1) / 2 : static_cast<double>(i);
    return pairs_per_token * width >= surplus;
  };
  // From the estimate to the exact integer: a step or two.
  index at = causal_mask ? 2 * n - 2 : n - 1;
  if (at < 1) at = 1;
  while (!holds(at)) ++at;
  return at;
}

struct budget {
  double seconds = 1;
  double bytes = 1024.0 * 1024.0 * 1024.0;
};

/// What runs out first: time, memory, or neither.
enum class limit { time, memory, none };

/// The most tokens that a budget affords, and what the next one would exceed.
struct affordable {
  index tokens = 0;  ///< 0 when not even one token fits
  limit by = limit::none;
};

/// The largest n whose `seconds(n)` and `extra_memory(n)` both stay within the budget, and what
/// stops n + 1.
template <class Seconds, class Memory>
[[nodiscard]] constexpr affordable largest_affordable(const budget& b, const Seconds& seconds,
                                                      const Memory& extra_memory,
                                                      index most = max_tokens) {
  const index over = detail::first_true(
      1, most, [&](index n) { return seconds(n) > b.seconds || extra_memory(n) > b.bytes; });
  if (over > most) return {most, limit::none};
  return {over - 1, extra_memory(over) > b.bytes ? limit::memory : limit::time};
}

/// The same for a cost `estimate(n)` -> work under a roofline.
template <class Estimate>
[[nodiscard]] constexpr affordable largest_affordable(const budget& b, const roofline& machine,
                                                      const Estimate& estimate,
                                                      index most = max_tokens) {
  return largest_affordable(
      b, [&](index n) { return machine.seconds(estimate(n)); },
      [&](index n) { return estimate(n).extra_memory; }, most);
}

}  // namespace heed::inline HEED_TARGET::cost
