// SPDX-License-Identifier: MIT
// Attention to selected, hashed and routed tokens and block patterns: attention under the mask that
// each of them is.
#include "heed/sparse.hpp"

#include <set>

#include "heed/cache.hpp"
#include "soak/attention_case.hpp"
#include "soak/families.hpp"

namespace soak {

namespace {

using lists = heed::tensor<index, 4>;

/// Numbers in [-1, below): -1 is none.
lists random_lists(trial& t, const std::array<index, 4>& extents, index below) {
  lists l(extents);
  for (index i = 0; i < l.size(); ++i) {
    l.data()[i] = static_cast<index>(t.bits() % static_cast<std::uint64_t>(below + 1)) - 1;
  }
  return l;
}

/// Extents that serve a call: its batch or 1, its heads, KV heads or 1.
std::array<index, 2> serving(trial& t, const attention_shape& s) {
  const index heads[] = {1, s.kv_heads, s.heads()};
  return {t.one_in("alike in batches", 2) ? 1 : s.batch, heads[t.between("heads of", 0, 2)]};
}

/// The row of a list tensor that serves a position.
struct served {
  const lists& l;
  index heads;
  template <class... I>
  [[nodiscard]] index operator()(const heed::position& p, I... at) const {
    const index h = l.extent(1) == 1 ? 0 : l.extent(1) == heads ? p.head : p.kv_head;
    return l(l.extent(0) == 1 ? 0 : p.batch, h, at...);
  }
};

attention_shape listed_shape(trial& t) {
  attention_shape s(t);
  s.batch = std::max<index>(s.batch, 1);
  s.keys = std::min<index>(std::max<index>(s.keys, 1), 300);
  s.queries = std::max<index>(s.queries, 1);
  return s;
}

struct selection_case {
  index block;
  lists chosen;
  index heads;

  selection_case(trial& t, const attention_shape& s, index keys)
      : block(t.one_of("block", {1, 1, 2, 7, 16, 32})), heads(s.heads()) {
    const auto [b, h] = serving(t, s);
    const index blocks = heed::ceil_div(keys, block);
    chosen = random_lists(t, {b, h, s.queries, t.between("choices", 0, blocks + 2)}, blocks);
    if (!t.one_in("sorted", 2)) return;
    const index count = chosen.extent(3);
    for (index at = 0; at < chosen.size(); at += count) {
      std::sort(chosen.data() + at, chosen.data() + at + count);
    }
  }
  [[nodiscard]] bool operator()(const heed::position& p) const {
    const served of{chosen, heads};
    for (index c = 0; c < chosen.extent(3); ++c) {
      if (of(p, p.row, c) == p.key / block) return true;
    }
    return false;
  }
};

}  // namespace

void selected(trial& t) {
  attention_case<float> x(t, listed_shape(t));
  const selection_case chosen(t, x.s, x.s.keys);
  const bool causal = t.one_in("causal", 2);
  const auto call = [&](const auto&... mods) {
    heed::selected_attention_into(t.exec, heed::into(x.out->view(), x.lse), x.q->cview(),
                                  x.k->cview(), x.v->cview(), chosen.chosen, chosen.block,
                                  x.options, mods...);
  };
  if (causal) {
    call(heed::causal());
  } else {
    call();
  }
  x.expect(
      same_score, [&](const heed::position& p) { return (!causal || causal_pair(p)) && chosen(p); },
      {}, chosen.chosen.extent(3));
}

void selected_decode(trial& t) {
  attention_shape s = listed_shape(t);
  s.queries = std::min<index>({s.queries, 4, s.keys});
  attention_case<float> x(t, s);
  heed::contiguous_cache<float> cache({.batch = s.batch,
                                       .kv_heads = s.kv_heads,
                                       .capacity = s.keys + 3,
                                       .head_dim = s.dim,
                                       .value_dim = s.value_dim});
  cache.append(x.k->view(), x.v->view());
  x.options.offset = 0;
  std::fill(x.offset.begin(), x.offset.end(), s.keys - s.queries);
  const selection_case chosen(t, s, s.keys);
  heed::selected_decode_into(t.exec, heed::into(x.out->view(), x.lse), x.q->cview(), cache,
                             chosen.chosen, chosen.block, x.options, heed::causal());
  x.expect(
      same_score, [&](const heed::position& p) { return causal_pair(p) && chosen(p); }, {},
      chosen.chosen.extent(3));
}

void lsh(trial& t) {
  attention_case<float> x(t, listed_shape(t));
  const index rounds = t.between("rounds", 1, 3), buckets = t.between("buckets", 1, 6);
  const heed::lsh_attention_options o{.chunk = t.between("chunk", 1, 20)};
  const auto qe = serving(t, x.s), ke = serving(t, x.s);
  const lists q = random_lists(t, {qe[0], qe[1], rounds, x.s.queries}, buckets);
  const lists k = random_lists(t, {ke[0], ke[1], rounds, x.s.keys}, buckets);
  heed::lsh_attention_into(t.exec, heed::into(x.out->view(), x.lse), x.q->cview(), x.k->cview(),
                           x.v->cview(), q, k, o, x.options, heed::causal());
  const served bucket_of_row{q, x.s.heads()}, bucket_of_key{k, x.s.heads()};
  const auto meet = [&](const heed::position& p, index round) {
    const index bucket = bucket_of_row(p, round, p.row);
    if (bucket < 0 || bucket != bucket_of_key(p, round, p.key)) return false;
    // Places among the keys sorted by bucket and position: of the key, and of the row.
    index before = 0, inside = 0, row = 0, key = 0;
    for (index j = 0; j < x.s.keys; ++j) {
      const index of = bucket_of_key(p, round, j);
      if (of >= 0 && of < bucket) ++before;
      if (of != bucket) continue;
      if (j == p.key) key = inside;
      if (j <= p.query) row = inside;
      ++inside;
    }
    const index apart = (before + row) / o.chunk - (before + key) / o.chunk;
    return apart == 0 || apart == 1;
  };
  x.expect(
      same_score,
      [&](const heed::position& p) {
        bool seen = false;
        for (index r = 0; causal_pair(p) && r < rounds && !seen; ++r) seen = meet(p, r);
        return seen;
      },
      {}, rounds);
}

void routing(trial& t) {
  attention_case<float> x(t, listed_shape(t));
  const index clusters = t.between("clusters", 1, 5);
  const auto qe = serving(t, x.s), ke = serving(t, x.s);
  const lists q =
      random_lists(t, {qe[0], qe[1], clusters, t.between("window", 0, 20)}, x.s.queries);
  const lists k =
      random_lists(t, {ke[0], ke[1], clusters, t.between("key window", 0, 30)}, x.s.keys);
  heed::routing_attention_into(t.exec, heed::into(x.out->view(), x.lse), x.q->cview(), x.k->cview(),
                               x.v->cview(), q, k, x.options, heed::causal());
  const auto holds = [&](const lists& l, const heed::position& p, index cluster, index token) {
    for (index i = 0; i < l.extent(3); ++i) {
      if (served{l, x.s.heads()}(p, cluster, i) == token) return true;
    }
    return false;
  };
  x.expect(
      same_score,
      [&](const heed::position& p) {
        for (index c = 0; causal_pair(p) && c < clusters; ++c) {
          if (holds(q, p, c, p.row) && holds(k, p, c, p.key)) return true;
        }
        return false;
      },
      {}, clusters);
}

/// The selected blocks are those that the call says it took; each branch is by definition.
void native_sparse(trial& t) {
  attention_case<float> x(t, listed_shape(t));
  heed::native_sparse_options o;
  o.compression.length = t.between("length", 1, 8);
  o.compression.stride = t.between("stride", 1, o.compression.length);
  o.block = o.compression.stride * heed::ceil_div(o.compression.length, o.compression.stride) *
            t.between("blocks", 1, 2);
  o.count = t.between("count", 3, 6);
  o.window = t.between("window", 0, 20);
  o.offset = std::max<index>(0, x.s.keys - x.s.queries);
  x.options.offset = o.offset;
  x.options.scale.reset();
  std::fill(x.offset.begin(), x.offset.end(), o.offset);
  heed::tensor<float, 4> gates({x.s.batch, x.s.heads(), x.s.queries, 3});
  t.fill(gates);
  const auto got = heed::native_sparse_attention_with_selection(t.exec, x.q->cview(), x.k->cview(),
                                                                x.v->cview(), gates, o);

  const auto q = oracle::widened(x.q->view()), k = oracle::widened(x.k->view()),
             v = oracle::widened(x.v->view());
  const index blocks = o.compression.whole(x.s.keys);
  const auto means = [&](const heed::tensor<double, 4>& of) {
    heed::tensor<double, 4> m({of.extent(0), of.extent(1), blocks, of.extent(3)});
    oracle::each_index(m.extents(), [&](index b, index h, index j, index c) {
      const heed::range tokens = o.compression.tokens(j);
      for (index i = tokens.begin; i < tokens.end; ++i) m(b, h, j, c) += of(b, h, i, c);
      m(b, h, j, c) /= static_cast<double>(o.compression.length);
    });
    return m;
  };
  const auto branch = [&](const auto& kb, const auto& vb, auto visible) {
    return oracle::by_definition(q, kb, vb, x.scale(), x.offset, same_score, visible).output;
  };
  const auto one = branch(means(k), means(v), [&](const heed::position& p) {
    return o.compression.tokens(p.key).end <= p.query + 1;
  });
  const auto two = branch(k, v, [&](const heed::position& p) {
    bool in = false;
    for (index c = 0; c < o.count; ++c) {
      in = in || got.selection(p.batch, p.kv_head, p.row, c) == p.key / o.block;
    }
    return in && causal_pair(p);
  });
  const auto three = branch(
      k, v, [&](const heed::position& p) { return causal_pair(p) && p.query - p.key < o.window; });
  const double product =
      std::abs(x.scale()) * oracle::largest_row_norm(q) * oracle::largest_row_norm(k);
  const oracle::tolerance<float> near({x.s.dim + o.compression.length, x.s.keys + 4 * o.count,
                                       product, product, oracle::largest(v)});
  heed::tensor<double, 4> want(one.extents()), within(one.extents());
  oracle::each_index(want.extents(), [&](index b, index h, index i, index c) {
    const double g[] = {gates(b, h, i, 0), gates(b, h, i, 1), gates(b, h, i, 2)};
    want(b, h, i, c) = g[0] * one(b, h, i, c) + g[1] * two(b, h, i, c) + g[2] * three(b, h, i, c);
    within(b, h, i, c) =
        (std::abs(g[0]) + std::abs(g[1]) + std::abs(g[2])) * near.output(4 * oracle::largest(v));
  });
  trial::require("output", difference(got.output, want, within));
}

void pattern(trial& t) {
  attention_case<float> x(t, listed_shape(t));
  const index block_q = t.between("query block", 1, 40), block_k = t.between("key block", 1, 40);
  x.options.offset = 0;
  std::fill(x.offset.begin(), x.offset.end(), 0);
  std::set<std::array<index, 2>> seen;
  std::vector<std::vector<index>> rows(
      static_cast<std::size_t>(heed::ceil_div(x.s.queries, block_q)));
  for (std::size_t r = 0; r < rows.size(); ++r) {
    for (index j = 0; j < heed::ceil_div(x.s.keys, block_k); ++j) {
      if (t.bits() % 3 != 0) continue;
      rows[r].push_back(j);
      seen.insert({index(r), j});
    }
  }
  const heed::block_pattern p(
      {.queries = x.s.queries, .keys = x.s.keys, .query_block = block_q, .key_block = block_k},
      rows);
  heed::attention_into(t.exec, heed::into(x.out->view(), x.lse), x.q->cview(), x.k->cview(),
                       x.v->cview(), x.options, heed::blocks(p));
  x.expect(same_score, [&](const heed::position& at) {
    return seen.contains({at.query / block_q, at.key / block_k});
  });
}

}  // namespace soak
