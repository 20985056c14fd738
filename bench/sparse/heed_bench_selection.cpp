// SPDX-License-Identifier: MIT
// Selections: what choosing costs beside attending to what was chosen, and what is found.
//
// Counters: `selection` and `attention` in milliseconds, medians; `share`, selection in the sum of
// both; `scores`, what of the selection are the scores alone, where nothing is chosen by them, and
// `choosing`, the share of its rest; `recall`, what the choice keeps of exact attention's
// probability on planted data, of 64 rows; `shared` as elsewhere.
//
// Planted data, so that there is something to find:
//   topics  each stretch of 100 tokens has a centre of 64 normal numbers; a key is its stretch's
//           centre plus normal noise, a query 1.25 times the sum of three centres plus noise: its
//           own stretch's and those of two earlier stretches drawn at random. For all others.
//   lines   each token has a name of 63 normal numbers, its key; a query is 2.5 times the sum of
//           the names that lie 0, 70 and 1,000 tokens back, and looks for four keys in the last
//           channel. For vertical_slash.
// top_k_keys chooses 256 keys, or as many as it says; mixture_of_blocks 8 blocks of 128, or of 512.
// indexer_keys: 1,024 keys for 8 heads that share them, by 4 index heads of 32 channels; all heads
// have the same queries, all index heads one random projection of them.
// lsh_buckets_R hashes in R rounds; route_tokens has clusters of 512.
// page_bounds is decode: one query of n cached tokens, 128 pages of 16; page_bounds_H, of H heads
// that share the cache and choose each for itself; page_bounds_bfloat16, with bounds of that
// scalar. The others are causal prompts of n queries. Choices of keys and of blocks are listed
// ascending, in memory that stays.
#include <algorithm>
#include <cstdint>
#include <ctime>
#include <optional>
#include <type_traits>
#include <vector>

#include "bench/families.hpp"
#include "bench/forward.hpp"
#include "heed/cache.hpp"
#include "heed/sparse.hpp"

namespace bench {

namespace {

constexpr index head_dim = 64;

using choices_view = heed::view<std::int32_t, 4>;

/// q, k and v of one head, and where the result goes.
struct planted_data {
  explicit planted_data(index n)
      : q({1, 1, n, head_dim}),
        k({1, 1, n, head_dim}),
        v(random_tensor<float, 4>({1, 1, n, head_dim}, 3)),
        out({1, 1, n, head_dim}) {
    fill(q, 1);
    fill(k, 2);
  }
  [[nodiscard]] index tokens() const { return q.extent(2); }
  /// Where one head's choices go, call after call: memory that is there before the first.
  [[nodiscard]] choices_view choices(index count) {
    const index n = tokens();
    memory.resize(std::max(memory.size(), static_cast<std::size_t>(n * count)));
    return {memory.data(), {1, 1, n, count}, {n * count, n * count, count, 1}};
  }

  heed::tensor<float, 4> q, k, v, out;
  heed::workspace scratch;
  std::vector<std::int32_t> memory;
};

planted_data topics(index n) {
  constexpr index stretch = 100;
  planted_data data(n);
  const auto centres = random_tensor<float, 2>({n / stretch + 1, head_dim}, 4);
  std::mt19937 draw(5);
  for (index i = 0; i < n; ++i) {
    const index own = i / stretch;
    const auto earlier = [&] {
      return static_cast<index>(draw() % static_cast<unsigned>(own + 1));
    };
    const index a = earlier();
    const index b = earlier();
    for (index c = 0; c < head_dim; ++c) {
      data.k(0, 0, i, c) += centres(own, c);
      data.q(0, 0, i, c) += 1.25F * (centres(own, c) + centres(a, c) + centres(b, c));
    }
  }
  return data;
}

planted_data lines(index n) {
  planted_data data(n);
  for (index i = 0; i < n; ++i) {
    for (index c = 0; c + 1 < head_dim; ++c) {
      data.q(0, 0, i, c) = 0;
      for (const index back : {0, 70, 1000}) {
        if (i >= back) data.q(0, 0, i, c) += 2.5F * data.k(0, 0, i - back, c);
      }
    }
    data.q(0, 0, i, head_dim - 1) = 1;
    data.k(0, 0, i, head_dim - 1) = 0;
  }
  for (const index j : {index{0}, index{3}, n / 5, n / 2}) data.k(0, 0, j, head_dim - 1) = 160;
  return data;
}

/// Seconds of a call: of processor time where it is long enough for its clock, so that other
/// processes do not count.
template <class Call>
[[nodiscard]] double seconds_of(const Call& call) {
  const std::clock_t processor = std::clock();
  const auto start = probes::clock::now();
  call();
  const double elapsed = probes::seconds_since(start);
  const double own =
      static_cast<double>(std::clock() - processor) / static_cast<double>(CLOCKS_PER_SEC);
  return elapsed < 1e-3 ? elapsed : own;
}

/// Where a choice's scores cannot be had alone.
struct no_scores {};

/// `choose(data)` returns a choice, `attend(data, choice)` attends to it, `recall(data, choice)` is
/// called once, `score(data)` does what of `choose` comes before choosing.
template <class Make, class Choose, class Attend, class Recall, class Score = no_scores>
void register_selection(const std::string& method, index n, const Make& make, const Choose& choose,
                        const Attend& attend, const Recall& recall, const Score& score = {}) {
  const std::string name = name_of<float>("selection", method, one_head(head_dim, n, true));
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    using Data = decltype(make(n));
    auto& data = data_of<Data>(name, [&] { return make(n); });
    std::vector<std::pair<double, double>> calls;  // seconds of selection and of attention
    std::vector<double> scores;
    const measured m = run_segments(
        state, [] { return probes::fma_peak<float>(pool_of(1), 1); },
        [&] {
          std::optional<decltype(choose(data))> choice;
          const double selection = seconds_of([&] { choice.emplace(choose(data)); });
          calls.emplace_back(selection, seconds_of([&] { attend(data, *choice); }));
          if constexpr (!std::is_same_v<Score, no_scores>) {
            scores.push_back(seconds_of([&] { score(data); }));
          }
        });
    const auto middle = calls.begin() + static_cast<std::ptrdiff_t>(calls.size() / 2);
    std::nth_element(calls.begin(), middle, calls.end(), [](const auto& a, const auto& b) {
      return a.first + a.second < b.first + b.second;
    });
    state.counters["selection"] = 1e3 * middle->first;
    state.counters["attention"] = 1e3 * middle->second;
    state.counters["share"] = middle->first / (middle->first + middle->second);
    if (!scores.empty()) {
      const auto half = scores.begin() + static_cast<std::ptrdiff_t>(scores.size() / 2);
      std::nth_element(scores.begin(), half, scores.end());
      state.counters["scores"] = 1e3 * *half;
      state.counters["choosing"] = (middle->first - *half) / (middle->first + middle->second);
    }
    state.counters["recall"] = recall(data, choose(data));
    if (m.shared) state.counters["shared"] = 1;
  })->Unit(benchmark::kMicrosecond);
}

[[nodiscard]] heed::recall_options of_64_rows(index n) {
  return {.stride = n / 64, .causal = true};
}

void register_chosen_blocks(const std::string& method, index n, index block, bool by_means,
                            index count) {
  const auto choose = [=](planted_data& d, index choices) {
    const heed::selection_options o{
        .count = choices, .block = block, .causal = true, .order = heed::index_order::ascending};
    const choices_view chosen = d.choices(choices);
    if (by_means) {
      heed::mixture_of_blocks_into(pool_of(1), chosen, d.q, d.k, o);
    } else {
      heed::top_k_keys_into(pool_of(1), chosen, d.q, d.k, o);
    }
    return chosen;
  };
  register_selection(
      method, n,
      [=](index tokens) {
        planted_data d = topics(tokens);
        (void)d.choices(count);
        return d;
      },
      [=](planted_data& d) { return choose(d, count); },
      [=](planted_data& d, const choices_view& chosen) {
        heed::selected_attention_into(pool_of(1), d.out, d.q, d.k, d.v, chosen, block,
                                      {.scratch = &d.scratch}, heed::causal());
      },
      [=](planted_data& d, const choices_view& chosen) {
        return heed::mean_recall(
            heed::selection_recall(pool_of(1), d.q, d.k, chosen, block, of_64_rows(n)));
      },
      // A row's own block is taken without a look at its score.
      [=](planted_data& d) { (void)choose(d, by_means ? 1 : 0); });
}

/// Heads of attention and of an indexer, all alike.
struct indexed_data : planted_data {
  static constexpr index heads = 8;
  static constexpr index index_heads = 4;
  static constexpr index index_dim = 32;
  explicit indexed_data(index n)
      : planted_data(topics(n)),
        qi({n, index_dim}),
        ki({n, index_dim}),
        weight({1, index_heads, n}),
        outs({1, heads, n, bench::head_dim}) {
    const auto projection = random_tensor<float, 2>({bench::head_dim, index_dim}, 6);
    using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    const auto project = [&](const float* from, float* to) {
      Eigen::Map<matrix>(to, n, index_dim).noalias() =
          Eigen::Map<const matrix>(from, n, bench::head_dim) *
          Eigen::Map<const matrix>(projection.data(), bench::head_dim, index_dim);
    };
    project(q.data(), qi.data());
    project(k.data(), ki.data());
    std::fill_n(weight.data(), weight.size(), 1.0F);
  }
  /// The rows [tokens, channels] as those of `count` heads.
  [[nodiscard]] static heed::view<const float, 4> of_heads(const float* rows, index n, index d,
                                                           index count) {
    return {rows, {1, count, n, d}, {0, 0, d, 1}};
  }
  heed::tensor<float, 2> qi, ki;
  heed::tensor<float, 3> weight;
  heed::tensor<float, 4> outs;
};

void register_indexer(index n) {
  const auto choose = [=](indexed_data& d, index count) {
    using D = indexed_data;
    const choices_view chosen = d.choices(count);
    heed::indexer_keys_into(
        pool_of(1), chosen, D::of_heads(d.qi.data(), n, D::index_dim, D::index_heads),
        D::of_heads(d.ki.data(), n, D::index_dim, 1), d.weight,
        {.count = count, .causal = true, .order = heed::index_order::ascending});
    return chosen;
  };
  register_selection(
      "indexer_keys", n,
      [](index tokens) {
        indexed_data d(tokens);
        (void)d.choices(1024);
        return d;
      },
      [=](indexed_data& d) { return choose(d, 1024); },
      [=](indexed_data& d, const choices_view& chosen) {
        heed::selected_attention_into(pool_of(1), d.outs,
                                      indexed_data::of_heads(d.q.data(), n, head_dim, d.heads), d.k,
                                      d.v, chosen, 1, {.scratch = &d.scratch}, heed::causal());
      },
      [=](indexed_data& d, const choices_view& chosen) {
        return heed::mean_recall(
            heed::selection_recall(pool_of(1), d.q, d.k, chosen, 1, of_64_rows(n)));
      },
      [=](indexed_data& d) { (void)choose(d, 0); });
}

/// A cache of n tokens and its bounds; the newest token's are learned anew in each call. Heads are
/// consecutive queries of the one head.
template <class Bound>
struct decode_data : planted_data {
  decode_data(index n, index heads)
      : planted_data(topics(n)),
        cache({.capacity = n, .head_dim = bench::head_dim}),
        bounds({.capacity = n, .head_dim = bench::head_dim}, 16),
        token({1, heads, 1, bench::head_dim}) {
    cache.append(k, v);
    bounds.update(pool_of(1), cache);
  }
  [[nodiscard]] heed::view<const float, 4> last(index count) const {
    return heed::as_view(q).slice(2, tokens() - count, tokens());
  }
  [[nodiscard]] heed::view<const float, 4> heads() const {
    const auto rows = last(token.extent(1));
    return {rows.data(), {1, rows.extent(2), 1, head_dim}, {0, rows.stride(2), 0, 1}};
  }
  heed::contiguous_cache<float> cache;
  heed::page_bounds<float, Bound> bounds;
  heed::tensor<float, 4> token;
};

template <class Bound>
void register_page_bounds(const std::string& method, index n, index heads) {
  using data_type = decode_data<Bound>;
  const heed::page_options o{.count = 128, .causal = true};
  register_selection(
      method, n, [=](index tokens) { return data_type(tokens, heads); },
      [=](data_type& d) {
        d.bounds.update(pool_of(1), d.cache, d.tokens() - 1);
        return heed::select_pages(pool_of(1), d.heads(), d.bounds, o);
      },
      [](data_type& d, const heed::tensor<index, 4>& chosen) {
        heed::selected_decode_into(pool_of(1), d.token, d.heads(), d.cache, chosen, d.bounds.page(),
                                   {.scratch = &d.scratch});
      },
      [=](data_type& d, const heed::tensor<index, 4>&) {
        const index rows = 64;
        return heed::mean_recall(
            heed::selection_recall(pool_of(1), d.last(rows), d.k,
                                   heed::select_pages(pool_of(1), d.last(rows), d.bounds, o),
                                   d.bounds.page(), {.offset = d.tokens() - rows}));
      });
}

void register_vertical_slash(index n) {
  register_selection(
      "vertical_slash", n, [](index tokens) { return lines(tokens); },
      [](planted_data& d) {
        const auto lists =
            heed::estimate_vertical_slash(pool_of(1), d.q, d.k, {.verticals = 8, .slashes = 8});
        return heed::vertical_slash_blocks(pool_of(1), lists,
                                           {.queries = d.tokens(), .keys = d.tokens()});
      },
      [](planted_data& d, const heed::block_pattern& pattern) {
        heed::attention_into(pool_of(1), d.out, d.q, d.k, d.v, {.scratch = &d.scratch},
                             heed::blocks(pattern) && heed::causal());
      },
      [=](planted_data& d, const heed::block_pattern& pattern) {
        return heed::mean_recall(heed::attention_recall(
            pool_of(1), d.q, d.k, heed::blocks(pattern) && heed::causal(), of_64_rows(n)));
      });
}

/// Mean recall of a call that writes into(out, lse), against causal attention.
template <class Attend>
[[nodiscard]] double recall_of(planted_data& d, const Attend& attend) {
  heed::tensor<float, 3> kept({1, 1, d.tokens()}), exact({1, 1, d.tokens()});
  attend(heed::into(d.out, kept));
  heed::attention_into(pool_of(1), heed::into(d.out, exact), d.q, d.k, d.v, {}, heed::causal());
  return heed::mean_recall(heed::log_sum_exp_recall(kept, exact));
}

void register_hashed(index n, index rounds) {
  constexpr index chunk = 128;
  const auto attend = [](auto&& out, planted_data& d, const heed::lsh_pair& buckets) {
    heed::lsh_attention_into(pool_of(1), out, d.q, d.k, d.v, buckets.queries, buckets.keys,
                             {.chunk = chunk}, {.scratch = &d.scratch}, heed::causal());
  };
  register_selection(
      "lsh_buckets_" + std::to_string(rounds), n, [](index tokens) { return topics(tokens); },
      [=](planted_data& d) {
        return heed::lsh_buckets(
            pool_of(1), d.q, d.k,
            {.rounds = rounds, .buckets = n / chunk, .factor = n / chunk >= 128 ? 16 : 4});
      },
      [=](planted_data& d, const heed::lsh_pair& buckets) { attend(d.out, d, buckets); },
      [=](planted_data& d, const heed::lsh_pair& buckets) {
        return recall_of(d, [&](auto&& out) { attend(out, d, buckets); });
      });
}

/// Routes of queries and of keys; the centroids are learned before.
struct routed_data : planted_data {
  static constexpr index window = 512;
  explicit routed_data(index n)
      : planted_data(topics(n)),
        centroids(heed::routing_centroids(pool_of(1), {.clusters = n / window, .steps = 4}, q, k)) {
  }
  heed::tensor<float, 3> centroids;
};
struct routes {
  heed::tensor<index, 4> queries, keys;
};

void register_routed(index n) {
  const auto attend = [](auto&& out, routed_data& d, const routes& r) {
    heed::routing_attention_into(pool_of(1), out, d.q, d.k, d.v, r.queries, r.keys,
                                 {.scratch = &d.scratch}, heed::causal());
  };
  register_selection(
      "route_tokens", n, [](index tokens) { return routed_data(tokens); },
      [](routed_data& d) {
        return routes{heed::route_tokens(pool_of(1), d.q, d.centroids, routed_data::window),
                      heed::route_tokens(pool_of(1), d.k, d.centroids, routed_data::window)};
      },
      [=](routed_data& d, const routes& r) { attend(d.out, d, r); },
      [=](routed_data& d, const routes& r) {
        return recall_of(d, [&](auto&& out) { attend(out, d, r); });
      });
}

}  // namespace

void register_selection() {
  for (const index n : {4096, 32'768}) {
    register_chosen_blocks("top_k_keys", n, 1, false, 256);
    register_chosen_blocks("top_k_keys_4096", n, 1, false, 4096);
    register_chosen_blocks("mixture_of_blocks", n, 128, true, 8);
    register_chosen_blocks("mixture_of_blocks_512", n, 512, true, 8);
    register_indexer(n);
    register_page_bounds<float>("page_bounds", n, 1);
    register_page_bounds<heed::bfloat16>("page_bounds_bfloat16", n, 1);
    register_page_bounds<float>("page_bounds_8", n, 8);
    register_vertical_slash(n);
    for (const index rounds : {1, 4}) register_hashed(n, rounds);
    register_routed(n);
  }
}

}  // namespace bench
