// SPDX-License-Identifier: MIT
// The weights of a call, pooled into at most so many rows and columns: what there is to look at.
//
//   share(r, c) = mean over the queries i of row r of the sum of w_ij over the keys j of column c
//   w_ij = what `attention` multiplies v_j by in row i
//
// The weights are those of `attention` itself, whose values are here the columns' indicators: any
// mask, score modifier, dropout, sink and probability modifier acts as in the call. A row of the map
// sums to 1, to less where a sink takes a part, to 0 where no key is visible. One head, or the mean
// of all query heads.
//
//   weight_map m = map_weights(exec, q, k, {.head = 3}, options, causal(), softcap(50.f));
//   weight_map m = map_weights(exec, q, k, {}, pattern, options, causal());
//
// With a pattern the map also tells its recall: the share of the weights of the visible pairs that
// lie in its blocks, the mean over all rows that see a key (a sink's part counts as kept). The
// pattern may be one of full or of partial blocks; of these all pairs are kept.
//
// Shapes as in `attention`. Accumulator as there, means in double: error as the output's. Cost: a
// call with a value dim of min(columns, keys), with a pattern a second one; memory: its output,
// B H N columns numbers. The same bits for any number of threads. Throws what `attention` throws,
// option_error on a batch or head that q does not have and on less than 1 row or column.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <utility>

#include "heed/attention/exact.hpp"
#include "heed/core/target.hpp"
#include "heed/sparse/pattern/block_mask.hpp"
#include "heed/sparse/pattern/block_pattern.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

struct weight_map_options {
  index batch = 0;
  std::optional<index> head = std::nullopt;  ///< the mean of all query heads where absent
  index rows = 96;                           ///< at most
  index columns = 96;                        ///< at most
};

struct weight_map {
  tensor<double, 2> share;  ///< [rows, columns]
  index queries = 0;
  index keys = 0;
  index query_cell = 1;  ///< queries a row, fewer in the last
  index key_cell = 1;    ///< keys a column, fewer in the last
  index batch = 0;
  std::optional<index> head = std::nullopt;             ///< absent: the mean of all
  std::optional<block_pattern> pattern = std::nullopt;  ///< whose recall is told
  std::optional<double> recall = std::nullopt;          ///< absent where no row sees a key
};

namespace detail {

inline void check_map(const weight_map_options& o, const std::array<index, 4>& q) {
  const auto within = [](const char* name, index i, index extent) {
    if (i < 0 || i >= extent) {
      fail<option_error>(std::string(name) + " is " + std::to_string(i) + ", q has " +
                         std::to_string(extent));
    }
  };
  within("batch", o.batch, q[0]);
  if (o.head) within("head", *o.head, q[1]);
  if (o.rows < 1 || o.columns < 1) {
    fail<option_error>("a map of " + std::to_string(o.rows) + " rows and " +
                       std::to_string(o.columns) + " columns, needs at least 1 of each");
  }
}

/// [keys, columns]: 1 where the key is of the column.
template <class T>
[[nodiscard]] tensor<T, 2> column_indicators(index keys, index cell) {
  tensor<T, 2> of({keys, ceil_div(keys, cell)});
  for (index j = 0; j < keys; ++j) {
    for (index c = 0; c < of.extent(1); ++c) of(j, c) = T(j / cell == c ? 1.0F : 0.0F);
  }
  return of;
}

/// The same matrix for every batch and KV head.
template <class T>
[[nodiscard]] view<const T, 4> for_all_heads(const tensor<T, 2>& of, index batch, index heads) {
  return {of.data(), {batch, heads, of.extent(0), of.extent(1)}, {0, 0, of.extent(1), 1}};
}

/// Mean of f(head) over the heads that are looked at.
template <class F>
[[nodiscard]] double mean_of_heads(const std::optional<index>& head, index heads, const F& f) {
  if (head) return f(*head);
  double sum = 0;
  for (index h = 0; h < heads; ++h) sum += f(h);
  return sum / static_cast<double>(heads);
}

/// The mean of exp(kept - all) over the rows that see a key.
template <class L>
[[nodiscard]] std::optional<double> kept_share(const L& kept, const L& all,
                                               const weight_map_options& o) {
  double sum = 0;
  index rows = 0;
  for (index h = o.head.value_or(0); h < (o.head ? *o.head + 1 : all.extent(1)); ++h) {
    for (index i = 0; i < all.extent(2); ++i) {
      const auto whole = static_cast<double>(all(o.batch, h, i));
      if (std::isinf(whole) && whole < 0) continue;
      sum += std::exp(static_cast<double>(kept(o.batch, h, i)) - whole);
      ++rows;
    }
  }
  if (rows == 0) return std::nullopt;
  return sum / static_cast<double>(rows);
}

}  // namespace detail

/// The weights of attention(executor, q, k, any values, options, modifiers...).
template <executor E, tensor_like Q, tensor_like K, class... M>
[[nodiscard]] weight_map map_weights(E& exec, const Q& q, const K& k,
                                     const weight_map_options& o = {},
                                     const attention_options& options = {}, const M&... modifiers) {
  using A = accumulate_t<scalar_of<const Q&>>;
  const auto q4 = as_rank4(as_view(q));
  const auto k4 = as_rank4(as_view(k));
  detail::check_map(o, q4.extents());
  const index n = q4.extent(2);
  const index keys = k4.extent(2);
  weight_map m;
  m.queries = n;
  m.keys = keys;
  m.batch = o.batch;
  m.head = o.head;
  m.query_cell = std::max<index>(1, ceil_div(n, o.rows));
  m.key_cell = std::max<index>(1, ceil_div(keys, o.columns));

  const auto columns = detail::column_indicators<scalar_of<const K&>>(keys, m.key_cell);
  tensor<A, 4> of_rows({q4.extent(0), q4.extent(1), n, columns.extent(1)});
  attention_into(exec, of_rows, q4, k4, detail::for_all_heads(columns, k4.extent(0), k4.extent(1)),
                 options, modifiers...);

  m.share = tensor<double, 2>({ceil_div(n, m.query_cell), columns.extent(1)});
  for (index r = 0; r < m.share.extent(0); ++r) {
    const range rows{r * m.query_cell, (std::min)((r + 1) * m.query_cell, n)};
    for (index c = 0; c < m.share.extent(1); ++c) {
      m.share(r, c) = detail::mean_of_heads(o.head, q4.extent(1), [&](index h) {
        double sum = 0;
        for (index i = rows.begin; i < rows.end; ++i) {
          sum += static_cast<double>(of_rows(o.batch, h, i, c));
        }
        return sum / static_cast<double>(rows.size());
      });
    }
  }
  return m;
}

/// The same, with the pattern and its recall. The pattern's extents fit the call's, as in
/// attention(..., blocks(pattern)).
template <executor E, tensor_like Q, tensor_like K, class... M>
[[nodiscard]] weight_map map_weights(E& exec, const Q& q, const K& k, const weight_map_options& o,
                                     const block_pattern& pattern,
                                     const attention_options& options = {}, const M&... modifiers) {
  using A = accumulate_t<scalar_of<const Q&>>;
  weight_map m = map_weights(exec, q, k, o, options, modifiers...);
  const auto q4 = as_rank4(as_view(q));
  const auto k4 = as_rank4(as_view(k));
  const tensor<scalar_of<const K&>, 2> one_value({k4.extent(2), 1});
  const auto v = detail::for_all_heads(one_value, k4.extent(0), k4.extent(1));
  tensor<A, 4> out({q4.extent(0), q4.extent(1), q4.extent(2), 1});
  const auto log_sum_exps = [&](const auto&... all) {
    tensor<A, 3> lse({q4.extent(0), q4.extent(1), q4.extent(2)});
    attention_into(exec, into(out, lse), q4, k4, v, options, all...);
    return lse;
  };
  const block_pattern whole = whole_blocks(pattern);
  m.recall =
      detail::kept_share(log_sum_exps(modifiers..., blocks(whole)), log_sum_exps(modifiers...), o);
  m.pattern = pattern;
  return m;
}

}  // namespace heed::inline HEED_TARGET
