// SPDX-License-Identifier: MIT
// The other forms of exact attention: packed sequences, a cache, merges, forgetting, Linformer.
#include "heed/cache.hpp"
#include "heed/score.hpp"
#include "soak/attention_case.hpp"
#include "soak/families.hpp"

namespace soak {

namespace {

/// Cumulative lengths of `sequences` random sequences.
std::vector<index> random_starts(trial& t, const char* name, index sequences, index most) {
  std::vector<index> starts{0};
  for (index s = 0; s < sequences; ++s) {
    starts.push_back(starts.back() + (t.one_in("none", 6) ? 0 : t.extent(name, 0, most)));
  }
  return starts;
}

/// Tokens of one packed sequence as a batch of its own.
template <class T>
heed::tensor<double, 4> sequence(const heed::view<T, 4>& x, index begin, index end) {
  return oracle::widened(x.slice(2, begin, end));
}

template <class T>
void packed_case(trial& t) {
  attention_shape s(t);
  s.batch = t.between("sequences", 1, 4);
  const auto qs = random_starts(t, "rows", s.batch, 30);
  const auto ks = random_starts(t, "tokens", s.batch, 40);
  attention_shape all = s;
  all.batch = 1;
  all.queries = qs.back();
  all.keys = ks.back();
  attention_case<T> x(t, all);
  heed::attention_options o = x.options;
  std::vector<index> offset(static_cast<std::size_t>(s.batch));
  for (index& at : offset) at = t.between("offset", -2, 20);
  o.offset = offset;
  const bool causal = t.one_in("causal", 2);
  const auto target = heed::into(x.out->view()[0], heed::as_view(x.lse)[0]);
  const auto call = [&](const auto&... mods) {
    heed::ragged_attention_into(t.exec, target, x.q->cview()[0], x.k->cview()[0], x.v->cview()[0],
                                qs, ks, o, mods...);
  };
  if (causal) {
    call(heed::alibi(), heed::causal());
  } else {
    call();
  }
  const double largest_value = oracle::largest(oracle::widened(x.v->view()));
  for (index b = 0; b < s.batch; ++b) {
    const auto n = static_cast<std::size_t>(b);
    const auto q = sequence(x.q->view(), qs[n], qs[n + 1]);
    const auto k = sequence(x.k->view(), ks[n], ks[n + 1]);
    const auto v = sequence(x.v->view(), ks[n], ks[n + 1]);
    double most = 0;
    const auto score = [&](double y, const heed::position& p) {
      if (causal) {
        y -= heed::alibi::default_slope(p.head, s.heads()) *
             std::abs(static_cast<double>(p.query - p.key));
      }
      most = std::max(most, std::abs(y));
      return y;
    };
    const auto want =
        oracle::by_definition(q, k, v, x.scale(), {offset[n]}, score,
                              [&](const heed::position& p) { return !causal || causal_pair(p); });
    const double product =
        std::abs(x.scale()) * oracle::largest_row_norm(q) * oracle::largest_row_norm(k);
    const oracle::magnitudes sizes{s.dim, k.extent(2), product, most + product, largest_value};
    trial::require("output", oracle::difference<T>(x.out->view().slice(2, qs[n], qs[n + 1]),
                                                   want.output, sizes));
    trial::require("log-sum-exp",
                   oracle::lse_difference<T>(heed::as_view(x.lse).slice(2, qs[n], qs[n + 1]),
                                             want.log_sum_exp, sizes));
  }
}

template <class T>
void decode_case(trial& t) {
  attention_shape s(t);
  s.batch = std::max<index>(s.batch, 1);
  heed::contiguous_cache<T> cache({.batch = s.batch,
                                   .kv_heads = s.kv_heads,
                                   .capacity = s.keys + 64,
                                   .head_dim = s.dim,
                                   .value_dim = s.value_dim});
  const auto past = s.keys;
  {
    const auto k = random_numbers<T>(t, {s.batch, s.kv_heads, past, s.dim}, 1);
    const auto v = random_numbers<T>(t, {s.batch, s.kv_heads, past, s.value_dim}, 1);
    cache.append(k->view(), v->view());
  }
  const index steps = t.between("steps", 1, 3);
  for (index step = 0; step < steps; ++step) {
    attention_shape now = s;
    now.queries = now.keys = t.one_in("chunk", 3) ? t.between("tokens", 1, 16) : 1;
    attention_case<T> x(t, now);
    x.options.offset = 0;
    std::fill(x.offset.begin(), x.offset.end(), cache.length());
    const index left = t.between("left", 0, 40);
    const auto target = heed::into(x.out->view(), x.lse);
    const auto call = [&](const auto&... mods) {
      if (t.one_in("append first", 2)) {
        cache.append(x.k->view(), x.v->view());
        heed::decode_into(t.exec, target, x.q->cview(), std::as_const(cache), x.options, mods...);
      } else {
        heed::decode_into(t.exec, target, x.q->cview(), x.k->cview(), x.v->cview(), cache,
                          x.options, mods...);
      }
    };
    const index kind = t.between("kind", 0, 2);
    if (kind == 0) call();
    if (kind == 1) call(heed::causal());
    if (kind == 2) call(heed::window{.left = left, .right = 0});
    x.expect_of(oracle::widened(x.q->view()), oracle::widened(cache.keys()),
                oracle::widened(cache.values()), same_score, [&](const heed::position& p) {
                  if (kind == 0) return true;
                  return p.key <= p.query && (kind == 1 || p.query - p.key <= left);
                });
  }
}

}  // namespace

void packed(trial& t) {
  if (t.one_in("bfloat16", 4)) return packed_case<heed::bfloat16>(t);
  packed_case<float>(t);
}

void decode(trial& t) {
  if (t.one_in("bfloat16", 4)) return decode_case<heed::bfloat16>(t);
  decode_case<float>(t);
}

/// The keys in up to four parts, merged in any order.
void merge(trial& t) {
  attention_case<float> x(t);
  const index parts = t.between("parts", 1, 4);
  std::vector<index> cut{0, x.s.keys};
  for (index p = 1; p < parts; ++p) cut.push_back(t.between("cut", 0, x.s.keys));
  std::sort(cut.begin(), cut.end());
  std::vector<std::size_t> order;
  for (std::size_t p = 0; p + 1 < cut.size(); ++p) {
    order.insert(order.begin() + static_cast<std::ptrdiff_t>(t.bits() % (order.size() + 1)), p);
  }
  bool first = true;
  for (const std::size_t p : order) {
    const auto k = x.k->cview().slice(2, cut[p], cut[p + 1]);
    const auto v = x.v->cview().slice(2, cut[p], cut[p + 1]);
    if (first) {
      heed::attention_into(t.exec, heed::into(x.out->view(), x.lse), x.q->cview(), k, v, x.options);
      first = false;
    } else {
      const auto part = heed::attention_with_lse(t.exec, x.q->cview(), k, v, x.options);
      heed::merge_partials(x.out->view(), x.lse, part.output, part.log_sum_exp);
    }
  }
  x.expect(same_score, all_visible, {}, parts);
}

void forgetting(trial& t) {
  attention_case<float> x(t);
  heed::tensor<float, 3> g({x.s.batch, x.s.heads(), x.s.keys});
  for (index i = 0; i < g.size(); ++i) {
    g.data()[i] = t.bits() % 20 == 0 ? -std::numeric_limits<float>::infinity()
                                     : static_cast<float>(-t.uniform());
  }
  // A query past the last gate counts as the last token.
  const index most = x.s.keys - x.s.queries;
  x.options.offset = most < 0 ? 0 : t.between("offset", 0, most);
  const index at = most < 0 ? 0 : x.options.offset[0];
  std::fill(x.offset.begin(), x.offset.end(), at);
  heed::forgetting_attention_into(t.exec, heed::into(x.out->view(), x.lse), x.q->cview(),
                                  x.k->cview(), x.v->cview(), g, x.options);
  x.expect(
      [&](double s, const heed::position& p) {
        for (index j = p.key + 1; j <= std::min(p.query, x.s.keys - 1); ++j) {
          s += g(p.batch, p.head, j);
        }
        return s;
      },
      causal_pair);
}

void linformer(trial& t) {
  attention_shape s(t);
  s.keys = std::min<index>(s.keys, 100);
  attention_case<float> x(t, s);
  const index mixtures = t.extent("mixtures", 1, 10);
  heed::tensor<float, 3> e({x.s.kv_heads, mixtures, x.s.keys});
  heed::tensor<float, 3> f(e.extents());
  const double size = 1 / std::sqrt(static_cast<double>(std::max<index>(x.s.keys, 1)));
  t.fill(e, size);
  t.fill(f, size);
  heed::linformer_attention_into(t.exec, x.out->view(), x.q->cview(), x.k->cview(), x.v->cview(), e,
                                 f, x.options);
  // Mixtures in double, each with the error of its sum.
  double key_sum = 0, value_sum = 0;
  const auto mixed = [&](const auto& tokens, const auto& by, double& most) {
    heed::tensor<double, 4> m({x.s.batch, x.s.kv_heads, mixtures, tokens.extent(3)});
    oracle::each_index(m.extents(), [&](index b, index h, index r, index c) {
      double sum = 0, all = 0;
      for (index j = 0; j < x.s.keys; ++j) {
        const double term = double(by(h, r, j)) * double(tokens(b, h, j, c));
        sum += term;
        all += std::abs(term);
      }
      m(b, h, r, c) = sum;
      most = std::max(most, all);
    });
    return m;
  };
  const auto k = mixed(x.k->view(), e, key_sum);
  const auto v = mixed(x.v->view(), f, value_sum);
  const auto q = oracle::widened(x.q->view());
  const auto want = oracle::by_definition(q, k, v, x.scale(), x.offset, same_score, all_visible);
  const double eps = std::numeric_limits<float>::epsilon();
  const double tokens = static_cast<double>(x.s.keys);
  const double product =
      std::abs(x.scale()) * oracle::largest_row_norm(q) *
      std::max(oracle::largest_row_norm(k), key_sum * std::sqrt(static_cast<double>(x.s.dim)));
  const oracle::tolerance<float> near({x.s.dim, mixtures, product, product, oracle::largest(v)});
  heed::tensor<double, 4> within(want.output.extents());
  for (index i = 0; i < within.size(); ++i) {
    within.data()[i] = near.output(want.output.data()[i]) + tokens * eps * value_sum +
                       2 * tokens * eps * product * oracle::largest(v);
  }
  trial::require("output", difference(x.out->view(), want.output, within));
}

}  // namespace soak
