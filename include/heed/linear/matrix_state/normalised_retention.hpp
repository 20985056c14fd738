// SPDX-License-Identifier: MIT
// Retention with the score normalisations of its paper, which keep a row's weights near 1 in sum.
//
//   R_nm = scale q_n'k_m gamma^(n-m) / sqrt(D_n),   D_n = sum_{m<=n} gamma^(n-m)
//   out_n = sum_m R_nm v_m / max(|sum_m R_nm|, 1)
//         = scale S_n'q_n / max(|scale z_n'q_n|, sqrt(D_n)),   z and D decayed sums of k and of 1
//
//   auto out = heed::normalised_retention(q, k, v);
//   heed::retention_state<float> state({.batch = 1, .heads = 4, .key_dim = 64, .value_dim = 64});
//   auto next = heed::normalised_retention(pool, q, k, v, state);
//
// A factor a row, so that a norm over a head's channels behind it (group norm, as in the paper's
// models) gives what it gives behind `retention`, but for its eps. Axes, scalars, forms, ragged
// batches, NaN and errors thrown: as `retention`; gates are its gates. The divisor has the relative
// error of scale z'q, by the terms' absolute sum; half and bfloat16 outputs are rounded twice.
// Cost: `retention` with one value channel more, and its products of pairs again. Memory: a number
// a row. Source: Sun et al. 2023, arXiv 2307.08621, section 2.2 (score normalisation).
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "heed/core/target.hpp"
#include "heed/linear/matrix_state/retention.hpp"

namespace heed::inline HEED_TARGET {

struct retention_state_extents {
  index batch = 1;  ///< sequences, of a ragged call
  index heads = 1;
  index key_dim = 0;
  index value_dim = 0;
};

/// What comes out of a call and goes into the next; zeros before the first token.
template <class A>
struct retention_state {
  explicit retention_state(const retention_state_extents& e)
      : sum({e.batch, e.heads, e.key_dim, e.value_dim}),
        keys({e.batch, e.heads, e.key_dim, 1}),
        decays({e.batch, e.heads}) {}
  tensor<A, 4> sum;     ///< S
  tensor<A, 4> keys;    ///< z
  tensor<A, 2> decays;  ///< D
};

struct normalised_retention_method {
  template <bool Given>
  static constexpr void require_inputs() {
    static_assert(Given, "heed: normalised_retention takes q, k, v");
  }
  static constexpr std::size_t inputs = 3;
  using options = recurrence_options;

  template <class Q, class K, class V>
  [[nodiscard]] static auto result(const Q& q, const K& k, const V& v) {
    return retention_method::result(q, k, v);
  }

  template <class E, class Out, class Q, class K, class V, class State>
  static void call(E& exec, Out&& out, const Q& q, const K& k, const V& v, State&& state,
                   const recurrence_options& o) {
    using A = accumulate_t<scalar_of<const Q&>>;
    constexpr bool keeps = !std::is_same_v<std::remove_cvref_t<State>, no_state>;
    if constexpr (keeps) {
      static_assert(std::is_same_v<State&, retention_state<A>&>,
                    "heed: the state is a retention_state of the accumulator type");
    }
    const auto out4 = as_rank4(as_view(out));
    const auto v4 = as_rank4(as_view(v));
    const index heads = (std::max)(as_rank4(as_view(k)).extent(1), v4.extent(1));
    tensor<A, 4> weights({out4.extent(0), out4.extent(1), out4.extent(2), 1});
    const A one = A(1);
    const view<const A, 4> ones(&one, {v4.extent(0), v4.extent(1), v4.extent(2), 1}, {0, 0, 0, 0});
    const view<const scalar_of<const Q&>, 4> q4 = as_rank4(as_view(q));
    const view<const scalar_of<const K&>, 4> k4 = as_rank4(as_view(k));
    scratch_lease lease(o.scratch);
    workspace& memory = lease.memory();
    // Both calls are checked, and all memory is there, before either writes.
    const auto run = [&](auto&& sum, auto&& keys, tensor<A, 2>* decays) {
      const auto values = retention_method::check(out, q, k, v, sum, o);
      const auto divisors = retention_method::check(weights, q4, k4, ones, keys, o);
      (void)memory.reserve((std::max)(detail::matrix_bytes(exec, values.core, values.form),
                                      detail::matrix_bytes(exec, divisors.core, divisors.form)));
      detail::run_matrix(exec, values.core, values.form, memory);
      detail::run_matrix(exec, divisors.core, divisors.form, memory);
      divide(exec, out4, as_view(std::as_const(weights)), heads, o.sequence_bounds, decays);
    };
    if constexpr (keeps) {
      const bool ragged = !o.sequence_bounds.empty();
      const index sequences =
          ragged ? static_cast<index>(o.sequence_bounds.size()) - 1 : v4.extent(0);
      require_state("state.keys", state.keys.extents(), {sequences, heads, k4.extent(3), 1});
      require_state("state.decays", state.decays.extents(), {sequences, heads});
      run(state.sum, state.keys, &state.decays);
    } else {
      run(no_state{}, no_state{}, nullptr);
    }
  }

 private:
  template <std::size_t Rank>
  static void require_state(const char* name, const std::array<index, Rank>& got,
                            const std::array<index, Rank>& needed) {
    if (got == needed) return;
    fail<shape_error>(std::string(name) + " has extents " + format_extents(got) +
                      ", the call needs " + format_extents(needed));
  }

  /// out = out / max(|weight|, sqrt(D)).
  template <class E, class TO, class A>
  static void divide(E& exec, const view<TO, 4>& out, const view<const A, 4>& weights, index heads,
                     std::span<const index> bounds, tensor<A, 2>* decays) {
    const index sequences = bounds.empty() ? out.extent(0) : static_cast<index>(bounds.size()) - 1;
    const index tasks = sequences * heads;
    if (tasks == 0) return;
    const index group = out.extent(1) / heads;
    const index workers = detail::worker_count(exec, tasks);
    for_each_task(exec, workers, tasks, [&](index, index task) noexcept {
      const index n = task / heads, h = task % heads;
      const auto at = static_cast<std::size_t>(n);
      const range t = bounds.empty() ? range{0, out.extent(2)} : range{bounds[at], bounds[at + 1]};
      const index b = bounds.empty() ? n : 0;
      // In double: 1 / (1 - rate) tokens and more add up.
      const double rate = std::exp(retention_gate(h));
      double decay = decays != nullptr ? static_cast<double>((*decays)(n, h)) : 0.0;
      for (index i = t.begin; i < t.end; ++i) {
        decay = rate * decay + 1.0;
        const auto least = static_cast<A>(std::sqrt(decay));
        for (index o = h * group; o < (h + 1) * group; ++o) {
          const A weight = std::abs(weights(b, o, i, 0));
          // A NaN is not the smaller one.
          const A factor = A(1) / (weight < least ? least : weight);
          for (index c = 0; c < out.extent(3); ++c) {
            out(b, o, i, c) = static_cast<TO>(static_cast<A>(out(b, o, i, c)) * factor);
          }
        }
      }
      if (decays != nullptr) (*decays)(n, h) = static_cast<A>(decay);
    });
  }
};

/// normalised_retention_into([executor,] out, q, k, v, [state,] [recurrence_options])
inline constexpr linear_function_into<normalised_retention_method> normalised_retention_into{};
/// normalised_retention([executor,] q, k, v, [state,] [recurrence_options]) -> q's family
inline constexpr linear_function<normalised_retention_method> normalised_retention{};

}  // namespace heed::inline HEED_TARGET
