// SPDX-License-Identifier: MIT
// Softmax attention in the comparison: naive, tiled, windowed, and on sparse patterns.
//
// The naive method comes twice: as the textbook's loops (`heed::naive_attention`, which is also the
// oracle of the tests) and on Eigen's matrix products, as most code has it.
#include <algorithm>

#include "bench/baselines.hpp"
#include "heed/attention.hpp"
#include "heed/sparse.hpp"
#include "method.hpp"
#include "sparse.hpp"

namespace wall {
namespace {

/// What heed::attention does in float, as the cost model's tiling.
[[nodiscard]] cost::tiling heed_tiling(const settings& s, double cache) {
  using plan = heed::kernel::tile_plan<float>;
  return {.query_block = plan::group * plan::groups_per_task,
          .key_block = plan::keys,
          .score_rows = plan::group,
          .workers = s.threads,
          .cache_bytes = cache};
}

/// The tiled method on `pairs` visible pairs of a head, with `key_rows` rows of K and V read where
/// they do not fit the cache.
[[nodiscard]] cost::work tiled_sparse(const cost::attention_shape& s, const cost::tiling& tiles,
                                      index pairs, index key_rows) {
  cost::work w = cost::tiled(s, tiles);
  const double kv_head_bytes = static_cast<double>(s.keys) * s.key_value_row_bytes();
  w.flops *= static_cast<double>(pairs) * s.heads() / s.visible_pairs();
  if (kv_head_bytes > tiles.cache_bytes) {
    w.bytes = s.query_output_bytes() +
              s.heads() * static_cast<double>(key_rows) * s.key_value_row_bytes();
  }
  return w;
}

}  // namespace

std::vector<method> softmax_methods(const settings& s, heed::thread_pool& pool, double cache) {
  const cost::tiling tiles = heed_tiling(s, cache);
  const auto shape = [s](index n, cost::band visible) { return shape_of(s, n, visible); };
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
  return all;
}

}  // namespace wall
