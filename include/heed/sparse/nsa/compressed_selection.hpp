// SPDX-License-Identifier: MIT
// Blocks selected by the attention that compressed blocks of the same tokens receive (native sparse
// attention).
//
//   p_hi = exp(scale q_h.kc_i - lse_h)                over the compressed blocks i the row sees
//   importance_j = sum_h sum_i p_hi |C_i and S_j| / stride    h: the query heads of a group
//
// with C_i the tokens of compressed block i and S_j those of selection block j: where `stride`
// divides both lengths that is the sum of the probabilities of eq. 9, each as often as they share a
// stride of tokens. A row takes the `initial` first blocks, the `local` newest (its own and those
// before it), and the most important others among those that begin at or before it.
//
// | argument | axes                                                                     |
// |----------|--------------------------------------------------------------------------|
// | q        | [batch, heads, queries, head dim]                                        |
// | kc       | [batch, kv heads, compressed blocks, head dim], see block_compression    |
// | lse      | [batch, heads, queries], that of attention to kc; absent: computed here  |
// | result   | [batch, kv heads, queries, count], for `selected_attention` with `block` |
//
// Selected blocks are listed in this order: the initial and local ones ascending, then by
// importance, ties to the lower index, -1 where there are fewer. Accumulates in the accumulator
// type, importance within some (head dim + blocks) eps; a NaN is never preferred. A row that sees
// no compressed block finds all others equally important. Cost: 2 N C D FLOPs a query head over the
// visible of C compressed blocks, twice without lse; scratch a worker: some 100 rows of one number
// a selection block, never N x C. Parallel over rows: the same bits for any number of threads.
// Throws shape_error, option_error, std::bad_alloc. Yuan et al. 2025, arXiv 2502.11089, eq. 8 to
// 12.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>

#include "heed/api/overloads.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/top_k/streaming_top_k.hpp"
#include "heed/parallel/scratch_tasks.hpp"
#include "heed/sparse/nsa/compressed.hpp"
#include "heed/sparse/nsa/compressed_scores.hpp"
#include "heed/sparse/select/top_k.hpp"

namespace heed::inline HEED_TARGET {

struct compressed_selection_options {
  index count = 16;                            ///< indices a row, the fixed ones included
  index block = 64;                            ///< tokens a selection block
  index initial = 1;                           ///< first blocks, always selected
  index local = 2;                             ///< newest blocks, always selected
  compressed_blocks compression{};             ///< how kc represents the tokens
  std::optional<double> scale = std::nullopt;  ///< 1 / sqrt(head dim) where absent
  index offset = 0;                            ///< position of row 0
};

namespace detail {

/// importance[j] += p[i] |C_i and S_j| / stride for the compressed blocks `keys`, in so many
/// packets.
template <int Packets, class A>
void add_importance(const compressed_selection_options& o, index blocks, range keys, const A* p,
                    A* importance) noexcept {
  using plan = tile_plan<A>;
  const A stride = static_cast<A>(o.compression.stride);
  index shared = 0;
  auto weight = simd::zero<A>();
  index first = keys.begin * o.compression.stride / o.block;
  for (index i = keys.begin; i < keys.end; ++i, p += plan::group) {
    const range tokens = o.compression.tokens(i);
    while ((first + 1) * o.block <= tokens.begin) ++first;
    for (index j = first; j < blocks && j * o.block < tokens.end; ++j) {
      const index both = intersect(tokens, {j * o.block, (j + 1) * o.block}).size();
      if (both != shared) weight = simd::broadcast(static_cast<A>(both) / stride);
      shared = both;
      A* const to = importance + j * plan::group;
      for (index l = 0; l < Packets * plan::lanes; l += plan::lanes) {
        simd::store(to + l, simd::fmadd(weight, simd::load(p + l), simd::load(to + l)));
      }
    }
  }
}

/// The row's indices from the importance of its `blocks` candidates, which may be read a group
/// behind the last one. `list` holds count - initial - local of one row.
template <class A>
void choose_blocks(const compressed_selection_options& o, index blocks, const A* importance,
                   running_largest<A>& list, index* to) noexcept {
  index fixed = 0;
  for (index j = 0; j < (std::min)(blocks, o.initial); ++j) to[fixed++] = j;
  const range others{fixed, (std::max)(fixed, blocks - o.local)};
  for (index j = others.end; j < blocks; ++j) to[fixed++] = j;
  list.start(1);
  list.take_row(0, importance + others.begin, others);
  list.descending(0, to + fixed);
  // A row with fewer than the fixed ones has no others.
  std::fill(to + fixed + (o.count - o.initial - o.local), to + o.count, index{-1});
}

inline void check_compressed_selection(const std::array<index, 4>& q, const std::array<index, 4>& k,
                                       index tokens, const compressed_selection_options& o) {
  require_equal("kc", "batch", k[0], "q", q[0]);
  require_equal("kc", "head dim", k[3], "q", q[3]);
  if (k[1] == 0 ? q[1] != 0 : q[1] % k[1] != 0) {
    fail<shape_error>("q has " + std::to_string(q[1]) + " heads, not a multiple of kc's " +
                      std::to_string(k[1]));
  }
  o.compression.check();
  if (tokens < 0 || k[2] < o.compression.whole(tokens)) {
    fail<shape_error>("kc has " + std::to_string(k[2]) + " blocks, " + std::to_string(tokens) +
                      " tokens have " + std::to_string(o.compression.whole(tokens)));
  }
  if (o.block < 1)
    fail<option_error>("block is " + std::to_string(o.block) + ", must be at least 1");
  check_row_positions(o.offset, q[2]);
  if (o.initial < 0 || o.local < 0 || o.count < saturating_sum(o.initial, o.local)) {
    fail<option_error>("count is " + std::to_string(o.count) + ", initial " +
                       std::to_string(o.initial) + ", local " + std::to_string(o.local) +
                       ", must have initial, local >= 0 and count >= initial + local");
  }
}

/// `lse(b, h, i)` is read where `given`.
template <class E, class TQ, class TK, class A>
[[nodiscard]] tensor<index, 4> select_compressed(E& exec, const view<const TQ, 4>& q,
                                                 const view<const TK, 4>& k, index tokens,
                                                 compressed_selection_options o,
                                                 const view<const A, 3>* lse) {
  using plan = tile_plan<A>;
  check_compressed_selection(q.extents(), k.extents(), tokens, o);
  // A block of more tokens than there are is one of all.
  o.block = (std::min)(o.block, std::max<index>(tokens, 1));
  const index n = q.extent(2);
  const index d = q.extent(3);
  const index kv_heads = k.extent(1);
  const index heads = kv_heads > 0 ? q.extent(1) / kv_heads : 0;
  const index blocks = ceil_div(tokens, o.block);
  check_listed("the blocks", blocks);
  const double root = std::sqrt(static_cast<double>(std::max<index>(d, 1)));
  const A scale = checked_finite<A>("scale", o.scale.value_or(1 / root));
  tensor<index, 4> selection({q.extent(0), kv_heads, n, o.count});
  const index tiles = ceil_div(n, plan::group);
  const index tasks = q.extent(0) * kv_heads * tiles;
  if (tasks == 0) return selection;

  workspace memory;
  struct scratch_type : importance_scratch<A> {
    running_largest<A> list;
  };
  const auto allocate = [&](arena& c) noexcept {
    scratch_type s;
    s.allocate(c, heads, d, blocks);
    s.list.allocate(c, 1, o.count - o.initial - o.local);
    return s;
  };
  for_each_with_scratch(exec, tasks, memory, allocate, [&](scratch_type& s, index t) noexcept {
    const index b = t / tiles / kv_heads;
    const index kv = t / tiles % kv_heads;
    // The last rows see the most: long tasks first.
    const index begin = (tiles - 1 - t % tiles) * plan::group;
    const index rows = (std::min)(plan::group, n - begin);
    const index first = o.offset + begin;
    // Blocks that begin at or before row r.
    const auto candidates = [&](index r) {
      const index p = first + r;
      return p < 0 ? index{0} : (std::min)(blocks, p / o.block + 1);
    };
    const index most = candidates(rows - 1);
    std::fill_n(s.importance, most * plan::group, A(0));
    for (index h = 0; h < heads; ++h) {
      const index head = kv * heads + h;
      plain_block<A>::pack(rectangle<const TQ>{&q(b, head, begin, 0), q.stride(2), q.stride(3)},
                           rows, d, scale, s.q + h * d * plan::group);
      for (index i = 0; lse != nullptr && i < plan::group; ++i) {
        const A l = i < rows ? (*lse)(b, head, begin + i) : A(0);
        s.shift[h * plan::group + i] = l == softmax_state<A>::empty_max ? A(0) : l;
      }
    }
    const row_run<TK> keys{k.data() + b * k.stride(0) + kv * k.stride(1), k.stride(2), k.extent(2)};
    const compressed_scores<TK, A> scores(keys, k.stride(3), d, o.compression, first, rows, s);
    if (lse == nullptr) scores.find_shifts(heads);
    scores.each_probability(heads, [&](range at, auto packets) noexcept {
      add_importance<packets()>(o, most, at, s.scores, s.importance);
    });
    copy_tile<A, A>({s.importance, 1, plan::group}, {s.rows, blocks, 1}, rows, most);
    for (index r = 0; r < rows; ++r) {
      choose_blocks(o, candidates(r), s.rows + r * blocks, s.list,
                    selection.data() + ((b * kv_heads + kv) * n + begin + r) * o.count);
    }
  });
  return selection;
}

}  // namespace detail

namespace detail {

struct compressed_selection_method : api::method<compressed_selection_options> {
  template <class E, tensor_like Q, tensor_like K>
  [[nodiscard]] static tensor<index, 4> call(E& exec, const Q& q, const K& kc, index tokens,
                                             const compressed_selection_options& o) {
    using A = accumulate_t<scalar_of<const Q&>>;
    static_assert(std::is_same_v<A, accumulate_t<scalar_of<const K&>>>,
                  "heed: q and kc accumulate in different types; double goes with double alone");
    const view<const A, 3>* const none = nullptr;
    return detail::select_compressed(exec, detail::selection_input(q), detail::selection_input(kc),
                                     tokens, o, none);
  }
  template <class E, tensor_like Q, tensor_like K, tensor_like L>
  [[nodiscard]] static tensor<index, 4> call(E& exec, const Q& q, const K& kc, index tokens,
                                             const compressed_selection_options& o, const L& lse) {
    using A = accumulate_t<scalar_of<const Q&>>;
    static_assert(std::is_same_v<A, accumulate_t<scalar_of<const K&>>>,
                  "heed: q and kc accumulate in different types; double goes with double alone");
    static_assert(std::is_same_v<A, scalar_of<const L&>> && rank_of<const L&> == 3,
                  "heed: lse has axes batch, heads, queries and the accumulator type");
    const auto q4 = detail::selection_input(q);
    const view<const A, 3> given = as_view(lse);
    require_equal("lse", "batch", given.extent(0), "q", q4.extent(0));
    require_equal("lse", "heads", given.extent(1), "q", q4.extent(1));
    require_equal("lse", "queries", given.extent(2), "q", q4.extent(2));
    return detail::select_compressed(exec, q4, detail::selection_input(kc), tokens, o, &given);
  }
};

}  // namespace detail

/// compressed_block_selection([executor,] q, kc, tokens, options [, lse]): `tokens` of the sequence
/// that kc represents.
inline constexpr api::function<detail::compressed_selection_method,
                               api::form<detail::compressed_selection_method, 2, index>>
    compressed_block_selection{};
}  // namespace heed::inline HEED_TARGET
