// SPDX-License-Identifier: MIT
// Forgetting attention: exact softmax attention whose scores fade by the gates between query and
// key.
//
//   s_ij = scale q_i.k_j + G_i - G_j,   G_i = g_0 + ... + g_i,   j <= i
//
// g, the natural log of a forget gate (at most 0), is per query head and token.
//
//   auto out = heed::forgetting_attention(q, k, v, g);
//   auto out = heed::forgetting_attention(pool, q, k, v, g, options, heed::window{.left = 9});
//   heed::forgetting_attention_into(out, q, k, v, g);    // or into(out, lse); executor first
//
//   const heed::forget_gates gates(g);                         // or the modifier alone, in decode:
//   heed::attention(q1, k, v, {.offset = past}, gates, heed::causal());
//
// | argument | axes                                                                       |
// |----------|----------------------------------------------------------------------------|
// | q, k, v  | as heed::attention                                                         |
// | g        | [batch, heads, tokens], or [heads, tokens], [tokens]; tokens = keys        |
//
// The sums are double, compensated (Neumaier 1974), and only their difference is rounded to the
// accumulator type: its error is an eps of the difference, however many tokens precede the window.
// A gate of -inf hides every earlier token: G restarts there, and counts of restarts are compared.
// A NaN gate reaches the queries at or past it. A query past the last gate counts as the last
// token. Causal always; every option and modifier of heed::attention still applies. The gate of
// the query's own token does not fade its own key.
// Cost: that of heed::attention with a score modifier; 16 bytes a gate. Errors as heed::attention,
// shape_error where g fits neither q nor k. Source: Lin, Nikishin, He, Courville 2025, arXiv
// 2503.02130, eq. 5 to 8.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include "heed/attention/exact.hpp"
#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {
/// Gates [batch, heads, tokens], whose missing leading axes count as 1.
template <class T, int R>
[[nodiscard]] view<T, 3> gates_as_rank3(const view<T, R>& x) {
  static_assert(R <= 3, "heed: gates are [batch, heads, tokens]");
  std::array<index, 3> e{1, 1, 1};
  std::array<index, 3> s{0, 0, 0};
  for (int a = 0; a < R; ++a) {
    e[static_cast<std::size_t>(3 - R + a)] = x.extent(a);
    s[static_cast<std::size_t>(3 - R + a)] = x.stride(a);
  }
  return view<T, 3>(x.data(), e, s);
}
}  // namespace detail

/// The score modifier s + G_i - G_j. Owns the sums; keep it alive during the call.
class forget_gates {
 public:
  static constexpr stage when = stage::score;
  static constexpr bool adds_only = true;  ///< its derivative by the score is 1

  /// g is [batch, heads, tokens]; missing leading axes count as 1.
  template <tensor_like Gates>
  explicit forget_gates(const Gates& g) {
    const auto gates = detail::gates_as_rank3(as_view(g));
    const auto e = gates.extents();
    sums_ = tensor<double, 4>({e[0], e[1], e[2], 2});
    for (index b = 0; b < e[0]; ++b) {
      for (index h = 0; h < e[1]; ++h) accumulate(gates, b, h);
    }
  }

  template <class A>
  [[nodiscard]] A operator()(A s, const position& p) const noexcept {
    return for_head<A>(p.head)(s, p);
  }
  /// The sums of one head, for a loop over its scores: pointers, where a copy of the modifier would
  /// copy the sums.
  template <class A>
  [[nodiscard]] auto for_head(index head) const noexcept {
    return [rows = sums_.data() + head * 2 * sums_.extent(2),
            batch_stride = sums_.extent(1) * 2 * sums_.extent(2),
            last = sums_.extent(2) - 1](A s, const position& p) noexcept {
      const double* const row = rows + p.batch * batch_stride;
      const double* const at = row + 2 * std::clamp<index>(p.query, 0, last);
      const double* const from = row + 2 * p.key;
      if (at[1] != from[1]) return -std::numeric_limits<A>::infinity();
      return s + static_cast<A>(at[0] - from[0]);
    };
  }
  void check(const score_extents& e) const {
    require_equal("gates", "batch", sums_.extent(0), "q", e.batch);
    require_equal("gates", "heads", sums_.extent(1), "q", e.heads);
    require_equal("gates", "tokens", sums_.extent(2), "k", e.keys);
  }

 private:
  // Of each token the sum of the gates so far, and how many of them were -inf: [batch, heads,
  // tokens, 2].
  tensor<double, 4> sums_;

  template <class V>
  void accumulate(const V& gates, index b, index h) noexcept {
    double total = 0;
    double lost = 0;
    double restarts = 0;
    for (index t = 0; t < gates.extent(2); ++t) {
      const auto g = static_cast<double>(gates(b, h, t));
      if (std::isinf(g) && g < 0) {
        total = lost = 0;
        ++restarts;
      } else {
        const double next = total + g;
        lost += std::abs(total) >= std::abs(g) ? (total - next) + g : (g - next) + total;
        total = next;
      }
      sums_(b, h, t, 0) = total + lost;
      sums_(b, h, t, 1) = restarts;
    }
  }
};

namespace detail {

struct forgetting_method : api::attention_method {
  template <class E, class Out, class Q, class K, class V, class G, class... M>
  static void write(E& exec, Out&& out, const Q& q, const K& k, const V& v, const G& g,
                    const attention_options& options, const M&... modifiers) {
    const forget_gates gates(g);
    attention_into(exec, std::forward<Out>(out), q, k, v, options, gates, causal(), modifiers...);
  }
};

}  // namespace detail

/// forgetting_attention([executor,] q, k, v, g, options = {}, modifiers...) -> a tensor of q's
/// family
inline constexpr api::returning<detail::forgetting_method, 4> forgetting_attention{};
/// forgetting_attention_into([executor,] out | into(out, lse), q, k, v, g, options = {},
/// modifiers...)
inline constexpr api::writing<detail::forgetting_method, 4> forgetting_attention_into{};

}  // namespace heed::inline HEED_TARGET
