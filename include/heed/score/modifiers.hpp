// SPDX-License-Identifier: MIT
// Modifiers by formula: softcap, ALiBi, attention sink, dropout, a change of the probabilities.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>

#include "heed/core/target.hpp"
#include "heed/score/concepts.hpp"

namespace heed::inline HEED_TARGET {

/// c tanh(s / c): bounds scores to (-c, c). Acts before every other modifier, wherever it is
/// written.
struct softcap {
  static constexpr stage when = stage::softcap;
  double cap;

  explicit constexpr softcap(double c) noexcept : cap(c) {}

  template <class A>
  [[nodiscard]] A operator()(A s, const position&) const noexcept {
    return static_cast<A>(cap) * std::tanh(s / static_cast<A>(cap));
  }
  void check(const score_extents&) const {
    if (!(cap > 0)) fail<option_error>("softcap is " + std::to_string(cap) + ", must be positive");
  }
};

/// s - slope[h] |p - j|. Press, Smith, Lewis 2021, arXiv 2108.12409, section 3.
///
/// Without slopes: n = 2^floor(log2 H); head h < n has 2^(-8(h+1)/n), the others
/// 2^(-4(2(h-n)+1)/n), the paper's interpolation for head counts that are no power of two.
class alibi {
 public:
  static constexpr stage when = stage::score;

  constexpr alibi() noexcept = default;
  /// One slope per query head; the numbers must outlive the call.
  explicit constexpr alibi(std::span<const double> per_head) noexcept : given_(per_head) {}

  [[nodiscard]] static double default_slope(index head, index heads) noexcept {
    index n = 1;
    while (2 * n <= heads) n *= 2;
    const auto h = static_cast<double>(head);
    const auto d = static_cast<double>(n);
    return head < n ? std::exp2(-8.0 * (h + 1) / d) : std::exp2(-4.0 * (2 * (h - d) + 1) / d);
  }
  [[nodiscard]] double slope(index head) const noexcept {
    return given_.data() != nullptr ? given_[static_cast<std::size_t>(head)]
                                    : default_slope(head, heads_);
  }

  template <class A>
  [[nodiscard]] A operator()(A s, const position& p) const noexcept {
    return biased(s, p, static_cast<A>(slope(p.head)));
  }
  /// The modifier of one head, its slope at hand.
  template <class A>
  [[nodiscard]] auto for_head(index head) const noexcept {
    const auto m = static_cast<A>(slope(head));
    return [m](A s, const position& p) noexcept { return biased(s, p, m); };
  }
  [[nodiscard]] alibi bind(const score_extents& e) const {
    if (given_.data() != nullptr && static_cast<index>(given_.size()) != e.heads) {
      fail<shape_error>("alibi has " + std::to_string(given_.size()) + " slopes, q has " +
                        std::to_string(e.heads) + " heads");
    }
    alibi bound = *this;
    bound.heads_ = e.heads;
    return bound;
  }

 private:
  template <class A>
  static A biased(A s, const position& p, A m) noexcept {
    return s - m * std::abs(static_cast<A>(p.query - p.key));
  }
  std::span<const double> given_;
  index heads_ = 1;  // those of the call a modifier is bound to
};

/// A logit per query head that joins the denominator alone, unscaled: attention may go nowhere.
/// Xiao et al. 2023, arXiv 2309.17453; as a learned logit, gpt-oss 2025.
template <class T>
struct sink_logits {
  static constexpr stage when = stage::sink;
  std::span<const T> logits;

  void check(const score_extents& e) const {
    if (static_cast<index>(logits.size()) != e.heads) {
      fail<shape_error>("sink has " + std::to_string(logits.size()) + " logits, q has " +
                        std::to_string(e.heads) + " heads");
    }
  }
};

/// One logit per query head, in a contiguous container that outlives the call.
template <class C>
[[nodiscard]] constexpr auto sink(const C& logits) noexcept {
  using T = std::remove_cvref_t<decltype(*std::data(logits))>;
  return sink_logits<T>{std::span<const T>(std::data(logits), std::size(logits))};
}

/// Drops probabilities and scales the rest by 1 / (1 - probability); the softmax's denominator is
/// that of the undropped scores. The decision is a pure function of (seed, batch, head, row, key),
/// so that every tiling, thread count and the backward pass agree.
struct dropout {
  static constexpr stage when = stage::dropout;
  double probability = 0;
  std::uint64_t seed = 0;

  /// What multiplies the probability at `p`: 0 or 1 / (1 - probability).
  [[nodiscard]] double factor(const position& p) const noexcept {
    std::uint64_t x = seed;
    for (const index coordinate : {p.batch, p.head, p.row, p.key}) {
      x = mix(x + 0x9E3779B97F4A7C15U + static_cast<std::uint64_t>(coordinate));
    }
    const double uniform = static_cast<double>(x >> 11U) * 0x1p-53;
    return uniform < probability ? 0.0 : 1.0 / (1.0 - probability);
  }
  void check(const score_extents&) const {
    if (!(probability >= 0 && probability < 1)) {
      fail<option_error>("dropout probability is " + std::to_string(probability) +
                         ", must be in [0, 1)");
    }
  }

 private:
  /// The finaliser of SplitMix64 (Steele, Lea, Flood 2014, doi 10.1145/2660193.2660195).
  static constexpr std::uint64_t mix(std::uint64_t x) noexcept {
    x = (x ^ (x >> 30U)) * 0xBF58476D1CE4E5B9U;
    x = (x ^ (x >> 27U)) * 0x94D049BB133111EBU;
    return x ^ (x >> 31U);
  }
};

/// p -> f(p, position) on the probabilities of visible pairs, after dropout; the log-sum-exp is as
/// without. Each row is then scored and summed before its values are read, one row at a time:
/// `attention`, `decode`, ragged and naive attention do so; forms that see a row in parts refuse it.
template <class F>
struct probability_modifier {
  static constexpr stage when = stage::probability;
  F f;
};
/// `probability(f)`: f changes each probability of naive attention.
template <class F>
[[nodiscard]] constexpr probability_modifier<F> probability(F f) {
  return {std::move(f)};
}

}  // namespace heed::inline HEED_TARGET
