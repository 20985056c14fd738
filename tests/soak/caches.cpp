// SPDX-License-Identifier: MIT
// Decoding from every cache: it holds what was appended, exactly or within its step, and attention
// to it is attention to what it holds.
#include "heed/cache.hpp"
#include "heed/score.hpp"
#include "soak/attention_case.hpp"
#include "soak/families.hpp"

namespace soak {

namespace {

/// Rows of one sequence, [tokens][kv heads x channels].
struct history {
  std::vector<std::vector<float>> k, v;
};

/// New tokens of one sequence, also written down.
struct new_tokens {
  heed::tensor<float, 3> k, v;
  new_tokens(trial& t, index kv_heads, index count, index dim, index value_dim)
      : k({kv_heads, count, dim}), v({kv_heads, count, value_dim}) {
    t.fill(k);
    t.fill(v);
  }
  void note(history& h) const {
    const auto rows = [&](const auto& from, auto& to) {
      for (index i = 0; i < from.extent(1); ++i) {
        std::vector<float> row;
        for (index head = 0; head < from.extent(0); ++head) {
          for (index c = 0; c < from.extent(2); ++c) row.push_back(from(head, i, c));
        }
        to.push_back(row);
      }
    };
    rows(k, h.k);
    rows(v, h.v);
  }
};

/// What a cache holds, as kernels read it; rows past a sequence's length are 0.
template <class Cache>
struct contents {
  heed::tensor<double, 4> k, v;

  explicit contents(const Cache& cache)
      : k({cache.batch(), cache.kv_heads(), longest(cache), cache.head_dim()}),
        v({cache.batch(), cache.kv_heads(), longest(cache), cache.value_dim()}) {
    for (index b = 0; b < cache.batch(); ++b) {
      for (index h = 0; h < cache.kv_heads(); ++h) read(cache, b, h);
    }
  }
  static index longest(const Cache& cache) {
    index most = 0;
    for (index b = 0; b < cache.batch(); ++b) most = std::max(most, cache.length(b));
    return most;
  }
  void read(const Cache& cache, index b, index h) {
    const index n = cache.length(b);
    if constexpr (requires(float* to) { cache.widen_keys(b, h, heed::range{0, n}, to); }) {
      std::vector<float> keys(static_cast<std::size_t>(n * cache.head_dim()));
      std::vector<float> values(static_cast<std::size_t>(n * cache.value_dim()));
      cache.widen_keys(b, h, {0, n}, keys.data());
      cache.widen_values(b, h, {0, n}, values.data());
      for (index j = 0; j < n; ++j) {
        for (index c = 0; c < k.extent(3); ++c)
          k(b, h, j, c) = keys[std::size_t(j * k.extent(3) + c)];
        for (index c = 0; c < v.extent(3); ++c) {
          v(b, h, j, c) = values[std::size_t(j * v.extent(3) + c)];
        }
      }
    } else {
      for (index j = 0; j < n; ++j) {
        const auto key = cache.keys(b, h, j);
        const auto value = cache.values(b, h, j);
        for (index c = 0; c < k.extent(3); ++c) k(b, h, j, c) = double(key.data[c]);
        for (index c = 0; c < v.extent(3); ++c) v(b, h, j, c) = double(value.data[c]);
      }
    }
  }
  /// Each row is within `step` of what was appended.
  void expect(const std::vector<history>& want, double step) const {
    for (index b = 0; b < k.extent(0); ++b) {
      const history& h = want[std::size_t(b)];
      compare("keys", k, b, h.k, step);
      compare("values", v, b, h.v, step);
    }
  }

 private:
  static void compare(const char* what, const heed::tensor<double, 4>& got, index b,
                      const std::vector<std::vector<float>>& want, double step) {
    for (std::size_t j = 0; j < want.size(); ++j) {
      for (std::size_t n = 0; n < want[j].size(); ++n) {
        const index channels = got.extent(3);
        const double x = got(b, index(n) / channels, index(j), index(n) % channels);
        if (std::abs(x - double(want[j][n])) <= step) continue;
        throw wrong(std::string(what) + ": token " + std::to_string(j) + " of sequence " +
                    std::to_string(b) + " is " + std::to_string(x) + ", not " +
                    std::to_string(want[j][n]));
      }
    }
  }
};

attention_shape cached_shape(trial& t) {
  attention_shape s(t);
  s.batch = t.between("sequences", 1, 4);
  s.keys = std::max<index>(s.keys, 1);
  return s;
}

/// The newest `queries` tokens of each sequence against the cache.
template <class Cache>
void expect_decode(trial& t, const attention_shape& shape, const Cache& cache) {
  attention_shape s = shape;
  index shortest = cache.length(0);
  for (index b = 0; b < s.batch; ++b) shortest = std::min(shortest, cache.length(b));
  s.queries = std::min<index>({s.queries, shortest, 20});
  s.keys = 0;
  attention_case<float> x(t, s);
  x.options.offset = 0;
  for (index b = 0; b < s.batch; ++b) x.offset[std::size_t(b)] = cache.length(b) - s.queries;
  const index left = t.between("left", 0, 40);
  const auto target = heed::into(x.out->view(), x.lse);
  const bool windowed = t.one_in("window", 2);
  if (windowed) {
    heed::decode_into(t.exec, target, x.q->cview(), cache, x.options,
                      heed::window{.left = left, .right = 0});
  } else {
    heed::decode_into(t.exec, target, x.q->cview(), cache, x.options);
  }
  const contents<Cache> held(cache);
  x.expect_of(oracle::widened(x.q->view()), held.k, held.v, same_score,
              [&](const heed::position& p) {
                if (p.key >= cache.length(p.batch)) return false;
                return !windowed || (p.key <= p.query && p.query - p.key <= left);
              });
}

/// Appends to, cuts and clears one sequence at a time.
template <class Cache, class Fork>
void serve(trial& t, const attention_shape& s, Cache& cache, Fork&& fork) {
  std::vector<history> want(std::size_t(s.batch));
  const index steps = t.between("steps", 1, 8);
  for (index step = 0; step < steps; ++step) {
    const index b = static_cast<index>(t.bits() % std::uint64_t(s.batch));
    history& of = want[std::size_t(b)];
    switch (t.bits() % 6) {
      case 0: {
        const auto n = static_cast<index>(t.bits() % (of.k.size() + 1));
        cache.truncate(b, n);
        of.k.resize(std::size_t(n));
        of.v.resize(std::size_t(n));
        break;
      }
      case 1:
        fork(b, want);
        break;
      default: {
        const index n = t.between("tokens", 0, s.keys);
        const new_tokens x(t, s.kv_heads, n, s.dim, s.value_dim);
        if (cache.try_append(b, x.k, x.v)) x.note(of);
      }
    }
  }
  contents<Cache>(cache).expect(want, 0);
  expect_decode(t, s, cache);
}

/// One batch of sequences of the same length, within `step` of what was appended.
template <class Cache>
void fill_and_decode(trial& t, const attention_shape& s, Cache& cache, double step) {
  std::vector<history> want(std::size_t(s.batch));
  for (index left = s.keys; left > 0;) {
    const index n = t.between("tokens", 1, left);
    heed::tensor<float, 4> k({s.batch, s.kv_heads, n, s.dim});
    heed::tensor<float, 4> v({s.batch, s.kv_heads, n, s.value_dim});
    for (index b = 0; b < s.batch; ++b) {
      const new_tokens x(t, s.kv_heads, n, s.dim, s.value_dim);
      std::copy_n(x.k.data(), x.k.size(), k.data() + b * x.k.size());
      std::copy_n(x.v.data(), x.v.size(), v.data() + b * x.v.size());
      x.note(want[std::size_t(b)]);
    }
    cache.append(k, v);
    left -= n;
  }
  contents<Cache>(cache).expect(want, step);
  expect_decode(t, s, cache);
}

heed::cache_extents extents_of(const attention_shape& s) {
  return {.batch = s.batch,
          .kv_heads = s.kv_heads,
          .capacity = s.keys,
          .head_dim = s.dim,
          .value_dim = s.value_dim};
}

/// The most that `trial::fill` draws.
const double largest = std::sqrt(3.0);

}  // namespace

void paged_cache(trial& t) {
  const attention_shape s = cached_shape(t);
  heed::paged_cache<float> cache({.sequences = s.batch,
                                  .kv_heads = s.kv_heads,
                                  .pages = t.between("pages", 1, 60),
                                  .page_size = t.between("page size", 1, 20),
                                  .head_dim = s.dim,
                                  .value_dim = s.value_dim});
  serve(t, s, cache, [&](index b, std::vector<history>& want) {
    const index to = (b + 1) % s.batch;
    if (to == b) return;
    cache.clear(to);
    cache.fork(b, to);
    want[std::size_t(to)] = want[std::size_t(b)];
  });
  cache.validate();
}

void slot_cache(trial& t) {
  const attention_shape s = cached_shape(t);
  heed::slot_cache<float> cache(extents_of(s));
  serve(t, s, cache, [&](index b, std::vector<history>& want) {
    cache.clear(b);
    want[std::size_t(b)] = {};
  });
}

/// Codes are at most half a step from a number; a step is at most the range of a row's (of a
/// group's channel's) numbers, 2 largest, over the codes.
void quantised_cache(trial& t) {
  const attention_shape s = cached_shape(t);
  const auto half_step = [](int codes) { return 1.001 * largest / codes; };
  switch (t.between("bits", 0, 3)) {
    case 0: {
      heed::int8_cache cache(extents_of(s));
      return fill_and_decode(t, s, cache, half_step(254));
    }
    case 1: {
      heed::int4_cache cache(extents_of(s));
      return fill_and_decode(t, s, cache, half_step(14));
    }
    case 2: {
      const index page_size = t.between("page size", 1, 40);
      heed::paged_kivi4_cache cache({.sequences = s.batch,
                                     .kv_heads = s.kv_heads,
                                     .pages = s.batch * heed::ceil_div(s.keys, page_size),
                                     .page_size = page_size,
                                     .head_dim = s.dim,
                                     .value_dim = s.value_dim});
      return fill_and_decode(t, s, cache, half_step(14));
    }
    default: {
      heed::kivi_cache<4> cache({.batch = s.batch,
                                 .kv_heads = s.kv_heads,
                                 .capacity = s.keys,
                                 .head_dim = s.dim,
                                 .value_dim = s.value_dim,
                                 .group = t.between("group", 1, 40)});
      return fill_and_decode(t, s, cache, half_step(14));
    }
  }
}

/// The sinks and the newest, in the order in which they were appended.
void rolling_cache(trial& t) {
  const attention_shape s = cached_shape(t);
  const index sinks = t.between("sinks", 0, 5), window = t.between("window", 1, 40);
  heed::rolling_cache<float> cache({.batch = 1,
                                    .kv_heads = s.kv_heads,
                                    .sinks = sinks,
                                    .window = window,
                                    .head_dim = s.dim,
                                    .value_dim = s.value_dim});
  attention_shape one = s;
  one.batch = 1;
  std::vector<history> want(1);
  for (index left = t.between("all tokens", 1, 100); left > 0;) {
    const index n = t.between("tokens", 1, left);
    const new_tokens x(t, s.kv_heads, n, s.dim, s.value_dim);
    cache.append(x.k, x.v);
    x.note(want[0]);
    left -= n;
  }
  const auto gone = index(want[0].k.size()) - (sinks + window);
  for (auto* rows : {&want[0].k, &want[0].v}) {
    if (gone > 0) rows->erase(rows->begin() + sinks, rows->begin() + sinks + gone);
  }
  if (cache.length() != index(want[0].k.size())) throw wrong("length");
  contents(cache).expect(want, 0);
  // Places within the window go round: a query's keys are all of them.
  attention_case<float> x(t, [&] {
    one.queries = std::min<index>({one.queries, cache.length(), 20});
    one.keys = 0;
    return one;
  }());
  x.options.offset = 0;
  heed::decode_into(t.exec, heed::into(x.out->view(), x.lse), x.q->cview(), cache, x.options);
  const contents held(cache);
  x.expect_of(oracle::widened(x.q->view()), held.k, held.v, same_score, all_visible);
}

/// Both forms of latent attention: keys and values of each head are made of the latents here.
void latent(trial& t) {
  const attention_shape s = cached_shape(t);
  const index dim = s.dim, rope = t.between("rope", 0, 8), latents = t.extent("latents", 1, 30);
  const index heads = s.heads();
  attention_shape expanded = s;
  expanded.kv_heads = heads;
  expanded.group = 1;
  expanded.dim = dim + rope;
  expanded.keys = 0;
  expanded.queries = std::min(s.queries, s.keys);
  attention_case<float> x(t, expanded);
  heed::tensor<float, 3> latent({s.batch, s.keys, latents}), k_rope({s.batch, s.keys, rope});
  heed::tensor<float, 3> uk({heads, dim, latents}), uv({heads, s.value_dim, latents});
  t.fill(latent);
  t.fill(k_rope);
  t.fill(uk, 0.5);
  t.fill(uv, 0.5);
  heed::latent_cache<float> cache(
      {.batch = s.batch, .capacity = s.keys, .latent_dim = latents, .rope_dim = rope});
  cache.append(latent, k_rope);
  x.options.offset = 0;
  std::fill(x.offset.begin(), x.offset.end(), s.keys - expanded.queries);
  const auto call = [&](const auto& form) {
    form(t.exec, x.out->view(), x.q->cview(), uk, uv, cache, x.options, heed::causal());
  };
  switch (t.between("form", 0, 2)) {
    case 0:
      call([](auto&&... a) { heed::latent_decode_into(a...); });
      break;
    case 1:
      call([](auto&&... a) { heed::absorbed_latent_attention_into(a...); });
      break;
    default:
      call([](auto&&... a) { heed::expanded_latent_attention_into(a...); });
  }
  heed::tensor<double, 4> k({s.batch, heads, s.keys, dim + rope});
  heed::tensor<double, 4> v({s.batch, heads, s.keys, s.value_dim});
  // Sums of the terms' absolute values: what rounding depends on.
  double key = 0, value = 0;
  const auto product = [&](const auto& w, index b, index h, index j, index c, double& most) {
    double sum = 0, all = 0;
    for (index l = 0; l < latents; ++l) {
      const double term = double(w(h, c, l)) * double(latent(b, j, l));
      sum += term;
      all += std::abs(term);
    }
    most = std::max(most, all);
    return sum;
  };
  oracle::each_index(k.extents(), [&](index b, index h, index j, index c) {
    k(b, h, j, c) = c < dim ? product(uk, b, h, j, c, key) : double(k_rope(b, j, c - dim));
  });
  oracle::each_index(v.extents(), [&](index b, index h, index j, index c) {
    v(b, h, j, c) = product(uv, b, h, j, c, value);
  });
  const auto q = oracle::widened(x.q->view());
  const auto want =
      oracle::by_definition(q, k, v, x.scale(), x.offset, same_score, causal_pair).output;
  const double score = std::abs(x.scale()) * oracle::largest(q) *
                       (double(dim) * key + double(rope) * oracle::largest(k));
  const oracle::magnitudes sizes{dim + rope + latents, s.keys + 4 * latents, score, score, value};
  trial::require("output", oracle::difference<float>(x.out->view(), want, sizes));
}

}  // namespace soak
