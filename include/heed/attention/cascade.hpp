// SPDX-License-Identifier: MIT
// Decode of sequences that begin alike: the shared tokens are read once for all of them, the rest
// of each by itself, and the two results merge by their log-sum-exp.
//
// | argument | axes                                                          |
// |----------|---------------------------------------------------------------|
// | q, out   | [heads, all new tokens, head dim / value dim]                 |
// | starts   | the cache's batch + 1 cumulative counts, from 0 to all tokens |
// | shared   | tokens with which all sequences that have new ones begin      |
//
// ragged_decode_into's result, faster where many sequences share a long prefix: a system prompt, or
// the continuations of one request. The shared part is read from the first sequence with new tokens,
// in whole splits of 2048 keys. The others must hold the same rows there, before their new tokens,
// which is not checked (`shared_tokens` finds out for pages). Modifiers see the positions and the
// batch entry of each row, as in a decode of its own.
//
// The same bits for any number of threads: splits begin at the same keys and merge in the same tree
// as in a decode of each sequence, whose result it is to rounding. Masks that hide part of the
// prefix, such as a window, cut the keys for all rows at once, and so change the order of a sum.
// Cost: the bytes of the shared rows once, those of the others as in separate decodes, and all
// their FLOPs: the gain is at most what separate decodes wait for memory. Scratch as there, and the
// queries once more. Throws shape_error, option_error, std::bad_alloc, before anything is written.
// Juravsky et al. 2024, arXiv 2402.05099; Ye et al. 2024, "Cascade inference" (FlashInfer).
#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include "heed/attention/ragged_decode.hpp"
#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// Some of the rows of all sequences that share a KV head: head by head, and of each the packed
/// tokens in order.
template <class Call>
struct cascade_rows {
  const Call* call = nullptr;
  index batch = 0;  // whose keys are read
  index kv_head = 0;
  range rows;

  [[nodiscard]] index size() const noexcept { return rows.size(); }
  /// Where row r belongs: its sequence, head and row there.
  [[nodiscard]] tile row(index r, range keys) const noexcept {
    const std::span<const index> starts = call->starts;
    const index tokens = starts.back();
    const index head = kv_head * call->group() + (rows.begin + r) / tokens;
    const index token = (rows.begin + r) % tokens;
    const index s = std::upper_bound(starts.begin(), starts.end(), token) - starts.begin() - 1;
    const index offset = call->options.offset[s];
    const index p = offset + token - starts[static_cast<std::size_t>(s)];
    return {s, head, kv_head, {p, p + 1}, keys, offset};
  }
};

struct cascade_kernel {
  /// Query rows that read the shared keys together: what their scratch is sized by.
  static constexpr index rows_together = 64;

  /// `shared` splits of the keys are those of batch entry `source` for all.
  template <class E, class Call>
  static void run(E& exec, const Call& call, index source, index shared) {
    require_rows_in_parts<Call>();
    using A = typename Call::A;
    using plan = split_plan<A>;
    split_layout<A> layout(exec, call);
    if (layout.all.tasks == 0 || shared == 0) return split_kernel::run(exec, call);
    const head_dims d = layout.d;
    const index rows = call.group() * call.starts.back();
    const index blocks = ceil_div(rows, rows_together);
    const index block_rows = plan::padded((std::min)(rows, rows_together));
    const index tasks = call.extents.kv_heads * shared * blocks;
    const index workers = worker_count(exec, tasks);
    arena worker;
    split_scratch<A>().allocate(worker, block_rows, d);
    const std::size_t own = layout.allocate(arena(), call.extents.batch);
    arena measure;
    (void)measure.allocate<std::byte>(static_cast<index>(own));
    (void)measure.allocate<A>(call.extents.kv_heads, blocks, block_rows, d.head_dim);
    (void)measure.allocate<std::byte>(static_cast<index>(worker.used()), workers);
    scratch_lease lease(call.options.scratch);
    arena all(lease.reserve(measure.used()));
    layout.place(call, all.allocate<std::byte>(static_cast<index>(own)));
    A* const q = all.allocate<A>(call.extents.kv_heads, blocks, block_rows, d.head_dim);
    std::byte* const scratches =
        all.allocate<std::byte>(static_cast<index>(worker.used()), workers);

    split_kernel::pack(call, layout);
    const auto block_of = [&](index h, index block) {
      const index first = block * rows_together;
      return cascade_rows<Call>{&call, source, h, {first, (std::min)(first + rows_together, rows)}};
    };
    for (index i = 0; i < call.extents.kv_heads * blocks; ++i) {
      pack_queries(call, block_of(i / blocks, i % blocks), q + i * block_rows * d.head_dim);
    }
    // Blocks of rows last: they read the same keys one after another.
    for_each_task(exec, workers, tasks, [&](index w, index t) noexcept {
      split_scratch<A> scratch;
      arena c(scratches + static_cast<std::size_t>(w) * worker.used());
      scratch.allocate(c, block_rows, d);
      const index h = t / (shared * blocks);
      const index split = t / blocks % shared;
      const index block = t % blocks;
      const range keys{split * plan::split, (split + 1) * plan::split};
      const cascade_rows<Call> which = block_of(h, block);
      start_split(scratch, which.size(), d.value_dim);
      split_keys(call.program, call.source, which, d,
                 q + (h * blocks + block) * block_rows * d.head_dim, d.head_dim, keys, scratch);
      for (index r = 0; r < which.size(); ++r) store(call, layout, which, r, split, scratch);
    });
    split_kernel::attend(exec, call, layout, shared);
    split_kernel::finish(exec, call, layout);
  }

 private:
  /// Row r's partial result of a split to where its sequence's merge looks for it.
  template <class Call, class A>
  static void store(const Call& call, const split_layout<A>& layout,
                    const cascade_rows<Call>& which, index r, index split,
                    const split_scratch<A>& scratch) noexcept {
    const tile where = which.row(r, {});
    const index b = where.batch;
    const share_size size(call, b);
    const index row =
        (where.head - which.kv_head * call.group()) * call.queries(b) + where.rows().begin;
    const index part =
        layout.begin[b].partials + (which.kv_head * size.splits + split) * size.rows + row;
    const index channels = layout.d.value_dim;
    const index at = r * round_up(channels, split_plan<A>::lanes);
    add_lost(scratch.out + at, scratch.lost + at, channels);
    layout.state[part] = scratch.state[r];
    std::copy_n(scratch.out + at, channels, layout.out + part * channels);
  }
};

struct cascade_decode_method : ragged_decode_method {
  template <class E, class Out, class Q, api::a_cache Cache, class... M>
  static void write(E& exec, Out&& out, const Q& q, const Cache& cache,
                    std::span<const index> starts, index shared, const attention_options& options,
                    const M&... modifiers) {
    const tokens_before<Cache> before{&cache, starts};
    const auto call =
        open_ragged_decode(std::forward<Out>(out), q, cache, before, options, modifiers...);
    index source = -1;
    for (index b = call.extents.batch - 1; b >= 0; --b) {
      if (call.queries(b) == 0) continue;
      source = b;
      if (shared < 0 || shared > before.length(b)) {
        fail<shape_error>("shared is " + std::to_string(shared) + " tokens, sequence " +
                          std::to_string(b) + " has " + std::to_string(before.length(b)) +
                          " before its new ones");
      }
    }
    if (source < 0) return;
    using plan = split_plan<typename std::remove_cvref_t<decltype(call)>::A>;
    cascade_kernel::run(exec, call, source, shared / plan::split);
  }
};

}  // namespace detail

/// How many tokens all sequences with new tokens share by having the same pages, before the newest
/// of each.
template <class Cache>
  requires requires(const Cache& c) { c.page_table(index{}); }
[[nodiscard]] index shared_tokens(const Cache& cache, std::span<const index> starts) {
  require_equal("starts", "entries", static_cast<index>(starts.size()), "the cache's batch + 1",
                cache.batch() + 1);
  index first = -1;
  index pages = 0;
  for (index b = 0; b < cache.batch(); ++b) {
    const index count =
        starts[static_cast<std::size_t>(b) + 1] - starts[static_cast<std::size_t>(b)];
    if (count <= 0) continue;
    const index whole = (std::max<index>)(cache.length(b) - count, 0) / cache.page_size();
    if (first < 0) {
      first = b;
      pages = whole;
      continue;
    }
    const auto mine = cache.page_table(b);
    const auto others = cache.page_table(first);
    pages = (std::min)(pages, whole);
    const auto n = static_cast<std::size_t>(pages);
    pages =
        std::mismatch(mine.begin(), mine.begin() + static_cast<std::ptrdiff_t>(n), others.begin())
            .first -
        mine.begin();
  }
  return pages * cache.page_size();
}

/// cascade_decode_into([executor,] out | into(out, lse), q, cache, starts, shared, options = {},
/// modifiers...)
inline constexpr api::function<
    detail::cascade_decode_method,
    api::form<api::writing_call<detail::cascade_decode_method>, 3, std::span<const index>, index>>
    cascade_decode_into{};

}  // namespace heed::inline HEED_TARGET
