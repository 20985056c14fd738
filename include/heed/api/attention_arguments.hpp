// SPDX-License-Identifier: MIT
// The arguments of exact attention: any tensors in, checked views out.
//
// | argument | axes                                          |
// |----------|-----------------------------------------------|
// | q        | [batch, heads, queries, head dim]             |
// | k        | [batch, kv heads, keys, head dim]             |
// | v        | [batch, kv heads, keys, value dim]            |
// | out      | [batch, heads, queries, value dim]            |
// | lse      | [batch, heads, queries], accumulator type     |
//
// Ranks 2 and 3 leave out batch, or batch and heads. Below this header no user type survives.
#pragma once

#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <type_traits>

#include "heed/api/attention_options.hpp"
#include "heed/api/tensor_arguments.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/copy_strided.hpp"
#include "heed/kernel/kv_source.hpp"
#include "heed/score.hpp"
#include "heed/tensor/layout.hpp"
#include "heed/tensor/overlap.hpp"
#include "heed/tensor/scalar.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

/// Where a result goes: the output, and its log-sum-exp.
template <class Out, class Lse>
struct result_target {
  Out output;
  Lse log_sum_exp;
};

/// `attention_into(into(out, lse), q, k, v)` writes the log-sum-exp too.
template <writable_tensor Out, writable_tensor Lse>
[[nodiscard]] constexpr auto into(Out&& out, Lse&& lse) {
  return result_target<view_of<Out>, view_of<Lse>>{as_view(std::forward<Out>(out)),
                                                   as_view(std::forward<Lse>(lse))};
}

/// What the *_with_lse forms return.
template <class Out, class Lse>
struct attention_result {
  Out output;
  Lse log_sum_exp;
};

namespace api {

template <class T>
inline constexpr bool is_target = false;
template <class O, class L>
inline constexpr bool is_target<result_target<O, L>> = true;

/// Keys and values of plain tensors.
template <class TK, class TV>
class tensor_source {
 public:
  using key_scalar = TK;
  using value_scalar = TV;

  tensor_source(const view<const TK, 4>& k, const view<const TV, 4>& v) noexcept : k_(k), v_(v) {}
  [[nodiscard]] index batch() const noexcept { return k_.extent(0); }
  [[nodiscard]] index kv_heads() const noexcept { return k_.extent(1); }
  [[nodiscard]] index head_dim() const noexcept { return k_.extent(3); }
  [[nodiscard]] index value_dim() const noexcept { return v_.extent(3); }
  [[nodiscard]] index length(index) const noexcept { return k_.extent(2); }
  [[nodiscard]] row_run<TK> keys(index b, index h, index j) const noexcept {
    return run(k_, b, h, j);
  }
  [[nodiscard]] row_run<TV> values(index b, index h, index j) const noexcept {
    return run(v_, b, h, j);
  }
  [[nodiscard]] index key_channel_stride() const noexcept { return k_.stride(3); }
  [[nodiscard]] index value_channel_stride() const noexcept { return v_.stride(3); }

 private:
  template <class T>
  static row_run<T> run(const view<const T, 4>& t, index b, index h, index j) noexcept {
    return {t.data() + b * t.stride(0) + h * t.stride(1) + j * t.stride(2), t.stride(2),
            t.extent(2) - j};
  }
  view<const TK, 4> k_;
  view<const TV, 4> v_;
};

template <class T>
using const_scalar = const std::remove_const_t<T>;

template <tensor_like T>
[[nodiscard]] constexpr auto input4(T&& t) {
  return view<const_scalar<scalar_of<T>>, 4>(as_rank4(as_view(std::forward<T>(t))));
}

/// One call: checked views, scale, modifiers. `TO` is the output's scalar. Where `starts` is not
/// empty the rows of all batches lie packed along the token axis and batch b begins at starts[b].
template <class TQ, class TO, class Source, class Program>
struct exact_call {
  using A = accumulate_t<TQ>;
  using query_scalar = TQ;
  using output_scalar = TO;
  using source_type = Source;
  using program_type = Program;

  view<const TQ, 4> q;
  Source source;
  view<TO, 4> out;
  view<A, 3> lse;  // data() is null where not wanted
  A scale;
  attention_options options;
  Program program;
  score_extents extents;  // queries and keys: the most of any batch
  std::span<const index> starts;
  // Sequences of other counts of queries are left to another kernel.
  range served{0, (std::numeric_limits<index>::max)()};

  [[nodiscard]] index group() const noexcept {
    return extents.kv_heads > 0 ? extents.heads / extents.kv_heads : 1;
  }
  /// 0 where the batch is left to another kernel.
  [[nodiscard]] index queries(index b) const noexcept {
    const index n = starts.empty() ? extents.queries : start(b + 1) - start(b);
    return n >= served.begin && n < served.end ? n : 0;
  }
  [[nodiscard]] rectangle<const TQ> query_rows(index b, index h, index i) const noexcept {
    return rows(q, b, h, i);
  }
  [[nodiscard]] rectangle<TO> output_rows(index b, index h, index i) const noexcept {
    return rows(out, b, h, i);
  }
  /// Null where the log-sum-exp is not wanted; rows are lse.stride(2) apart.
  [[nodiscard]] A* lse_rows(index b, index h, index i) const noexcept {
    return lse.data() == nullptr ? nullptr : rows(lse, b, h, i).data;
  }

 private:
  [[nodiscard]] index start(index b) const noexcept { return starts[static_cast<std::size_t>(b)]; }
  template <class T, int R>
  [[nodiscard]] rectangle<T> rows(const view<T, R>& x, index b, index h, index i) const noexcept {
    const index at = starts.empty() ? b * x.stride(0) : start(b) * x.stride(2);
    return {x.data() + at + h * x.stride(1) + i * x.stride(2), x.stride(2), x.stride(R - 1)};
  }
};

inline void check_shapes(const std::array<index, 4>& q, const std::array<index, 4>& k,
                         const std::array<index, 4>& v) {
  require_equal("k", "batch", k[0], "q", q[0]);
  require_equal("v", "batch", v[0], "q", q[0]);
  require_equal("v", "heads", v[1], "k", k[1]);
  require_equal("v", "tokens", v[2], "k", k[2]);
  require_equal("k", "head dim", k[3], "q", q[3]);
  if (k[1] == 0 ? q[1] != 0 : q[1] % k[1] != 0) {
    fail<shape_error>("q has " + std::to_string(q[1]) + " heads, not a multiple of k's " +
                      std::to_string(k[1]));
  }
}

inline double scale_of(const attention_options& o, index head_dim) noexcept {
  return o.scale ? *o.scale : head_dim > 0 ? 1.0 / std::sqrt(static_cast<double>(head_dim)) : 1.0;
}

template <class Lse, int R>
void check_lse(const Lse& lse, const std::array<index, static_cast<std::size_t>(R)>& q) {
  static_assert(Lse::rank == R - 1, "heed: the log-sum-exp has one axis less than the output");
  for (int a = 0; a + 1 < R; ++a) {
    if (lse.extent(a) != q[static_cast<std::size_t>(a)]) {
      fail<shape_error>("log-sum-exp has extents " + format_extents(lse.extents()) +
                        ", q has rows " +
                        format_extents(std::span(q.data(), static_cast<std::size_t>(R - 1))));
    }
  }
}

template <class A, class Lse>
[[nodiscard]] view<A, 3> lse_as_rank3(const Lse& lse) noexcept {
  static_assert(
      std::is_same_v<typename Lse::scalar, A>,
      "heed: the log-sum-exp tensor has the accumulator type (float, or double for double)");
  std::array<index, 3> e{1, 1, 1};
  std::array<index, 3> s{0, 0, 0};
  for (int a = 0; a < Lse::rank; ++a) {
    const auto at = static_cast<std::size_t>(3 - Lse::rank + a);
    e[at] = lse.extent(a);
    s[at] = lse.stride(a);
  }
  return {lse.data(), e, s};
}

/// Views of the target: the output, and the log-sum-exp or a null view.
template <class A, int R, class Target>
[[nodiscard]] auto open_target(Target&& target,
                               const std::array<index, static_cast<std::size_t>(R)>& q_extents) {
  using bare = std::remove_cvref_t<Target>;
  if constexpr (is_target<bare>) {
    check_lse<decltype(target.log_sum_exp), R>(target.log_sum_exp, q_extents);
    return std::pair(target.output, lse_as_rank3<A>(target.log_sum_exp));
  } else {
    static_assert(writable_tensor<Target>,
                  "heed: the output is not a tensor that can be written, nor heed::into(out, lse)");
    return std::pair(as_view(std::forward<Target>(target)), view<A, 3>(nullptr, {0, 0, 0}));
  }
}

/// The call over checked keys and values. Throws before anything is written.
template <class Target, class Q, class Source, class... M>
[[nodiscard]] auto open_source_call(Target&& target, const Q& q, const Source& source,
                                    const score_extents& extents, const attention_options& o,
                                    const M&... mods) {
  using TQ = scalar_of<const Q&>;
  using A = accumulate_t<TQ>;
  const auto q4 = input4(q);
  const auto [out, lse] =
      open_target<A, rank_of<const Q&>>(std::forward<Target>(target), as_view(q).extents());
  using Out = std::remove_cvref_t<decltype(out)>;
  static_assert(Out::rank == rank_of<const Q&>, "heed: the output has another rank than q");
  const auto out4 = as_rank4(out);
  const std::array<index, 4> expected{q4.extent(0), q4.extent(1), q4.extent(2), source.value_dim()};
  if (out4.extents() != expected) {
    fail<shape_error>("out has extents " + format_extents(out4.extents()) + ", the result has " +
                      format_extents(expected));
  }
  require_distinct("out", out4);
  require_distinct("log-sum-exp", lse);
  require_apart("out", out4, "q", q4);
  require_apart("log-sum-exp", lse, "q", q4);
  require_apart("log-sum-exp", lse, "out", out4);
  o.offset.check(extents.batch);
  using Program = score_program<A, M...>;
  return exact_call<TQ, typename Out::scalar, Source, Program>{
      q4,
      source,
      out4,
      lse,
      checked_finite<A>("scale", scale_of(o, q4.extent(3))),
      o,
      Program(extents, mods...),
      extents,
      {}};
}

/// For kernels that see a row in parts: its probabilities are not known until the last.
template <class Call>
constexpr void require_rows_in_parts() noexcept {
  static_assert(!Call::program_type::template has<stage::probability>,
                "heed: a probability modifier acts on whole rows; attention, decode, ragged and "
                "naive attention offer it, this method does not");
}

/// Throws shape_error where a result would be written over keys or values that are still read.
template <class Call, class K, class V>
void require_results_apart(const Call& call, const K& k, const V& v) {
  require_apart("out", call.out, "k", k);
  require_apart("out", call.out, "v", v);
  require_apart("log-sum-exp", call.lse, "k", k);
  require_apart("log-sum-exp", call.lse, "v", v);
}

/// Checks q, k, v as tensors of one batch size and builds the call.
template <class Target, class Q, class K, class V, class... M>
[[nodiscard]] auto open_call(Target&& target, const Q& q, const K& k, const V& v,
                             const attention_options& o, const M&... mods) {
  require_tensors<const Q&, const K&, const V&>();
  const auto q4 = input4(q);
  const auto k4 = input4(k);
  const auto v4 = input4(v);
  check_shapes(q4.extents(), k4.extents(), v4.extents());
  using Source = tensor_source<scalar_of<const K&>, scalar_of<const V&>>;
  auto call = open_source_call(
      std::forward<Target>(target), q, Source(k4, v4),
      {q4.extent(0), q4.extent(1), k4.extent(1), q4.extent(2), k4.extent(2)}, o, mods...);
  require_results_apart(call, k4, v4);
  return call;
}

/// The result's extents: q's, with v's channels.
template <class Q, class V>
[[nodiscard]] auto result_extents(const Q& q, const V& v) {
  auto e = as_view(q).extents();
  e.back() = as_view(v).extents().back();
  return e;
}

/// A tensor for the log-sum-exp of q.
template <class Q>
[[nodiscard]] auto make_lse(const Q& q) {
  constexpr int r = rank_of<const Q&>;
  std::array<index, static_cast<std::size_t>(r - 1)> e{};
  for (int a = 0; a + 1 < r; ++a) e[static_cast<std::size_t>(a)] = as_view(q).extent(a);
  return tensor<accumulate_t<scalar_of<const Q&>>, r - 1>(e);
}

}  // namespace api

}  // namespace heed::inline HEED_TARGET
