// SPDX-License-Identifier: MIT
// Gradients of what a modifier reads, a bias, slopes, a relative table or sink logits, told to a
// callback by a backward pass:
//
//   with_gradient(modifier, accumulate)    accumulate(d_score, position) for each pair
//   with_gradient(modifier, table, add)    add(sums, d_score, position), sums like the table
//
// d_score is the gradient of the score behind that modifier. Of a sink it is that of the head's
// logit, one call a query row, with key -1. Pairs of probability 0 are left out.
// A pass with a plain callback runs on one thread. With a table a task, which is a kv head, sums in
// a table of its own, and these are added to the caller's in the tasks' order: parallel, and the
// same bits for any number of threads. A callback with `static constexpr bool one_kv_head = true`
// writes nothing that another kv head's pairs write, and is called by a thread for each of these.
#pragma once

#include <concepts>
#include <cstddef>
#include <type_traits>
#include <utility>

#include "heed/core/target.hpp"
#include "heed/score/combine.hpp"
#include "heed/score/concepts.hpp"
#include "heed/tensor/traits.hpp"
#include "heed/tensor/view.hpp"

namespace heed::inline HEED_TARGET {

/// When a modifier acts: as it declares, else a mask where it returns bool, else on scores.
template <class M>
[[nodiscard]] constexpr stage stage_of_modifier() noexcept {
  if constexpr (requires { M::when; }) {
    return M::when;
  } else {
    return mask_function<M> ? stage::mask : stage::score;
  }
}

/// Modifier M, which tells `accumulate` the gradients of its scores in a backward pass. In a forward
/// pass it is M.
template <class M, class F>
struct gradient_modifier : M {
  static constexpr stage when = stage_of_modifier<M>();
  F accumulate;

  constexpr gradient_modifier(M m, F f) : M(std::move(m)), accumulate(std::move(f)) {}

  /// What M becomes in a call, with the same callback.
  [[nodiscard]] auto bind(const score_extents& e) const
    requires binds_to_call<M>
  {
    using bound = std::remove_cvref_t<decltype(M::bind(e))>;
    return gradient_modifier<bound, F>(M::bind(e), accumulate);
  }
};

/// A callback that adds to a table of gradients, the caller's or one like it.
template <class T, int Rank, class F>
struct table_gradient {
  using scalar = T;
  view<T, Rank> sums;
  view<T, Rank> packed;  // the same extents, row-major
  F add;

  table_gradient(const view<T, Rank>& table, F f)
      : sums(table), packed(table.data(), table.extents()), add(std::move(f)) {}

  /// To the caller's.
  void operator()(T d_score, const position& p) const { add(sums, d_score, p); }
  /// To one of a task: numbers() consecutive numbers.
  HEED_INLINE void add_to(T* own, T d_score, const position& p) const noexcept {
    add(packed.over(own), d_score, p);
  }
  [[nodiscard]] index numbers() const noexcept { return sums.size(); }
  /// A task's table to the caller's.
  void merge(const T* own) const noexcept { merge_rows(sums, own); }

 private:
  template <int R>
  static void merge_rows(const view<T, R>& to, const T*& own) noexcept {
    for (index i = 0; i < to.extent(0); ++i) {
      if constexpr (R == 1) {
        to(i) += *own++;
      } else {
        merge_rows(to[i], own);
      }
    }
  }
};

/// Who may call a callback.
enum class told_by { nobody, one_thread, one_kv_head, tables };
/// Which threads may call callback F: one, unless F says otherwise.
template <class F>
inline constexpr told_by callers_of = told_by::one_thread;
/// One for each kv head.
template <class F>
  requires(F::one_kv_head)
inline constexpr told_by callers_of<F> = told_by::one_kv_head;
/// Every one, with a table of its task's.
template <class T, int Rank, class F>
inline constexpr told_by callers_of<table_gradient<T, Rank, F>> = told_by::tables;

/// `with_gradient(heed::bias(b), [&](float d, heed::position p) { db(p.row, p.key) += d; })`.
/// A plain callback is called by one thread, in an order that does not depend on the executor.
template <class M, class F>
[[nodiscard]] constexpr auto with_gradient(M modifier, F accumulate) {
  using result = gradient_modifier<M, F>;
  static_assert(std::is_class_v<M>, "heed: with_gradient takes a modifier, not a pointer to one");
  static_assert(std::invocable<const F&, float, const position&> ||
                    std::invocable<const F&, double, const position&>,
                "heed: with_gradient calls accumulate(d_score, heed::position)");
  static_assert(
      result::when == stage::score || result::when == stage::bias || result::when == stage::sink,
      "heed: with_gradient takes a score modifier, a bias or a sink: nothing else has "
      "gradients to tell");
  return result(std::move(modifier), std::move(accumulate));
}

/// `with_gradient(f, d_table, [](auto sums, float d, heed::position p) { sums(bucket(p)) += d; })`.
/// Gradients are added to what the table holds. It has the accumulator type: float, or double for
/// double. Memory: a table for each kv head of twice as many as there are threads.
template <class M, writable_tensor Table, class F>
[[nodiscard]] auto with_gradient(M modifier, Table&& table, F add) {
  const auto sums = as_view(std::forward<Table>(table));
  using T = typename decltype(sums)::scalar;
  constexpr int rank = std::remove_const_t<decltype(sums)>::rank;
  static_assert(std::invocable<const F&, const view<T, rank>&, T, const position&>,
                "heed: with_gradient calls add(view of sums, d_score, heed::position)");
  return with_gradient(std::move(modifier), table_gradient<T, rank, F>(sums, std::move(add)));
}

}  // namespace heed::inline HEED_TARGET
