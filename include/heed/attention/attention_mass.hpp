// SPDX-License-Identifier: MIT
// How much of a row's attention goes to each page of a cache: what policies of eviction rank pages by.
//
//   mass[i][p] = sum over visible keys j of page p of exp(s_ij - lse_i)
//
// | argument | axes                                                                   |
// |----------|------------------------------------------------------------------------|
// | q        | [batch, heads, N, head dim], the newest tokens of the cache            |
// | page     | tokens a page: page p is the keys [p page, (p + 1) page)               |
// | mass     | [batch, heads, N, pages], pages for the longest sequence of the cache  |
//
// As the weights of `decode` with the same arguments, summed: a row's masses sum to 1, less what a
// sink takes, and to 0 where the row sees nothing; `into(mass, lse)` gives the log-sum-exp too.
// Dropout is left out. A row with a NaN score is NaN. Pages behind a sequence's end have mass 0.
// Scores accumulate as in `decode`, sums of weights in double and in the order of the keys: the same
// bits for any number of threads.
//
// For few queries a head. Cost: the bytes of the keys once, 2 D FLOPs and an exponential a pair;
// scratch of a number a query row and key. Throws shape_error, option_error where page < 1,
// std::bad_alloc, before anything is written. The statistic of Zhang et al. 2023, H2O, arXiv
// 2306.14048, section 4, for pages in place of tokens.
#pragma once

#include <algorithm>
#include <string>
#include <utility>

#include "heed/api/cache_arguments.hpp"
#include "heed/attention/split_kv.hpp"
#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// A cache whose values are its pages: a result has a number for each.
template <class Cache>
class page_source : public api::kv_source_reference<Cache> {
 public:
  page_source(const Cache& c, index pages) noexcept
      : api::kv_source_reference<Cache>(c), pages_(pages) {}
  [[nodiscard]] index value_dim() const noexcept { return pages_; }

 private:
  index pages_;
};

/// Pages of the longest sequence. Throws option_error where a page holds no token.
template <class Cache>
[[nodiscard]] index mass_pages(const Cache& cache, index page) {
  if (page < 1) {
    fail<option_error>("a page has " + std::to_string(page) + " tokens, needs at least 1");
  }
  index longest = 0;
  for (index b = 0; b < static_cast<index>(cache.batch()); ++b) {
    longest = (std::max)(longest, static_cast<index>(cache.length(b)));
  }
  return ceil_div(longest, page);
}

struct mass_kernel {
  template <class E, class Call>
  static void run(E& exec, const Call& call, index page) {
    require_rows_in_parts<Call>();
    using A = typename Call::A;
    const score_extents e = call.extents;
    const index stride = round_up(e.keys, simd::lanes<A>);
    split_layout<A> layout(exec, call, {call.q.extent(3), 0});
    arena measure;
    const auto own = static_cast<index>(layout.allocate(arena(), e.batch));
    (void)measure.allocate<std::byte>(own);
    (void)measure.allocate<A>(e.batch * e.heads, e.queries, stride);
    scratch_lease lease(call.options.scratch);
    arena all(lease.reserve(measure.used()));
    layout.place(call, all.allocate<std::byte>(own));
    A* const scores = all.allocate<A>(e.batch * e.heads, e.queries, stride);
    const auto row_of = [&](index b, index h, index i) {
      return scores + ((b * e.heads + h) * e.queries + i) * stride;
    };
    split_kernel::pack(call, layout);
    for_each_task(exec, layout.workers, layout.all.tasks, [&](index worker, index t) noexcept {
      const index b = layout.batch_of(t, e.batch);
      const share_size size(call, b);
      const index at = t - layout.begin[b].tasks;
      const index h = at / size.splits;
      const index first = at % size.splits * split_plan<A>::split;
      const range keys{first, (std::min)(first + split_plan<A>::split, call.source.length(b))};
      split_scratch<A> scratch = split_kernel::scratch_of(layout, worker);
      score_split(call, layout, split_kernel::share(call, b, h), keys, scratch,
                  [&](const tile& row) { return row_of(b, row.head, row.rows().begin); });
    });
    for_each_task(exec, layout.workers, e.batch * e.heads * e.queries,
                  [&](index, index t) noexcept {
                    const index b = t / (e.heads * e.queries);
                    const index h = t / e.queries % e.heads;
                    sum_row(call, b, h, t % e.queries, page, row_of(b, h, t % e.queries));
                  });
  }

 private:
  /// The scores of a split's keys, to where its rows are kept.
  template <class Call, class A, class RowOf>
  static void score_split(const Call& call, const split_layout<A>& layout, const shared_rows& rows,
                          range keys, split_scratch<A>& scratch, const RowOf& row_of) noexcept {
    constexpr index most = split_plan<A>::keys;
    const index head_dim = layout.d.head_dim;
    const A* const q = split_kernel::queries(call, layout, rows.batch, rows.kv_head);
    for (index first = keys.begin; first < keys.end; first += most) {
      const range block{first, (std::min)(first + most, keys.end)};
      (void)score_block(call.program, call.source, rows, head_dim, q, head_dim, block, scratch);
      for (index r = 0; r < rows.size(); ++r) {
        std::copy_n(scratch.scores + r * most, block.size(), row_of(rows.row(r, block)) + first);
      }
    }
  }

  /// A row's scores become weights, and their sums over pages the result.
  template <class Call, class A>
  static void sum_row(const Call& call, index b, index h, index i, index page, A* s) noexcept {
    constexpr index lanes = simd::lanes<A>;
    constexpr A none = softmax_state<A>::empty_max;
    const index keys = call.source.length(b);
    std::fill(s + keys, s + round_up(keys, lanes), none);
    softmax_state<A> state;
    A top = none;
    for (index j = 0; j < keys; ++j) top = s[j] > top ? s[j] : top;
    (void)state.raise(top);
    const auto shift = simd::broadcast(state.max == none ? A(0) : state.max);
    for (index j = 0; j < keys; j += lanes) {
      simd::packet<A> weight[1] = {simd::sub(simd::load(s + j), shift)};
      simd::exp_nonpositive<A, 1>(weight);
      simd::store(s + j, weight[0]);
    }
    double sum = 0;
    for (index j = 0; j < keys; ++j) sum += static_cast<double>(s[j]);
    state.add(static_cast<A>(sum));
    const double factor =
        static_cast<double>(state.join_sink(call.program.sink_logit(h)) * state.normaliser());
    const auto to = call.output_rows(b, h, i);
    for (index p = 0; p < call.out.extent(3); ++p) {
      double mass = 0;
      for (index j = p * page; j < (std::min)((p + 1) * page, keys); ++j) {
        mass += static_cast<double>(s[j]);
      }
      *to.at(0, p) = static_cast<typename Call::output_scalar>(static_cast<A>(mass * factor));
    }
    if (A* lse = call.lse_rows(b, h, i)) *lse = state.log_sum_exp();
  }
};

struct attention_mass_method : api::cache_method {
  template <class Q, class Cache>
  [[nodiscard]] static consteval bool accepts() noexcept {
    return api::a_cache<Cache>;
  }
  template <class Q, api::a_cache Cache, class... Rest>
  [[nodiscard]] static auto result(const Q& q, const Cache& cache, index page, const Rest&...) {
    auto extents = as_view(q).extents();
    extents.back() = mass_pages(cache, page);
    return result_like<const Q&>(extents);
  }
  template <class E, class Out, class Q, api::a_cache Cache, class... M>
  static void write(E& exec, Out&& out, const Q& q, const Cache& cache, index page,
                    const attention_options& options, const M&... modifiers) {
    const page_source<Cache> source(cache, mass_pages(cache, page));
    mass_kernel::run(
        exec,
        api::open_decode_from(source, std::forward<Out>(out), q, cache, options, modifiers...),
        page);
  }
};

}  // namespace detail

/// attention_mass_into([executor,] mass | into(mass, lse), q, cache, page, options = {},
/// modifiers...): the sums of q's weights over pages of the cache.
inline constexpr api::function<
    detail::attention_mass_method,
    api::form<api::writing_call<detail::attention_mass_method>, 3, index>>
    attention_mass_into{};

/// attention_mass([executor,] q, cache, page, options = {}, modifiers...) -> a tensor of q's family
inline constexpr api::function<
    detail::attention_mass_method,
    api::form<api::returning_call<detail::attention_mass_method>, 2, index>>
    attention_mass{};

}  // namespace heed::inline HEED_TARGET
