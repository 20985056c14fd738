// SPDX-License-Identifier: MIT
// Attention within clusters of tokens: the Routing Transformer's, and any other clusters'.
//
//   routing_attention([executor,] q, k, v, queries, keys, options = {}, modifiers...)
//
// | argument | axes                                     | meaning                           |
// |----------|------------------------------------------|-----------------------------------|
// | q        | [batch, heads, queries, head dim]        |                                   |
// | k, v     | [batch, kv heads, keys, ...]             |                                   |
// | queries  | [batch, L heads, clusters, window]       | rows of each cluster, any order   |
// | keys     | [batch, L heads, clusters, other window] | keys of each cluster, any order   |
//
// Row i sees key j where some cluster holds both: a row in several clusters attends to the union of
// their keys, a pair that several clusters hold counts once. A negative entry is none, so that
// clusters may be ragged. The lists have 1 batch or the call's, 1 head, the KV heads or the query
// heads, each of the two for itself. The result is that of `attention` under that mask: scale,
// modifiers, masks, sinks, dropout and log-sum-exp mean what they mean there, `causal()` must be
// given, and a row in no cluster is 0 with log-sum-exp -inf. `route_tokens` (heed/sparse.hpp)
// makes lists.
//
// Accumulator and errors as in `attention`; the parts of a row join in the order of the clusters by
// compensated sums: 3 eps and the rounding of their log-sum-exps, however many they are. Cost 2 (D + Dv) FLOPs a listed pair. Memory beside the result: value
// dim + 3 numbers a listed row, and clusters / 32 words a token; scratch a worker as in
// `attention`. The same bits for any number of threads. Throws shape_error, std::bad_alloc before
// anything is written. Roy, Saffar, Vaswani, Grangier 2021, arXiv 2003.05997, section 4.
#pragma once

#include <algorithm>
#include <string>

#include "heed/api/attention_overloads.hpp"
#include "heed/core/target.hpp"
#include "heed/sparse/gather/gathered_tile.hpp"
#include "heed/sparse/routing/cluster_membership.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

template <class I>
void check_clusters(const char* name, const view<const I, 4>& lists, index clusters, index tokens,
                    const score_extents& e) {
  check_list_heads(name, lists.extents(), e);
  require_equal(name, "clusters", lists.extent(2), "queries", clusters);
  for (index b = 0; b < lists.extent(0); ++b) {
    for (index h = 0; h < lists.extent(1); ++h) {
      for (index c = 0; c < clusters; ++c) {
        for (index i = 0; i < lists.extent(3); ++i) {
          if (static_cast<index>(lists(b, h, c, i)) < tokens) continue;
          fail<shape_error>(std::string(name) + " names token " +
                            std::to_string(static_cast<index>(lists(b, h, c, i))) + " of " +
                            std::to_string(tokens));
        }
      }
    }
  }
}

template <class E, class Call, class I, class J>
void run_routing(E& exec, const Call& call, const view<const I, 4>& queries,
                 const view<const J, 4>& keys) {
  using A = typename Call::A;
  const score_extents e = call.extents;
  require_rows_in_parts<Call>();
  check_listable(e);
  const index clusters = queries.extent(2);
  check_clusters("queries", queries, clusters, e.queries, e);
  check_clusters("keys", keys, clusters, e.keys, e);
  const index heads = e.batch * e.heads;
  if (heads * e.queries == 0) return;
  const head_dims d{call.q.extent(3), call.out.extent(3)};
  const list_heads q_heads{queries.extent(0), queries.extent(1)};
  const list_heads k_heads{keys.extent(0), keys.extent(1)};
  const index window = queries.extent(3);

  struct worker_scratch {
    listed_scratch<Call> task;
    cluster_rule rule;
    A* lost = nullptr;
  };
  constexpr index most = listed_scratch<Call>::most_rows;
  const auto allocate_worker = [&](arena& c) {
    worker_scratch s;
    s.task.allocate(c, d);
    s.rule.allocate(c, clusters, most);
    s.lost = c.allocate<A>(d.value_dim);
    return s;
  };
  arena measure;
  (void)allocate_worker(measure);
  const index blocks = ceil_div(window, most);
  const index tasks = heads * clusters * blocks;
  const index row_block = 64;
  const index row_blocks = ceil_div(e.queries, row_block);
  const index workers = worker_count(exec, (std::max)(tasks, heads * row_blocks));

  head_clusters* q_lists = nullptr;
  head_clusters* k_lists = nullptr;
  row_places* places = nullptr;
  A* out = nullptr;  // [heads][listed][value dim]
  A* lse = nullptr;
  std::byte* scratch = nullptr;
  const auto allocate = [&](arena c) {
    q_lists = c.allocate<head_clusters>(q_heads.size());
    k_lists = c.allocate<head_clusters>(k_heads.size());
    places = c.allocate<row_places>(q_heads.size());
    const bool counts = q_lists == nullptr;
    for (index n = 0; n < q_heads.size(); ++n) {
      head_clusters l;
      l.allocate(c, clusters, window, e.queries);
      row_places r;
      r.allocate(c, e.queries, clusters * window);
      if (counts) continue;
      q_lists[n] = l;
      places[n] = r;
    }
    for (index n = 0; n < k_heads.size(); ++n) {
      head_clusters l;
      l.allocate(c, clusters, keys.extent(3), e.keys);
      if (!counts) k_lists[n] = l;
    }
    out = c.allocate<A>(heads, clusters, window, d.value_dim);
    lse = c.allocate<A>(heads, clusters, window);
    scratch = c.allocate<std::byte>(static_cast<index>(measure.used()), workers);
    return c.used();
  };
  scratch_lease memory(call.options.scratch);
  (void)allocate(arena(memory.reserve(allocate(arena()))));

  for_each_task(exec, workers, q_heads.size() + k_heads.size(), [&](index, index n) noexcept {
    if (n < q_heads.size()) {
      q_lists[n].sort(queries, n / q_heads.heads, n % q_heads.heads);
      places[n].find(q_lists[n], clusters);
    } else {
      const index m = n - q_heads.size();
      k_lists[m].sort(keys, m / k_heads.heads, m % k_heads.heads);
    }
  });

  for_each_task(exec, workers, tasks, [&](index worker, index t) noexcept {
    arena c(scratch + static_cast<std::size_t>(worker) * measure.used());
    worker_scratch s = allocate_worker(c);
    const index cluster = t / blocks % clusters;
    const index head = t / blocks / clusters;
    const index b = head / e.heads;
    const index h = head % e.heads;
    const head_clusters& q = q_lists[q_heads(e, b, h)];
    const head_clusters& k = k_lists[k_heads(e, b, h)];
    const range all = q.of(cluster);
    const range rows =
        intersect(all, {all.begin + t % blocks * most, all.begin + (t % blocks + 1) * most});
    if (rows.empty()) return;
    const range listed = k.of(cluster);
    s.rule.start(q, rows, k, listed, cluster);
    const token_lists lists{q.tokens + rows.begin, k.tokens + listed.begin, rows.size(),
                            listed.size(), call.options.offset[b]};
    const index place = head * clusters * window + rows.begin;
    attend_lists(call, s.rule, b, h, lists, s.task, out + place * d.value_dim, lse + place);
  });

  for_each_task(exec, workers, heads * row_blocks, [&](index worker, index t) noexcept {
    arena c(scratch + static_cast<std::size_t>(worker) * measure.used());
    A* const lost = allocate_worker(c).lost;
    const index head = t / row_blocks;
    const row_places& at = places[q_heads(e, head / e.heads, head % e.heads)];
    A* const parts = out + head * clusters * window * d.value_dim;
    const A* const part_lse = lse + head * clusters * window;
    const index first = t % row_blocks * row_block;
    for (index i = first; i < (std::min)(first + row_block, e.queries); ++i) {
      softmax_state<A> state;
      A* const row =
          at.begin[i] < at.begin[i + 1] ? parts + at.place[at.begin[i]] * d.value_dim : nullptr;
      const part_sums<A> sums(at.begin[i + 1] - at.begin[i], d.value_dim);
      for (index n = at.begin[i]; n < at.begin[i + 1]; ++n) {
        const index place = at.place[n];
        sums.join(state, row, lost, part_lse[place], parts + place * d.value_dim);
      }
      sums.finish(state, row, lost);
      write_row(call, head / e.heads, head % e.heads, i, state, row, sums.scale);
    }
  });
}

struct routing_attention_method : api::attention_method {
  template <class E, class Out, class Q, class K, class V, tensor_like L, tensor_like M,
            class... Mods>
  static void write(E& exec, Out&& out, const Q& q, const K& k, const V& v, const L& queries,
                    const M& keys, const attention_options& options, const Mods&... modifiers) {
    run_routing(exec, api::open_call(std::forward<Out>(out), q, k, v, options, modifiers...),
                lists4(queries), lists4(keys));
  }
};

}  // namespace detail

/// routing_attention_into([executor,] out | into(out, lse), q, k, v, queries, keys, options = {},
/// modifiers...)
inline constexpr api::writing<detail::routing_attention_method, 5> routing_attention_into{};
/// routing_attention([executor,] q, k, v, queries, keys, options = {}, modifiers...) -> a tensor of
/// q's family
inline constexpr api::returning<detail::routing_attention_method, 5> routing_attention{};

}  // namespace heed::inline HEED_TARGET
