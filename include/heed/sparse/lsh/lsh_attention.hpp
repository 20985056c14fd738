// SPDX-License-Identifier: MIT
// Attention among tokens of one hash bucket: Reformer's, over several rounds of hashing.
//
//   lsh_attention([executor,] q, k, v, query_buckets, key_buckets, lsh, options = {}, modifiers...)
//
// | argument      | axes                               | meaning                                  |
// |---------------|------------------------------------|------------------------------------------|
// | q             | [batch, heads, queries, head dim]  |                                          |
// | k, v          | [batch, kv heads, keys, ...]       |                                          |
// | query_buckets | [batch, L heads, rounds, queries]  | each row's bucket in each round          |
// | key_buckets   | [batch, L heads, rounds, keys]     | each key's                               |
//
// In a round keys are sorted by (bucket, position) and cut into chunks of `chunk`. A row is in
// the chunk of the last key of its bucket at or before its position (the bucket's first, where none
// is) and sees the keys of its bucket in that chunk and the one before. Where q and k are the same
// tokens, that is a token's own place among the sorted. Rows see the union of all rounds, each pair
// counted once: the paper's correction by how often rounds meet a pair (its appendix A), made by
// leaving out of a round what an earlier one has seen. A negative bucket is none. The buckets have
// 1 batch or the call's, 1 head, the KV heads or the query heads. The result is that of `attention`
// under that mask: scale, modifiers, masks, sinks, dropout and log-sum-exp mean what they mean
// there, `causal()` must be given, and a row that sees nothing is 0 with log-sum-exp -inf.
// Buckets are below `most_lsh_buckets`. `lsh_buckets` (heed/sparse.hpp) makes them.
//
// `shared_qk`: k are the queries, normalised (`unit_keys`); a token then attends to itself only
// where it sees nothing else:
//
//   lsh_attention(q, unit_keys(q), v, buckets, buckets, {.chunk = 64, .shared_qk = true}, {},
//                 causal());
//
// Accumulator and errors as in `attention`; the rounds join in their order by compensated sums: 3 eps
// and the rounding of their log-sum-exps, however many they are. Cost of a round: 2 (D + Dv) FLOPs a
// visible pair, 2 chunk of them a row at the most (tiles at the edge of a bucket compute some more),
// and O(N + M + largest bucket) of sorting. Memory beside the result: 2 value dim + 3 numbers a row
// (value dim + 3 for one round), 20 bytes a token and round, 4 a bucket, round and head. The same
// bits for any number of threads. Throws shape_error, option_error, std::bad_alloc before anything
// is written. Kitaev, Kaiser, Levskaya 2020, arXiv 2001.04451, section 2.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>

#include "heed/api/attention_overloads.hpp"
#include "heed/core/target.hpp"
#include "heed/sparse/lsh/sorted_buckets.hpp"

namespace heed::inline HEED_TARGET {

struct lsh_attention_options {
  index chunk = 64;        ///< sorted keys a chunk
  bool shared_qk = false;  ///< k are the queries' unit_keys: a token sees itself last
};

namespace detail {

struct unit_keys_method : api::method<api::no_options> {
  template <class E, tensor_like Q>
  [[nodiscard]] static auto call(E& exec, const Q& q, const api::no_options&) {
    using T = std::remove_const_t<scalar_of<const Q&>>;
    using A = accumulate_t<T>;
    constexpr index step = 64;
    const auto from = api::input4(q);
    auto keys = result_like<const Q&>(as_view(q).extents());
    const auto to = as_rank4(as_view(keys));
    const index rows = from.extent(0) * from.extent(1) * from.extent(2);
    const index tasks = ceil_div(rows, step);
    for_each_task(exec, worker_count(exec, tasks), tasks, [&](index, index t) noexcept {
      for (index n = t * step; n < (std::min)(rows, (t + 1) * step); ++n) {
        const index b = n / (from.extent(1) * from.extent(2));
        const index h = n / from.extent(2) % from.extent(1);
        const index i = n % from.extent(2);
        A square = A(0);
        for (index c = 0; c < from.extent(3); ++c) {
          const A x = static_cast<A>(from(b, h, i, c));
          square += x * x;
        }
        const A factor = square > A(0) ? A(1) / std::sqrt(square) : A(1);
        for (index c = 0; c < from.extent(3); ++c) {
          to(b, h, i, c) = static_cast<T>(static_cast<A>(from(b, h, i, c)) * factor);
        }
      }
    });
    return keys;
  }
};

}  // namespace detail

/// unit_keys([executor,] q): rows divided by their Euclidean norm, which accumulates as in
/// `attention`; a row of zeros stays.
inline constexpr api::function<detail::unit_keys_method, api::form<detail::unit_keys_method, 1>>
    unit_keys{};

namespace detail {

/// The largest bucket + 1.
template <class I>
[[nodiscard]] index check_buckets(const char* name, const view<const I, 4>& buckets, index rounds,
                                  index tokens, const score_extents& e) {
  check_list_heads(name, buckets.extents(), e);
  require_equal(name, "rounds", buckets.extent(2), "query buckets", rounds);
  require_equal(name, "tokens", buckets.extent(3), "the call", tokens);
  index most = -1;
  for (index b = 0; b < buckets.extent(0); ++b) {
    for (index h = 0; h < buckets.extent(1); ++h) {
      for (index r = 0; r < rounds; ++r) {
        for (index i = 0; i < tokens; ++i) {
          most = (std::max)(most, static_cast<index>(buckets(b, h, r, i)));
        }
      }
    }
  }
  constexpr index largest = most_lsh_buckets - 1;
  if (most > largest) {
    fail<shape_error>(std::string(name) + " names bucket " + std::to_string(most) +
                      ", the most is " + std::to_string(largest));
  }
  return most + 1;
}

/// A token that saw nothing else sees itself, where a round holds it and the masks allow it.
template <class Call>
void see_itself(const Call& call, const row_reach* reach, const sorted_keys* sorted, index rounds,
                position p, typename Call::A scale, softmax_state<typename Call::A>& state,
                typename Call::A* out, typename Call::A* lost) noexcept {
  using A = typename Call::A;
  if (state.sum != A(0) || p.key < 0 || p.key >= call.extents.keys) return;
  bool held = false;
  for (index r = 0; r < rounds; ++r) {
    held = held || reach[r].reaches(p.row, sorted[r].rank[p.key]);
  }
  if (!held || !call.program.visible(p)) return;
  const auto q = call.query_rows(p.batch, p.head, p.row);
  const auto k = call.source.keys(p.batch, p.kv_head, p.key).data;
  const auto v = call.source.values(p.batch, p.kv_head, p.key).data;
  A s = A(0);
  for (index c = 0; c < call.q.extent(3); ++c) {
    s += call.scale * static_cast<A>(*q.at(0, c)) *
         static_cast<A>(k[c * call.source.key_channel_stride()]);
  }
  s = call.program.modified(call.program.softcapped(s, p), p);
  if (s == softmax_state<A>::empty_max) return;
  const A weight = state.merge({s, A(1)}).other * call.program.dropout_factor(p) * scale;
  for (index c = 0; c < call.out.extent(3); ++c) {
    out[c] = weight * static_cast<A>(v[c * call.source.value_channel_stride()]);
    if (lost != nullptr) lost[c] = A(0);
  }
}

template <class E, class Call, class I, class J>
void run_lsh(E& exec, const Call& call, const view<const I, 4>& query_buckets,
             const view<const J, 4>& key_buckets, const lsh_attention_options& o) {
  using A = typename Call::A;
  const score_extents e = call.extents;
  require_rows_in_parts<Call>();
  check_listable(e);
  if (o.chunk < 1) {
    fail<option_error>("chunk is " + std::to_string(o.chunk) + ", must be at least 1");
  }
  const index rounds = query_buckets.extent(2);
  const index buckets =
      (std::max)(check_buckets("query buckets", query_buckets, rounds, e.queries, e),
                 check_buckets("key buckets", key_buckets, rounds, e.keys, e));
  const index heads = e.batch * e.heads;
  if (heads * e.queries == 0) return;
  const head_dims d{call.q.extent(3), call.out.extent(3)};
  const list_heads q_heads{query_buckets.extent(0), query_buckets.extent(1)};
  const list_heads k_heads{key_buckets.extent(0), key_buckets.extent(1)};
  const index chunk = (std::min)(o.chunk, std::max<index>(e.keys, 1));
  constexpr index most = listed_scratch<Call>::most_rows;
  const index most_keys = (std::min)(e.keys, 2 * chunk * most);

  struct worker_scratch {
    listed_scratch<Call> task;
    round_rule rule;
    A* out = nullptr;
    A* lse = nullptr;
  };
  const auto allocate_worker = [&](arena& c) {
    worker_scratch s;
    s.task.allocate(c, d);
    s.rule.allocate(c, rounds, most, most_keys);
    s.out = c.allocate<A>(most * d.value_dim);
    s.lse = c.allocate<A>(most);
    return s;
  };
  arena measure;
  (void)allocate_worker(measure);
  const index blocks = ceil_div(e.queries, most);
  const index workers = worker_count(exec, heads * blocks);

  sorted_keys* sorted = nullptr;  // [list heads][rounds]
  row_reach* reach = nullptr;     // [heads][rounds]
  softmax_state<A>* state = nullptr;
  const part_sums<A> sums(rounds, d.value_dim);
  A* out = nullptr;   // [heads][queries][value dim]
  A* lost = nullptr;  // alike, where rounds are added
  std::byte* scratch = nullptr;
  const auto allocate = [&](arena c) {
    sorted = c.allocate<sorted_keys>(k_heads.size() * rounds);
    reach = c.allocate<row_reach>(heads * rounds);
    const bool counts = reach == nullptr;
    for (index n = 0; n < k_heads.size() * rounds; ++n) {
      sorted_keys s;
      s.allocate(c, e.keys, buckets);
      if (!counts) sorted[n] = s;
    }
    for (index n = 0; n < heads * rounds; ++n) {
      row_reach r;
      r.allocate(c, e.queries, buckets);
      if (!counts) reach[n] = r;
    }
    state = c.allocate<softmax_state<A>>(heads * e.queries);
    out = c.allocate<A>(heads * e.queries, d.value_dim);
    if (rounds > 1) lost = c.allocate<A>(heads * e.queries, d.value_dim);
    scratch = c.allocate<std::byte>(static_cast<index>(measure.used()), workers);
    return c.used();
  };
  scratch_lease memory(call.options.scratch);
  (void)allocate(arena(memory.reserve(allocate(arena()))));

  for_each_task(exec, workers, k_heads.size() * rounds, [&](index, index n) noexcept {
    const index l = n / rounds;
    sorted[n].sort(e.keys, buckets, [&](index j) {
      return static_cast<index>(key_buckets(l / k_heads.heads, l % k_heads.heads, n % rounds, j));
    });
  });
  for_each_task(exec, workers, heads * rounds, [&](index, index n) noexcept {
    const index b = n / rounds / e.heads;
    const index h = n / rounds % e.heads;
    const index l = q_heads(e, b, h);
    reach[n].find(
        e.queries, buckets,
        [&](index i) {
          return static_cast<index>(
              query_buckets(l / q_heads.heads, l % q_heads.heads, n % rounds, i));
        },
        sorted[k_heads(e, b, h) * rounds + n % rounds], call.options.offset[b], chunk);
  });
  std::fill_n(state, heads * e.queries, softmax_state<A>{});
  const auto lost_of = [=](index row) { return lost == nullptr ? lost : lost + row * d.value_dim; };

  // A row is in one task of a round: rounds one after another, and no row is written twice at once.
  for (index round = 0; round < rounds; ++round) {
    for_each_task(exec, workers, heads * blocks, [&](index worker, index t) noexcept {
      arena c(scratch + static_cast<std::size_t>(worker) * measure.used());
      worker_scratch s = allocate_worker(c);
      const index head = t / blocks;
      const index b = head / e.heads;
      const index h = head % e.heads;
      const row_reach* const rows = reach + head * rounds;
      const range of =
          intersect({0, rows[round].rows}, {t % blocks * most, (t % blocks + 1) * most});
      if (of.empty()) return;
      s.rule.start(rows, sorted + k_heads(e, b, h) * rounds, round, of, call.options.offset[b],
                   !o.shared_qk);
      attend_lists(call, s.rule, b, h, s.rule.lists, s.task, s.out, s.lse);
      for (index r = 0; r < of.size(); ++r) {
        const index row = head * e.queries + s.rule.lists.rows[r];
        const index later = s.rule.lists.rows[(std::min)(r + 8, of.size() - 1)];
        prefetch_row<2>(out + (head * e.queries + later) * d.value_dim, d.value_dim);
        prefetch_row<2>(state + head * e.queries + later, 1);
        sums.join(state[row], out + row * d.value_dim, lost_of(row), s.lse[r],
                  s.out + r * d.value_dim);
      }
    });
  }

  for_each_task(exec, workers, heads * blocks, [&](index, index t) noexcept {
    const index head = t / blocks;
    const index b = head / e.heads;
    const index h = head % e.heads;
    const index first = t % blocks * most;
    for (index i = first; i < (std::min)(first + most, e.queries); ++i) {
      const index row = head * e.queries + i;
      A* const at = out + row * d.value_dim;
      if (o.shared_qk) {
        const index p = call.options.offset[b] + i;
        see_itself(call, reach + head * rounds, sorted + k_heads(e, b, h) * rounds, rounds,
                   {b, h, h / call.group(), p, p, i}, sums.scale, state[row], at, lost_of(row));
      }
      sums.finish(state[row], at, lost_of(row));
      write_row(call, b, h, i, state[row], at, sums.scale);
    }
  });
}

struct lsh_attention_method : api::attention_method {
  template <class E, class Out, class Q, class K, class V, tensor_like L, tensor_like M,
            class... Mods>
  static void write(E& exec, Out&& out, const Q& q, const K& k, const V& v, const L& query_buckets,
                    const M& key_buckets, const lsh_attention_options& lsh,
                    const attention_options& options, const Mods&... modifiers) {
    run_lsh(exec, api::open_call(std::forward<Out>(out), q, k, v, options, modifiers...),
            lists4(query_buckets), lists4(key_buckets), lsh);
  }
};

}  // namespace detail

/// lsh_attention_into([executor,] out | into(out, lse), q, k, v, query_buckets, key_buckets, lsh,
/// options = {}, modifiers...)
inline constexpr api::writing<detail::lsh_attention_method, 5, lsh_attention_options>
    lsh_attention_into{};
/// lsh_attention([executor,] q, k, v, query_buckets, key_buckets, lsh, options = {}, modifiers...)
/// -> a tensor of q's family
inline constexpr api::returning<detail::lsh_attention_method, 5, lsh_attention_options>
    lsh_attention{};

}  // namespace heed::inline HEED_TARGET
