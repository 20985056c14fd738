// SPDX-License-Identifier: MIT
// The seven methods of the comparison: how each is called, and what the cost model says of it.
//
// All are causal self-attention of float heads, tokens x channels. The naive method comes twice: as
// the textbook's loops (`heed::naive_attention`, which is also the oracle of the tests) and on
// Eigen's matrix products, as most code has it.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "../baselines.hpp"
#include "heed/attention.hpp"
#include "heed/cost.hpp"
#include "heed/linear.hpp"
#include "heed/parallel.hpp"
#include "heed/sparse.hpp"
#include "sparse.hpp"

namespace wall {

using heed::index;
namespace cost = heed::cost;

struct settings {
  index min_n = 512;
  index max_n = 16'384;
  index head_dim = 64;
  index heads = 1;
  index threads = 1;
  index window = 512;
  index global = 128;  ///< tokens that all see, of the Longformer method
  double max_naive_bytes = 2.0 * 1024 * 1024 * 1024;
  double max_naive_seconds = 5;
  std::string output = "scaling.svg";
  bool plain = false;
};

/// Queries, keys, values and output of the largest size; smaller ones are its first tokens. Memory
/// is touched once, here.
class problem {
 public:
  problem(index heads, index tokens, index head_dim)
      : q_({heads, tokens, head_dim}), k_(q_.extents()), v_(q_.extents()), out_(q_.extents()) {
    std::mt19937 generator(1);
    std::normal_distribution<float> unit;
    for (auto* t : {&q_, &k_, &v_}) {
      for (index i = 0; i < t->size(); ++i) t->data()[i] = unit(generator);
    }
  }
  [[nodiscard]] heed::view<const float, 3> q(index n) const { return first(q_, n); }
  [[nodiscard]] heed::view<const float, 3> k(index n) const { return first(k_, n); }
  [[nodiscard]] heed::view<const float, 3> v(index n) const { return first(v_, n); }
  [[nodiscard]] heed::view<float, 3> out(index n) { return heed::as_view(out_).slice(1, 0, n); }

 private:
  static heed::view<const float, 3> first(const heed::tensor<float, 3>& t, index n) {
    return heed::as_view(t).slice(1, 0, n);
  }
  heed::tensor<float, 3> q_, k_, v_, out_;
};

struct method {
  std::string name;
  char letter = '?';          ///< in the terminal plot
  bool materialises = false;  ///< holds n x n scores: bounded by the naive limits
  std::function<void(problem&, index n, heed::workspace&)> run;
  std::function<std::vector<cost::work>(index n)> stages;  ///< that cannot overlap

  [[nodiscard]] cost::work total(index n) const {
    cost::work sum;
    for (const cost::work& w : stages(n)) sum += w;
    return sum;
  }
  /// The roofline's time. Where all that the method touches fits `cache` bytes, nothing is moved.
  [[nodiscard]] double predicted(const cost::roofline& machine, index n, double io_bytes,
                                 double cache) const {
    const bool cached = io_bytes + total(n).extra_memory <= cache;
    double seconds = 0;
    for (const cost::work& w : stages(n)) {
      seconds += cached ? machine.compute_seconds(w) : machine.seconds(w);
    }
    return seconds;
  }
};

/// What heed::attention does in float, as the cost model's tiling.
[[nodiscard]] inline cost::tiling heed_tiling(const settings& s, double cache) {
  using plan = heed::tile_plan<float>;
  return {.query_block = plan::group * plan::groups_per_task,
          .key_block = plan::keys,
          .score_rows = plan::group,
          .workers = s.threads,
          .cache_bytes = cache};
}

/// BigBird as published, in blocks of 128: 2 global ones, a window of 3, 3 at random.
inline constexpr heed::big_bird_options big_bird_blocks_seen{.causal = true};
inline constexpr index big_bird_block = 128;

/// The tiled method on `pairs` visible pairs of a head, with `key_rows` rows of K and V read where
/// they do not fit the cache.
[[nodiscard]] inline cost::work tiled_sparse(const cost::attention_shape& s,
                                             const cost::tiling& tiles, index pairs,
                                             index key_rows) {
  cost::work w = cost::tiled(s, tiles);
  const double kv_head_bytes = static_cast<double>(s.keys) * s.key_value_row_bytes();
  w.flops *= static_cast<double>(pairs) * s.heads() / s.visible_pairs();
  if (kv_head_bytes > tiles.cache_bytes) {
    w.bytes = s.query_output_bytes() +
              s.heads() * static_cast<double>(key_rows) * s.key_value_row_bytes();
  }
  return w;
}

[[nodiscard]] inline std::vector<method> make_methods(const settings& s, heed::thread_pool& pool,
                                                      double cache) {
  const cost::tiling tiles = heed_tiling(s, cache);
  const auto shape = [s](index n, cost::band visible) {
    cost::attention_shape a = cost::self_attention(n, s.head_dim, visible);
    a.query_heads = a.kv_heads = s.heads;
    return a;
  };
  std::vector<method> all;
  all.push_back({"naive, loops", 'n', true,
                 [&pool](problem& p, index n, heed::workspace& w) {
                   heed::naive_attention_into(pool, p.out(n), p.q(n), p.k(n), p.v(n),
                                              {.scratch = &w}, heed::causal());
                 },
                 [=](index n) {
                   const cost::attention_shape a = shape(n, cost::causal());
                   auto stages = cost::naive_stages(a, std::min(s.heads, s.threads));
                   // These loops leave out the products of masked pairs.
                   const double share = a.visible_pairs() / cost::score_count(n, n, s.heads);
                   for (cost::work& w : stages) w.flops *= share;
                   return std::vector(stages.begin(), stages.end());
                 }});
  all.push_back({"naive, Eigen", 'e', true,
                 [&pool, s](problem& p, index n, heed::workspace& w) {
                   for (index h = 0; h < s.heads; ++h) {
                     baselines::naive_eigen<float>(pool, p.q(n)[h], p.k(n)[h], p.v(n)[h],
                                                   p.out(n)[h], true, w);
                   }
                 },
                 [=](index n) {
                   const auto stages = cost::naive_stages(shape(n, cost::causal()), 1);
                   return std::vector(stages.begin(), stages.end());
                 }});
  all.push_back(
      {"tiled", 't', false,
       [&pool](problem& p, index n, heed::workspace& w) {
         heed::attention_into(pool, p.out(n), p.q(n), p.k(n), p.v(n), {.scratch = &w},
                              heed::causal());
       },
       [=](index n) { return std::vector{cost::tiled(shape(n, cost::causal()), tiles)}; }});
  all.push_back({"windowed", 'w', false,
                 [&pool, s](problem& p, index n, heed::workspace& w) {
                   heed::attention_into(pool, p.out(n), p.q(n), p.k(n), p.v(n), {.scratch = &w},
                                        heed::causal() && heed::window{.left = s.window - 1});
                 },
                 [=](index n) {
                   return std::vector{cost::tiled(shape(n, cost::causal_window(s.window)), tiles)};
                 }});
  all.push_back({"Longformer", 'f', false,
                 [&pool, s](problem& p, index n, heed::workspace& w) {
                   heed::attention_into(pool, p.out(n), p.q(n), p.k(n), p.v(n), {.scratch = &w},
                                        heed::causal() && heed::longformer(s.window - 1, s.global));
                 },
                 [=](index n) {
                   return std::vector{tiled_sparse(
                       shape(n, cost::causal()), tiles, longformer_pairs(n, s.window, s.global),
                       longformer_key_rows(n, s.window, s.global, tiles.query_block))};
                 }});
  // The pattern is drawn anew in each call: its time and memory are the method's.
  all.push_back(
      {"BigBird", 'b', false,
       [&pool, s](problem& p, index n, heed::workspace& w) {
         const heed::block_pattern pattern = heed::big_bird(
             {1, s.heads, n, n, big_bird_block, big_bird_block}, big_bird_blocks_seen);
         heed::attention_into(pool, p.out(n), p.q(n), p.k(n), p.v(n), {.scratch = &w},
                              heed::causal() && heed::blocks(pattern));
       },
       [=](index n) {
         cost::work w = tiled_sparse(shape(n, cost::causal()), tiles,
                                     big_bird_pairs(n, big_bird_block, big_bird_blocks_seen),
                                     big_bird_key_rows(n, big_bird_block, big_bird_blocks_seen));
         const index words =
             2 * big_bird_blocks(n, big_bird_block, big_bird_blocks_seen) + n / big_bird_block;
         w.extra_memory += static_cast<double>(s.heads * words * index{sizeof(index)});
         return std::vector{w};
       }});
  all.push_back({"linear", 'l', false,
                 [&pool](problem& p, index n, heed::workspace& w) {
                   heed::linear_attention_into(pool, p.out(n), p.q(n), p.k(n), p.v(n),
                                               heed::linear_options{.scratch = &w});
                 },
                 [=](index n) {
                   return std::vector{cost::linear_chunked(
                       shape(n, cost::causal()), {.features = {},
                                                  .chunk = heed::linear_options{}.chunk,
                                                  .workers = std::min(s.heads, s.threads)})};
                 }});
  return all;
}

}  // namespace wall
