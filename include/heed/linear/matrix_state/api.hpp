// SPDX-License-Identifier: MIT
// From a public call to the core of matrix states: checks, then the form that is wanted.
//
// A member is a struct that derives from matrix_method and says, in `describe`, which decay, write
// and reading are its own; see gla.hpp for the shortest.
//
//   struct my_method : matrix_method<my_method, 4> {
//     static void describe(auto& r, const auto& g) { r.gate_by_token("g", g); }
//   };
//   inline constexpr linear_function<my_method> my_attention{};
//
// The first three inputs are q, k, v, for every member. State heads H are the larger of k's and v's
// heads, and a multiple of both; so is the output's number of heads, the larger of H and q's. A
// head of one of fewer heads serves consecutive ones.
//
// | argument  | axes                                                       |
// |-----------|------------------------------------------------------------|
// | q, k      | [batch, q heads, tokens, Dk], [batch, k heads, tokens, Dk] |
// | v, out    | [batch, v heads, tokens, Dv], [batch, heads, tokens, Dv]   |
// | a token's | [batch, heads that divide H, tokens], or (..., Dk)         |
// | a head's  | [heads that divide H], or (heads, Dk)                      |
// | state     | [batch, H, Dk, Dv], in the accumulator type                |
//
// Ranks 2 and 3 leave out batch, or batch and heads, of q, k, v and what a token has; not of the
// state. Any strides; scalars float, double, half, bfloat16, mixed, but double with double alone.
// Gates are natural logs, at most 0; -inf is a reset. `out` and the state overlap nothing else.
// A NaN or infinity of a token reaches that token and later ones, never an earlier one.
// Where S hardly decays (a factor of 7/8 or more a chunk), the sums of chunks are added to it with a
// compensated sum in sequences of more than 16 chunks: the error does not grow with the tokens. At
// 2^20 tokens without decay and with positive numbers it is 1.2e-6 (measured). Slow gates, of less
// than 1/32 a chunk together, do not drift there: what rounds off their exponentials is kept, but in
// the form `scan`, which errs by up to eps / 2 a chunk that the state remembers.
// Scratch a worker: 2 Dk Dv + C (4 Dk + 4 Dv + 4 C) numbers, about; in the form `scan` Dk Dv numbers
// (twice Dk more in the delta rules) a segment of a sequence that has several. Parallel over batch x state
// heads, in the form `scan` over segments of tokens too; the same bits for any number of threads.
// Throws shape_error, option_error, std::bad_alloc, before anything is written.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "heed/api/linear_overloads.hpp"
#include "heed/api/tensor_arguments.hpp"
#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/linear/matrix_state/forward.hpp"
#include "heed/linear/matrix_state/quadratic.hpp"
#include "heed/linear/matrix_state/segments.hpp"
#include "heed/linear/options.hpp"
#include "heed/linear/recurrence.hpp"
#include "heed/tensor/layout.hpp"
#include "heed/tensor/scalar.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// x with a last axis of extent 1.
template <class T, int R>
[[nodiscard]] view<T, R + 1> with_channel(const view<T, R>& x) {
  std::array<index, static_cast<std::size_t>(R) + 1> e{}, s{};
  for (std::size_t i = 0; i < static_cast<std::size_t>(R); ++i) {
    e[i] = x.extents()[i];
    s[i] = x.strides()[i];
  }
  e.back() = 1;
  return view<T, R + 1>(x.data(), e, s);
}

/// A checked call: the core as its member describes it, and the form.
template <class A, int Rank>
class matrix_call {
 public:
  matrix_call() = default;
  matrix_call(const matrix_call&) = delete;  // the core reads head_gates_
  matrix_call& operator=(const matrix_call&) = delete;
  matrix_call(matrix_call&&) noexcept = default;
  matrix_call& operator=(matrix_call&&) noexcept = default;

  matrix_recurrence<A> core;
  linear_form form = linear_form::chunked;

  /// A member may have its own default, or none (1).
  double default_scale = 0;

  template <class G>
  void gate_by_token(const char* name, const G& g) {
    core.gate = token_numbers(name, g);
    core.gates = gate_kind::per_token;
  }
  template <class G>
  void gate_by_channel(const char* name, const G& g) {
    core.gate = token_rows(name, g);
    core.gates = gate_kind::per_channel;
  }
  /// gate_of(head, heads): the same for every token.
  template <class F>
  void gate_by_head(F&& gate_of) {
    const index heads = core.state_heads();
    for (index h = 0; h < heads; ++h) head_gates_.push_back(static_cast<A>(gate_of(h, heads)));
    core.gate = detail::make_token_input<A>(view<const A, 4>(
        head_gates_.data(), {core.q.extents[0], heads, core.q.extents[2], 1}, {0, 1, 0, 0}));
    core.gates = gate_kind::per_token;
  }
  /// Numbers of each token: [batch, heads, tokens].
  template <class X>
  [[nodiscard]] token_input<A> token_numbers(const char* name, const X& x) const {
    require_tensor<X>();
    static_assert(rank_of<const X&> == Rank - 1,
                  "heed: numbers of each token have the axes of q without the last");
    return checked(name, view<const scalar_of<const X&>, 4>(as_rank4(with_channel(as_view(x)))), 1);
  }
  /// Rows of each token: [batch, heads, tokens, Dk].
  template <class X>
  [[nodiscard]] token_input<A> token_rows(const char* name, const X& x) const {
    require_tensor<X>();
    static_assert(rank_of<const X&> == Rank, "heed: rows of each token have the axes of q");
    return checked(name, view<const scalar_of<const X&>, 4>(as_rank4(as_view(x))),
                   core.k.channels());
  }
  /// A number of each head, [heads], or a row of it, [heads, Dk].
  template <class X>
  [[nodiscard]] token_input<A> head_values(const char* name, const X& x) const {
    require_tensor<X>();
    constexpr int rank = rank_of<const X&>;
    static_assert(rank == 1 || rank == 2, "heed: values of a head have one axis or two");
    const auto v = as_view(x);
    const bool row = rank == 2;
    check_heads(name, v.extent(0));
    if (row) require_equal(name, "channels", v.extents().back(), "k", core.k.channels());
    return detail::make_token_input<A>(view<const scalar_of<const X&>, 4>(
        v.data(), {1, v.extent(0), 1, row ? v.extents().back() : 1},
        {0, v.stride(0), 0, row ? v.strides().back() : 1}));
  }

 private:
  void check_heads(const char* name, index heads) const {
    const index of = core.state_heads();
    if (heads == 0 ? of != 0 : of % heads != 0) {
      fail<shape_error>(std::string(name) + " has " + std::to_string(heads) +
                        " heads, which do not divide the state's " + std::to_string(of));
    }
  }
  template <class X>
  static constexpr void require_tensor() {
    static_assert(tensor_like<const X&>,
                  "heed: an input is not a tensor; specialise heed::tensor_traits for its type");
  }
  template <class T>
  [[nodiscard]] token_input<A> checked(const char* name, const view<const T, 4>& x,
                                       index channels) const {
    static_assert(std::is_same_v<accumulate_t<T>, A>,
                  "heed: an input accumulates in another type than q");
    require_equal(name, "batch", x.extent(0), "q", core.q.extents[0]);
    require_equal(name, "tokens", x.extent(2), "q", core.q.extents[2]);
    require_equal(name, "channels", x.extent(3), "k", channels);
    check_heads(name, x.extent(1));
    return detail::make_token_input<A>(x);
  }

  std::vector<A> head_gates_;
};

inline void check_matrix_options(const recurrence_options& o, const std::array<index, 4>& q) {
  if (o.chunk && *o.chunk < 1) {
    fail<option_error>("chunk is " + std::to_string(*o.chunk) + ", must be at least 1");
  }
  check_sequence_bounds(o.sequence_bounds, "q", q[0], q[2]);
}

/// The larger of two numbers of heads, of which it must be a multiple.
inline index common_heads(const char* name, index heads, const char* other, index other_heads) {
  const index most = (std::max)(heads, other_heads), least = (std::min)(heads, other_heads);
  if (least == 0 ? most != 0 : most % least != 0) {
    fail<shape_error>(std::string(name) + " has " + std::to_string(heads) + " heads, " + other +
                      " has " + std::to_string(other_heads) + ", of which neither is a multiple");
  }
  return most;
}

/// What run_matrix reserves.
template <class E, class A>
[[nodiscard]] std::size_t matrix_bytes(E& exec, const matrix_recurrence<A>& r, linear_form form) {
  if (form == linear_form::parallel) {
    const matrix_quadratic<A> quadratic(r);
    return scratch_bytes(exec, r.heads(), [&](arena& c) noexcept { return quadratic.allocate(c); });
  }
  if (form == linear_form::scan) {
    const matrix_segments<A> segments(r);
    return measure_segments(exec, segments, segments.least_tokens(), r.chunk_size()).bytes();
  }
  return scratch_bytes(exec, r.heads(), [&](arena& c) noexcept { return r.allocate(c); });
}

template <class E, class A>
void run_matrix(E& exec, const matrix_recurrence<A>& r, linear_form form, workspace& memory) {
  if (form == linear_form::parallel) return run_matrix_quadratic(exec, r, memory);
  if (form == linear_form::scan) {
    const matrix_segments<A> segments(r);
    return run_segments(exec, segments, segments.least_tokens(), r.chunk_size(), memory);
  }
  for_each_state(exec, r, memory, [&](index head, auto& scratch) noexcept {
    const range span = r.span_of(head);
    if (form == linear_form::recurrent) {
      for (index t = span.begin; t < span.end; ++t) r.step(head, t, scratch);
    } else {
      for_each_chunk(span.size(), r.chunk_size(), [&](range t) noexcept {
        r.chunk(head, {span.begin + t.begin, span.begin + t.end}, scratch);
      });
    }
  });
}

}  // namespace detail

/// Base of a member: M::describe(call, extra inputs...) after q, k and v are in place.
template <class M, std::size_t Inputs>
struct matrix_method {
  static constexpr std::size_t inputs = Inputs;
  using options = recurrence_options;

  template <class Q, class K, class V, class... Extra>
  [[nodiscard]] static auto result(const Q& q, const K& k, const V& v, const Extra&...) {
    auto e = as_view(q).extents();
    if constexpr ((rank_of<const Q&>) > 2) {
      constexpr std::size_t at = rank_of<const Q&> - 3;
      e[at] = (std::max)({e[at], as_view(k).extents()[at], as_view(v).extents()[at]});
    }
    e.back() = as_view(v).extents().back();
    return result_like<const Q&>(e);
  }

  template <class E, class Out, class Q, class K, class V, class... Rest>
  static void call(E& exec, Out&& out, const Q& q, const K& k, const V& v, Rest&&... rest) {
    const auto c = check(std::forward<Out>(out), q, k, v, std::forward<Rest>(rest)...);
    const recurrence_options& o = std::get<sizeof...(Rest) - 1>(std::tie(rest...));
    scratch_lease lease(o.scratch);
    detail::run_matrix(exec, c.core, c.form, lease.memory());
  }

  /// All checks of a call and all it allocates but its scratch; writes nothing.
  template <class Out, class Q, class K, class V, class... Rest>
  [[nodiscard]] static auto check(Out&& out, const Q& q, const K& k, const V& v, Rest&&... rest) {
    api::require_tensors<const Q&, const K&, const V&>();
    static_assert(writable_tensor<Out>, "heed: the output is not a tensor that can be written");
    static_assert(rank_of<Out> == rank_of<const Q&>, "heed: the output has another rank than q");
    using A = accumulate_t<scalar_of<const Q&>>;
    const auto all = std::tie(rest...);
    constexpr std::size_t extra = Inputs - 3;
    const recurrence_options& o = std::get<extra + 1>(all);
    const view<const scalar_of<const Q&>, 4> q4 = as_rank4(as_view(q));
    const view<const scalar_of<const K&>, 4> k4 = as_rank4(as_view(k));
    const view<const scalar_of<const V&>, 4> v4 = as_rank4(as_view(v));
    detail::check_matrix_options(o, q4.extents());
    require_equal("k", "batch", k4.extent(0), "q", q4.extent(0));
    require_equal("v", "batch", v4.extent(0), "q", q4.extent(0));
    require_equal("k", "tokens", k4.extent(2), "q", q4.extent(2));
    require_equal("v", "tokens", v4.extent(2), "q", q4.extent(2));
    require_equal("k", "head dim", k4.extent(3), "q", q4.extent(3));
    const index heads = detail::common_heads("v", v4.extent(1), "k", k4.extent(1));
    const index out_heads = detail::common_heads("q", q4.extent(1), "the state", heads);

    detail::matrix_call<A, rank_of<const Q&>> c;
    auto& r = c.core;
    r.q = detail::make_token_input<A>(q4);
    r.k = detail::make_token_input<A>(k4);
    r.v = detail::make_token_input<A>(v4);
    const index d = k4.extent(3);
    c.default_scale = d > 0 ? 1 / std::sqrt(static_cast<double>(d)) : 1.0;
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      M::describe(c, std::get<I>(all)...);
    }(std::make_index_sequence<extra>{});
    r.scale = checked_finite<A>("scale", o.scale.value_or(c.default_scale));
    r.bounds = o.sequence_bounds;

    const auto o4 = as_rank4(as_view(std::forward<Out>(out)));
    const std::array<index, 4> expected{q4.extent(0), out_heads, q4.extent(2), v4.extent(3)};
    if (o4.extents() != expected) {
      fail<shape_error>("out has extents " + format_extents(o4.extents()) + ", the result has " +
                        format_extents(expected));
    }
    r.out = detail::make_token_output<A>(o4);
    using state_type = std::remove_reference_t<std::tuple_element_t<extra, std::tuple<Rest...>>>;
    if constexpr (!std::is_same_v<std::remove_cv_t<state_type>, no_state>) {
      static_assert(tensor_like<state_type&>,
                    "heed: a state is a tensor; options are of the method's type");
      if constexpr (tensor_like<state_type&>) {
        static_assert(
            std::is_same_v<view_of<state_type&>, view<A, 4>>,
            "heed: the state has another rank than 4, or not the accumulator type (float, "
            "or double for double), or is constant");
      }
      r.state = as_view(std::get<extra>(all));
      const std::array<index, 4> s{r.sequences(), heads, d, v4.extent(3)};
      if (r.state.extents() != s) {
        fail<shape_error>("state has extents " + format_extents(r.state.extents()) +
                          ", the call needs " + format_extents(s));
      }
    }

    const index tokens = q4.extent(2);
    c.form = o.form.value_or(tokens < 8 ? linear_form::recurrent : linear_form::chunked);
    if (c.form == linear_form::parallel && r.writes != detail::write_kind::outer) {
      fail<option_error>("form is parallel, but a corrected state has no quadratic form");
    }
    const index most = r.gates == detail::gate_kind::per_channel ? 16 : 64;
    const index step =
        (std::min)({o.chunk.value_or(most), longest_chunk, std::max<index>(tokens, 1)});
    r.chunk_tokens = c.form == linear_form::recurrent ? 1 : step;
    return c;
  }
};

}  // namespace heed::inline HEED_TARGET
