// SPDX-License-Identifier: MIT
// Compressed blocks: each represents `length` consecutive tokens, `stride` apart, and is visible
// once all of them are.
//
//   block i holds tokens [i stride, i stride + length)
//   visible to position p iff i stride + length - 1 <= p
//
//   auto kc = heed::block_compression(pool, k, {.length = 32, .stride = 16});
//   auto vc = heed::block_compression(pool, v, {.length = 32, .stride = 16});
//   heed::attention(pool, q, kc, vc, {}, heed::compressed_blocks{.length = 32, .stride = 16});
//
// A mask for keys that are blocks; `block_compression` makes such keys by the mean, and a learned
// map may make them instead. A sequence has (tokens - length) / stride + 1 whole blocks, none where
// it is shorter than one; tokens behind the last whole block are in none. Yuan et al. 2025, arXiv
// 2502.11089, eq. 7.
#pragma once

#include <algorithm>
#include <string>

#include "heed/api/overloads.hpp"
#include "heed/core/checked.hpp"
#include "heed/core/target.hpp"
#include "heed/parallel/openmp.hpp"
#include "heed/score/masks.hpp"
#include "heed/tensor/layout.hpp"
#include "heed/tensor/scalar.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

/// The mask, and the arithmetic of its blocks. Blocks overlap where `stride` is less than `length`.
struct compressed_blocks {
  static constexpr stage when = stage::mask;

  index length = 32;      ///< tokens a block
  index stride = length;  ///< tokens from one block to the next

  /// Whole blocks of so many tokens: as many as position `tokens - 1` sees.
  [[nodiscard]] constexpr index whole(index tokens) const noexcept {
    return tokens < length ? 0 : (tokens - length) / stride + 1;
  }
  [[nodiscard]] constexpr range tokens(index block) const noexcept {
    return {block * stride, block * stride + length};
  }

  [[nodiscard]] constexpr bool operator()(const position& p) const noexcept {
    return tokens(p.key).end <= p.query + 1;
  }
  [[nodiscard]] constexpr heed::coverage coverage(const tile& t) const noexcept {
    if (t.keys.end <= whole(t.queries.begin + 1)) return heed::coverage::full;
    return t.keys.begin >= whole(t.queries.end) ? heed::coverage::empty : heed::coverage::partial;
  }
  [[nodiscard]] constexpr range visible_keys(const tile& t) const noexcept {
    return intersect(t.keys, {t.keys.begin, whole(t.queries.end)});
  }
  void check() const {
    if (length < 1 || stride < 1 || stride > length) {
      fail<option_error>("compressed_blocks has length " + std::to_string(length) + ", stride " +
                         std::to_string(stride) + ", must have 1 <= stride <= length");
    }
  }
  void check(const score_extents& e) const {
    check();
    if (saturating_product(e.keys, stride) > largest_index - length) {
      fail<option_error>("compressed_blocks has length " + std::to_string(length) + ", stride " +
                         std::to_string(stride) + ": " + std::to_string(e.keys) +
                         " blocks are more tokens than can be counted");
    }
  }
};

namespace detail {

struct block_compression_method : api::method<api::no_options> {
  template <class E, tensor_like X>
  [[nodiscard]] static auto call(E& exec, const X& x, const compressed_blocks& blocks,
                                 const api::no_options&) {
    using T = scalar_of<const X&>;
    static_assert(attention_scalar<T>,
                  "heed: blocks are compressed from float, double, half, bfloat16");
    using A = accumulate_t<T>;
    blocks.check();
    const auto from = view<const T, 4>(as_rank4(as_view(x)));
    const index count = blocks.whole(from.extent(2));
    const index channels = from.extent(3);
    const index step = from.stride(3);
    tensor<A, 4> means({from.extent(0), from.extent(1), count, channels});
    const index tasks = from.extent(0) * from.extent(1) * count;
    if (tasks == 0) return means;
    const index workers = worker_count(exec, tasks);
    const auto task = [&](index, index t) noexcept {
      const range tokens = blocks.tokens(t % count);
      A* const to = means.data() + t * channels;
      for (index j = tokens.begin; j < tokens.end; ++j) {
        const T* const row = &from(t / count / from.extent(1), t / count % from.extent(1), j, 0);
        if (step == 1) {
          for (index c = 0; c < channels; ++c) to[c] += static_cast<A>(row[c]);
        } else {
          for (index c = 0; c < channels; ++c) to[c] += static_cast<A>(row[c * step]);
        }
      }
      for (index c = 0; c < channels; ++c) to[c] /= static_cast<A>(blocks.length);
    };
    for_each_task(exec, workers, tasks, task, std::clamp<index>(tasks / (workers * 16), 1, 64));
    return means;
  }
};

}  // namespace detail

/// block_compression([executor,] x, blocks): the mean of each whole block of x [batch, kv heads,
/// tokens, channels]: [batch, kv heads, blocks, channels] in the accumulator type, each number
/// within (length) eps of its terms' absolute sum; a NaN reaches the blocks that hold it. Cost:
/// length / stride reads of x. The same bits for any number of threads. Throws option_error, std::bad_alloc.
inline constexpr api::function<detail::block_compression_method,
                               api::form<detail::block_compression_method, 1, compressed_blocks>>
    block_compression{};

}  // namespace heed::inline HEED_TARGET
