// SPDX-License-Identifier: MIT
// Exact attention without its score matrix: tiles of scores, a running softmax.
//
//   out_i = sum_j exp(s_ij - lse_i) v_j,   lse_i = log sum_j exp(s_ij)
//   s_ij = scale q_i.k_j -> softcap -> score modifiers -> bias -> mask
//
// | argument | axes                               |
// |----------|------------------------------------|
// | q        | [batch, heads, queries, head dim]  |
// | k        | [batch, kv heads, keys, head dim]  |
// | v        | [batch, kv heads, keys, value dim] |
// | out      | [batch, heads, queries, value dim] |
//
// Accumulates in the accumulator type; for scores of order one the result is within 3e-7 of exact
// arithmetic in float, 1e-14 in double. Key blocks that the masks make empty are skipped, full ones
// run no mask code. The same bits for any number of threads and any batch size.
// A masked pair contributes nothing whatever k and v hold; an unmasked NaN propagates; a row
// without a visible key gives 0 and log-sum-exp -inf. A score of -inf weighs nothing, as if masked.
// Cost per head: 4 N M D FLOPs over the visible blocks, memory O(N) beyond the arguments: scratch
// of a worker is about 200 (head dim + value dim) numbers and a block of scores. Throws
// shape_error, option_error, std::bad_alloc, before anything is written. Safe to call from several
// threads, with a scratch workspace each. Dao, Fu, Ermon, Rudra, Re 2022, arXiv 2205.14135,
// algorithm 1; Dao 2023, arXiv 2307.08691.
#pragma once

#include "heed/attention/door.hpp"
#include "heed/kernel/exact_task.hpp"

namespace heed {

namespace detail {

struct tiled_kernel {
  template <class E, class Call>
  static void run(E& exec, const Call& call) {
    using A = typename Call::A;
    using plan = tile_plan<A>;
    const score_extents e = call.extents();
    const head_dims d{call.q.extent(3), call.out.extent(3)};
    constexpr index rows = plan::group * plan::groups_per_task;
    const index blocks = ceil_div(e.queries, rows);
    const index tasks = e.batch * e.heads * blocks;
    if (tasks == 0) return;

    const index workers = worker_count(exec, tasks);
    carver measure;
    exact_scratch<A>().carve(measure, d);
    workspace own;
    workspace& memory = call.options.scratch != nullptr ? *call.options.scratch : own;
    std::byte* const block = memory.reserve(measure.used() * static_cast<std::size_t>(workers));

    for_each_task(exec, workers, tasks, [&](index worker, index t) noexcept {
      exact_scratch<A> scratch;
      carver c(block + static_cast<std::size_t>(worker) * measure.used());
      scratch.carve(c, d);
      const index b = t / (e.heads * blocks);
      const index h = t / blocks % e.heads;
      const index first = t % blocks * rows;
      const index offset = call.options.offset[b];
      tile where{b, h, h / call.group(), {}, {0, call.source.length(b)}, offset};
      where.queries = {offset + first, offset + std::min(first + rows, e.queries)};
      const bool wants_lse = call.lse.data() != nullptr;
      exact_task(call.program, call.source, where, d, rows_from(call.q, b, h, first),
                 rows_from(call.out, b, h, first), call.scale,
                 wants_lse ? &call.lse(b, h, first) : nullptr, wants_lse ? call.lse.stride(2) : 0,
                 scratch);
    });
  }

 private:
  template <class T>
  static rectangle<T> rows_from(const view<T, 4>& x, index b, index h, index row) noexcept {
    return {x.data() + b * x.stride(0) + h * x.stride(1) + row * x.stride(2), x.stride(2),
            x.stride(3)};
  }
};

}  // namespace detail

/// attention([executor,] q, k, v, options = {}, modifiers...) -> a tensor of q's family
inline constexpr detail::returning_form<detail::tiled_kernel> attention{};
/// attention_into([executor,] out | into(out, lse), q, k, v, options = {}, modifiers...)
inline constexpr detail::writing_form<detail::tiled_kernel> attention_into{};
/// attention_with_lse([executor,] q, k, v, options = {}, modifiers...) -> attention_result
inline constexpr detail::lse_form<detail::tiled_kernel> attention_with_lse{};

}  // namespace heed
