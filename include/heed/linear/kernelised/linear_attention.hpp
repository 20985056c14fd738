// SPDX-License-Identifier: MIT
// Kernelised linear attention: softmax's kernel exp(q.k) replaced by phi(q).phi(k), and the sums
// reordered, so that time is linear in the tokens and memory does not depend on them.
//
//   S_i = S_{i-1} + phi(k_i) v_i',  z_i = z_{i-1} + phi(k_i)            S_0, z_0: the state, or 0
//   out_i = phi(q_i)'S_i / (phi(q_i)'z_i + eps)                         normalised, no scale
//   out_i = scale phi(q_i)'S_i                                          unnormalised
//   not causal: S and z of all keys, for every query
//
//   auto out = heed::linear_attention(q, k, v);          // causal, elu + 1
//   auto out = heed::linear_attention(q, k, v, state);   // the state goes in and comes out
//   auto out = heed::linear_attention(pool, q, k, v, {.causal = false}, my_map);
//   auto out = heed::linear_attention(q, k, v, {.normalise = false}, heed::identity_features{});
//   heed::linear_attention_into(out, q, k, v, state, options, map);
//
// | argument | axes                                                                |
// |----------|---------------------------------------------------------------------|
// | q        | [batch, heads, queries, D]                                          |
// | k        | [batch, kv heads, keys, D]       keys = queries when causal         |
// | v        | [batch, kv heads, keys, Dv]                                         |
// | out      | [batch, heads, queries, Dv]                                         |
// | state    | S [batch, kv heads, F, Dv], z [batch, kv heads, F]; see state.hpp   |
//
// `out` and the state overlap nothing else. Ranks 2 and 3 leave out batch, or batch and heads; any
// strides. Query head h reads the state of KV head h / (heads / kv heads). phi and F: see
// feature_map.hpp.
//
// Scalars float, double, half, bfloat16; features, sums and state in the accumulator type. A chunk
// of C tokens is summed from zero and added to S and z; in a call of more than 16 chunks with a
// compensated sum. Errors of a sum of N tokens are then at most (C + F + 18) eps + O(N / C) eps^2 of
// its terms' absolute sum; in the form `parallel` (N + F) eps. With phi > 0 that is the relative
// error of the normaliser. Measured at 2^20 tokens of positive features:
// 1.4e-6 (recurrent 4.1e-7). The state of a call is rounded once: a text in pieces adds one eps a
// piece. A NaN or infinity in k or v of a token reaches that token and later ones, never an earlier
// one. No visible key (keys = 0, no state): 0 for eps > 0.
//
// FLOPs a query head of N tokens, with chunks of C, whatever the register tiles waste:
//   recurrent 4 N F Dv;  chunked 4 N F Dv + N (C + 1)(F + Dv);  not causal 2 (N + M) F Dv
// (of query heads that share a state only the first writes it, so that 2 N F Dv is spent once a
// group). Bytes: q, k, v and out once. Scratch a worker: 2 F Dv + C (3 F + 2 Dv + C) numbers,
// about; no other allocation. Parallel over batch x KV heads; the same bits for any number of
// threads and any batch. A sequence fed in pieces gives the same numbers up to rounding, and, when
// it has no more than 16 chunks and the pieces end at multiples of the chunk, the same bits. Safe
// to call from several threads, with a scratch and a state each.
//
// Throws shape_error, option_error, std::bad_alloc, before anything is written.
// Sources: Katharopoulos, Vyas, Pappas, Fleuret 2020, arXiv 2006.16236, sections 3.3 and 3.4;
// chunks: Hua, Dai, Liu, Le 2022, arXiv 2202.10447, section 3.2; Yang et al. 2023, arXiv
// 2312.06635, section 2.2.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <type_traits>
#include <utility>

#include "heed/api/overloads.hpp"
#include "heed/api/tensor_arguments.hpp"
#include "heed/core/target.hpp"
#include "heed/linear/kernelised/feature_map.hpp"
#include "heed/linear/kernelised/forward.hpp"
#include "heed/linear/kernelised/run.hpp"
#include "heed/linear/kernelised/state.hpp"
#include "heed/linear/options.hpp"
#include "heed/linear/recurrence.hpp"
#include "heed/parallel/scratch_tasks.hpp"
#include "heed/tensor/layout.hpp"
#include "heed/tensor/scalar.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// Constant ones too, for a message that says so.
template <class T>
concept a_linear_state_argument = is_linear_state<std::remove_cvref_t<T>>;

struct no_linear_state {};

template <class T>
[[nodiscard]] auto linear_input(const T& t) {
  return view<const scalar_of<const T&>, 4>(as_rank4(as_view(t)));
}

inline void check_linear_shapes(const std::array<index, 4>& q, const std::array<index, 4>& k,
                                const std::array<index, 4>& v, bool causal) {
  require_equal("k", "batch", k[0], "q", q[0]);
  require_equal("v", "batch", v[0], "q", q[0]);
  require_equal("v", "heads", v[1], "k", k[1]);
  require_equal("v", "tokens", v[2], "k", k[2]);
  require_equal("k", "head dim", k[3], "q", q[3]);
  if (k[1] == 0 ? q[1] != 0 : q[1] % k[1] != 0) {
    fail<shape_error>("q has " + std::to_string(q[1]) + " heads, not a multiple of k's " +
                      std::to_string(k[1]));
  }
  if (causal && q[2] != k[2]) {
    fail<shape_error>("causal linear attention pairs tokens: k has tokens " + std::to_string(k[2]) +
                      ", q has " + std::to_string(q[2]));
  }
}

inline void check_linear_options(const linear_options& o) {
  if (o.chunk < 1) {
    fail<option_error>("chunk is " + std::to_string(o.chunk) + ", must be at least 1");
  }
  if (!(o.eps >= 0.0)) {
    fail<option_error>("eps is " + std::to_string(o.eps) + ", must not be negative");
  }
  if (o.normalise && o.scale) {
    fail<option_error>("scale is given, but the normalised output has none; set normalise = false");
  }
}

template <class A>
void check_linear_state(const linear_state_view<A>& s, const std::array<index, 4>& sum,
                        bool normalise) {
  if (s.sum.extents() != sum) {
    fail<shape_error>("state sum has extents " + format_extents(s.sum.extents()) +
                      ", the call needs " + format_extents(sum));
  }
  const std::array<index, 3> z{sum[0], sum[1], sum[2]};
  const bool absent = s.normaliser.data() == nullptr && s.normaliser.empty();
  if (s.normaliser.extents() != z && !(absent && !normalise)) {
    fail<shape_error>("state normaliser has extents " + format_extents(s.normaliser.extents()) +
                      ", the call needs " + format_extents(z));
  }
}

/// Checks everything, then runs.
template <class E, class Out, class Q, class K, class V, class State, class Map>
void linear_call(E& exec, Out&& out, const Q& q, const K& k, const V& v, State&& state,
                 const linear_options& o, const Map& map) {
  require_tensors<const Q&, const K&, const V&>();
  using A = accumulate_t<scalar_of<const Q&>>;
  static_assert(feature_map<Map, A>,
                "heed: a feature map is callable as map(x) -> number, or as map(span x, span phi) "
                "with features(head_dim)");
  static_assert(writable_tensor<Out>, "heed: the output is not a tensor that can be written");
  const auto q4 = linear_input(q);
  const auto k4 = linear_input(k);
  const auto v4 = linear_input(v);
  check_linear_options(o);
  check_linear_shapes(q4.extents(), k4.extents(), v4.extents(), o.causal);
  const auto o4 = as_rank4(as_view(std::forward<Out>(out)));
  static_assert(rank_of<Out> == rank_of<const Q&>, "heed: the output has another rank than q");
  const std::array<index, 4> expected{q4.extent(0), q4.extent(1), q4.extent(2), v4.extent(3)};
  if (o4.extents() != expected) {
    fail<shape_error>("out has extents " + format_extents(o4.extents()) + ", the result has " +
                      format_extents(expected));
  }
  const index d = q4.extent(3);
  const index features = feature_count<A>(map, d);
  const auto& bounds = o.sequence_bounds;
  const bool ragged = !bounds.empty();
  check_sequence_bounds(bounds, "q", q4.extent(0), q4.extent(2));
  if (ragged) require_equal("k", "tokens", k4.extent(2), "a ragged call's q", q4.extent(2));
  const index sequences = ragged ? static_cast<index>(bounds.size()) - 1 : k4.extent(0);
  linear_state_view<A> kept;
  if constexpr (!std::is_same_v<std::remove_cvref_t<State>, no_linear_state>) {
    static_assert(std::is_same_v<typename std::remove_cvref_t<State>::scalar, A>,
                  "heed: the state has the accumulator type (float, or double for double)");
    static_assert(linear_state_like<State>,
                  "heed: the state is constant, and could not come out of the call");
    if constexpr (linear_state_like<State>) kept = state;
    check_linear_state<A>(kept, {sequences, k4.extent(1), features, v4.extent(3)}, o.normalise);
  }

  const double scale = o.scale.value_or(d > 0 ? 1.0 / std::sqrt(static_cast<double>(d)) : 1.0);
  kernelised_recurrence<A, scalar_of<const Q&>, scalar_of<const K&>, scalar_of<const V&>,
                        scalar_of<Out>, Map>
      r{q4,
        k4,
        v4,
        o4,
        kept,
        map,
        features,
        1,
        o.normalise,
        static_cast<A>(o.eps),
        checked_finite<A>("scale", scale)};
  scratch_lease lease(o.scratch);
  workspace& memory = lease.memory();
  if (!ragged) return run_kernelised(exec, r, o, memory);
  const auto select = [&](index n, range t) {
    r.q = q4.slice(2, t.begin, t.end);
    r.k = k4.slice(2, t.begin, t.end);
    r.v = v4.slice(2, t.begin, t.end);
    r.out = o4.slice(2, t.begin, t.end);
    if (kept.sum.data() != nullptr) r.state.sum = kept.sum.slice(0, n, n + 1);
    if (kept.normaliser.data() != nullptr) {
      r.state.normaliser = kept.normaliser.slice(0, n, n + 1);
    }
  };
  // All scratch before the first write.
  std::size_t bytes = 0;
  for_each_sequence(bounds, [&](index n, range t) {
    select(n, t);
    bytes = (std::max)(bytes, kernelised_bytes(exec, r, o));
  });
  (void)memory.reserve(bytes);
  for_each_sequence(bounds, [&](index n, range t) {
    select(n, t);
    run_kernelised(exec, r, o, memory);
  });
}

template <class Q, class V>
[[nodiscard]] auto make_linear_result(const Q& q, const V& v) {
  auto e = as_view(q).extents();
  e.back() = as_view(v).extents().back();
  return result_like<const Q&>(e);
}

struct linear_attention_method : api::method<linear_options> {
  template <class Q, class K, class V>
  [[nodiscard]] static consteval bool accepts() noexcept {
    return true;
  }
  template <class Q, class K, class V, class State>
  [[nodiscard]] static consteval bool accepts() noexcept {
    return a_linear_state_argument<State>;
  }
  template <class Q, class K, class V, class... Rest>
  [[nodiscard]] static auto result(const Q& q, const K&, const V& v, const Rest&...) {
    require_tensors<const Q&, const K&, const V&>();
    return make_linear_result(q, v);
  }
  template <class E, class Out, class Q, class K, class V, class Map = elu_plus_one>
  static void write(E& exec, Out&& out, const Q& q, const K& k, const V& v,
                    const linear_options& options, const Map& map = {}) {
    linear_call(exec, std::forward<Out>(out), q, k, v, no_linear_state{}, options, map);
  }
  template <class E, class Out, class Q, class K, class V, a_linear_state_argument State,
            class Map = elu_plus_one>
  static void write(E& exec, Out&& out, const Q& q, const K& k, const V& v, State&& state,
                    const linear_options& options, const Map& map = {}) {
    linear_call(exec, std::forward<Out>(out), q, k, v, state, options, map);
  }
};

}  // namespace detail

/// linear_attention_into([executor,] out, q, k, v, [state,] options = {}, map = elu_plus_one{})
inline constexpr api::function<detail::linear_attention_method,
                               api::form<api::writing_call<detail::linear_attention_method>, 4>,
                               api::form<api::writing_call<detail::linear_attention_method>, 5>>
    linear_attention_into{};
/// linear_attention([executor,] q, k, v, [state,] options = {}, map = elu_plus_one{}) -> a tensor
/// of q's family
inline constexpr api::function<detail::linear_attention_method,
                               api::form<api::returning_call<detail::linear_attention_method>, 3>,
                               api::form<api::returning_call<detail::linear_attention_method>, 4>>
    linear_attention{};

}  // namespace heed::inline HEED_TARGET
