// SPDX-License-Identifier: MIT
// The cost model against brute-force counts, published parameter counts and textbook figures.
#include "heed/cost.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>
#include <vector>

#include "heed/linear.hpp"

namespace {

using heed::index;
using namespace heed::cost;
namespace presets = heed::cost::presets;

constexpr double giga = 1e9;
constexpr double tera = 1e12;

constexpr bool within(double value, double target, double relative) {
  const double difference = value > target ? value - target : target - value;
  return difference <= relative * target;
}

// --- figures that any account of attention quotes ------------------------------------------------

static_assert(score_count(8'000, 8'000) == 64e6, "64 million scores for 8,000 tokens");
static_assert(score_count(1'000'000, 1'000'000) == 1e12);
static_assert(score_bytes(1'000'000, 1'000'000, 2) == 2 * tera);
// 64 GiB exactly, "about 70 GB".
static_assert(32 * score_bytes(32'768, 32'768, 2) == 64.0 * 1024 * 1024 * 1024);
static_assert(within(32 * score_bytes(32'768, 32'768, 2), 70 * giga, 0.02));
static_assert(kv_cache_bytes(32, 100'000, 32, 128, 2) == 52'428'800'000.0);
static_assert(kv_cache_bytes(presets::llama2_7b, 100'000) == 52'428'800'000.0,
              "the same from the preset: 32 layers, 32 x 128 = 4096 channels");

// One pass over one head's matrix through 2.0 TB/s: 1.07 ms. The quoted 30 ms are 28 such passes.
constexpr roofline two_terabytes{312e12, 2.0e12};
constexpr double one_pass =
    two_terabytes.memory_seconds(work{0, score_bytes(32'768, 32'768, 2), 0});
static_assert(within(one_pass, 1.0737e-3, 1e-4));
static_assert(within(30e-3 / one_pass, 27.94, 1e-3));
static_assert(within(32 * one_pass, 34.36e-3, 1e-3), "32 heads, or 32 layers, one way");
static_assert(within(4 * one_pass, 4.295e-3, 1e-3), "the naive method's four passes, one head");

static_assert(within(128 * one_pass, 137.4e-3, 1e-3), "32 heads, four passes");
static_assert(within(32 * 128 * one_pass, 4.40, 1e-3), "32 such layers");

// Tiles of 128 x 256 hold 2,359,296 pairs for the 2,098,176 that causal attention sees at n = 2048.
static_assert(causal().pairs(2048, 2048) == 2'098'176);
static_assert(causal().computed_pairs(2048, 2048, 128, 256) == 2'359'296);

// The wall: 1 GiB of scores a head at n = 16,384; the bound for the tiled method is 0.14 s there.
static_assert(naive(self_attention(16'384, 64, causal())).extra_memory == 1024.0 * 1024 * 1024);
static_assert(within(roofline{2.5e11, 3e10}.seconds(tiled(self_attention(16'384, 64, causal()))),
                     0.1375, 1e-3));

// Doubling n quadruples attention, exactly; linear attention and the feed-forward layer double.
static_assert(attention_flops(self_attention(2 * 4096, 64)) ==
              4 * attention_flops(self_attention(4096, 64)));
static_assert(naive(self_attention(2 * 4096, 64)).extra_memory ==
              4 * naive(self_attention(4096, 64)).extra_memory);
static_assert(linear_chunked(self_attention(2 * 4096, 64)).flops ==
              2 * linear_chunked(self_attention(4096, 64)).flops);
static_assert(linear_recurrent(self_attention(2 * 4096, 64)).flops ==
              2 * linear_recurrent(self_attention(4096, 64)).flops);
static_assert(feed_forward({4096, 11008, true}, 2 * 512).flops ==
              2 * feed_forward({4096, 11008, true}, 512).flops);

// --- single operations ---------------------------------------------------------------------------

static_assert(attention_flops(self_attention(1024, 64)) == 4.0 * 1024 * 1024 * 64, "4 N M D");
static_assert(naive(self_attention(1024, 64, causal())).flops == 4.0 * 1024 * 1024 * 64,
              "the naive method computes masked pairs too");
static_assert(tiled(self_attention(1024, 64, causal())).flops == 4.0 * (1024 * 1025 / 2) * 64);
static_assert(tiled(self_attention(16'384, 64, causal_window(512))).flops ==
              4.0 * 64 * (512.0 * 16'384 - 512.0 * 511 / 2));
static_assert(feed_forward({4096, 16384, false}, 1).flops == 4.0 * 4096 * 16384);
static_assert(feed_forward({4096, 11008, true}, 1).flops == 6.0 * 4096 * 11008);

TEST(CostPairs, ClosedFormsEqualCounting) {
  const std::vector<std::optional<index>> limits = {std::nullopt, -3, -1, 0, 1, 2, 5, 40};
  for (index n = 0; n <= 9; ++n) {
    for (index m = 0; m <= 9; ++m) {
      for (index offset = -12; offset <= 12; ++offset) {
        for (const auto& left : limits) {
          for (const auto& right : limits) {
            const band b{left, right, offset};
            const auto sees = [&](index i, index j) {
              const index p = offset + i;
              return (!left || j >= p - *left) && (!right || j <= p + *right);
            };
            index pairs = 0;
            for (index i = 0; i < n; ++i) {
              for (index j = 0; j < m; ++j) pairs += sees(i, j) ? 1 : 0;
            }
            ASSERT_EQ(b.pairs(n, m), pairs) << n << " x " << m << " offset " << offset;
            for (const index block : {index{1}, index{2}, index{4}, index{16}}) {
              index rows_read = 0;
              index computed = 0;
              for (index begin = 0; begin < n; begin += block) {
                const index end = std::min(begin + block, n);
                std::set<index> keys;
                std::set<index> key_blocks;
                for (index i = begin; i < end; ++i) {
                  for (index j = 0; j < m; ++j) {
                    if (!sees(i, j)) continue;
                    keys.insert(j);
                    key_blocks.insert(j / 3);
                  }
                }
                rows_read += static_cast<index>(keys.size());
                for (const index kb : key_blocks) {
                  computed += (end - begin) * (std::min(3 * kb + 3, m) - 3 * kb);
                }
                const heed::range seen = b.keys({begin, end}, m);
                ASSERT_EQ(seen.size(), static_cast<index>(keys.size()));
                if (!keys.empty()) {
                  ASSERT_EQ(seen.begin, *keys.begin());
                }
              }
              ASSERT_EQ(b.key_rows_read(n, m, block), rows_read);
              ASSERT_EQ(b.computed_pairs(n, m, block, 3), computed);
            }
          }
        }
      }
    }
  }
}

TEST(CostPairs, LargeSizesStayExact) {
  // A million tokens: n (n + 1) / 2 and the window's parallelogram less its missing corner.
  const index n = 1'000'000;
  EXPECT_EQ(causal().pairs(n, n), n * (n + 1) / 2);
  EXPECT_EQ(causal_window(4096).pairs(n, n), n * 4096 - index{4096} * 4095 / 2);
  EXPECT_EQ(causal(-n).pairs(n, n), 0);
  EXPECT_EQ(causal(n).pairs(n, n), n * n);
}

TEST(CostAttention, NaiveMovesItsScoresFourTimes) {
  const attention_shape s{.batch = 2,
                          .query_heads = 8,
                          .kv_heads = 2,
                          .queries = 100,
                          .keys = 300,
                          .head_dim = 32,
                          .value_dim = 48,
                          .visible = {},
                          .scalar_bytes = 2,
                          .accumulator_bytes = 4};
  const work w = naive(s);
  const double scores = 2.0 * 8 * 100 * 300;
  EXPECT_EQ(w.flops, 2 * scores * (32 + 48));
  EXPECT_EQ(w.extra_memory, 4 * scores);
  const double tensors = 2.0 * (2 * 8 * 100 * (32 + 48) + 2 * 2 * 300 * (32 + 48));
  EXPECT_EQ(w.bytes, tensors + 4 * 4 * scores);
  EXPECT_EQ(naive(s, 1).extra_memory, 4.0 * 100 * 300);
  EXPECT_EQ(naive(s, 1).bytes, w.bytes);
}

TEST(CostAttention, TiledMovesKeysOncePerQueryBlock) {
  attention_shape s = self_attention(1024, 64);
  const tiling t{
      .query_block = 128, .key_block = 256, .score_rows = 48, .workers = 1, .cache_bytes = 0};
  const double row = 2 * 64 * 4;
  EXPECT_EQ(tiled(s, t).bytes, 1024 * row + 8 * 1024 * row);
  tiling cached = t;
  cached.cache_bytes = 1024 * row;
  EXPECT_EQ(tiled(s, cached).bytes, 2 * 1024 * row) << "K and V fit: each is read once";
  // Causal: block b of 8 reads 128 (b + 1) keys.
  s.visible = causal();
  EXPECT_EQ(tiled(s, t).bytes, 1024 * row + 128 * (1 + 2 + 3 + 4 + 5 + 6 + 7 + 8) * row);
  // Two query heads on one KV head read it twice when it does not fit, once when it does.
  s.query_heads = 2;
  EXPECT_EQ(tiled(s, cached).bytes, 2 * 1024 * row + 1024 * row);
}

TEST(CostAttention, TiledMemoryGrowsWithWorkersAlone) {
  const tiling t{
      .query_block = 100, .key_block = 20, .score_rows = 10, .workers = 1, .cache_bytes = 0};
  attention_shape s = self_attention(4096, 64);
  s.value_dim = 32;
  const double one = 4.0 * (100 * (64 + 2 * 32 + 3) + 10 * 20 + 20 * (64 + 32));
  EXPECT_EQ(tiled(s, t).extra_memory, one);
  s.queries = s.keys = 1'000'000;
  EXPECT_EQ(tiled(s, t).extra_memory, one);
  tiling three = t;
  three.workers = 3;
  EXPECT_EQ(tiled(s, three).extra_memory, 3 * one);
}

TEST(CostAttention, DecodeReadsTheCacheOnce) {
  const attention_shape s{.batch = 1,
                          .query_heads = 32,
                          .kv_heads = 8,
                          .queries = 1,
                          .keys = 16'384,
                          .head_dim = 128,
                          .value_dim = {},
                          .visible = causal(16'383),
                          .scalar_bytes = 4,
                          .accumulator_bytes = 4};
  const work w = decode(s);
  const double cache = kv_cache_bytes(1, 16'384, 8, 128, 4);
  EXPECT_EQ(w.bytes, cache + 32 * 2 * 128 * 4);
  EXPECT_EQ(w.flops, 4.0 * 32 * 16'384 * 128);
  // 2 g / scalar_bytes operations a byte, g heads a KV head: far below any ridge.
  EXPECT_NEAR(w.intensity(), 2.0 * 4 / 4, 0.01);
  const roofline core{2.5e11, 3e10};
  EXPECT_EQ(core.limited_by(w), bound::memory);
  EXPECT_EQ(core.seconds(w), w.bytes / 3e10);
}

TEST(CostLinear, CountsFollowTheLoops) {
  attention_shape s = self_attention(1000, 16);
  s.value_dim = 24;
  const chunking form{.features = 32, .chunk = 96, .workers = 1};
  double flops = 0;
  for (index t = 0; t < 1000; ++t) {
    flops += 2.0 * 32 * 24;  // S += phi(k) v'
    flops += 2.0 * 32 * 24;  // phi(q)' S
  }
  EXPECT_EQ(linear_recurrent(s, form).flops, flops);
  for (index t = 0; t < 1000; ++t) flops += 2.0 * static_cast<double>(t % 96 + 1) * (32 + 24);
  EXPECT_EQ(linear_chunked(s, form).flops, flops);
  EXPECT_EQ(linear_non_causal(s, form).flops, 2.0 * (1000 + 1000) * 32 * 24);
  EXPECT_EQ(linear_recurrent(s, form).extra_memory, 4.0 * 32 * 25);
  EXPECT_EQ(linear_chunked(s, form).extra_memory,
            4.0 * (32 * 25 + 96 * (96 + 3 * 32 + 2 * 24 + 1) + 16));
}

TEST(CostMatrixState, CountsFollowTheLoops) {
  attention_shape s = self_attention(1000, 16);
  s.value_dim = 24;
  double state = 0, pairs = 0;
  for (index t = 0; t < 1000; ++t) {
    state += 2.0 * 16 * 24;
    pairs += 2.0 * static_cast<double>(t % 96 + 1) * (16 + 24);
  }
  const auto flops = [&](state_write write) {
    return matrix_state_chunked(s, {.write = write, .chunk = 96}).flops;
  };
  EXPECT_EQ(flops(state_write::outer), 2 * state + pairs);
  EXPECT_EQ(flops(state_write::delta), 3 * state + 2 * pairs);
  EXPECT_EQ(flops(state_write::low_rank), 4 * state + 4 * pairs);
}

// Scratch of one head of 64 channels, packets of 16 floats: docs/linear.md.
constexpr double scratch_of_a_long_text(matrix_state_form form) {
  form.lanes = 16;
  return matrix_state_chunked(self_attention(1'000'000, 64), form).extra_memory / 1024;
}
static_assert(within(scratch_of_a_long_text({}), 209, 0.003));
static_assert(within(scratch_of_a_long_text({.write = state_write::delta}), 209, 0.003));
static_assert(within(scratch_of_a_long_text({.channel_gate = true, .chunk = 16}), 87, 0.007));
static_assert(within(scratch_of_a_long_text(
                         {.write = state_write::low_rank, .channel_gate = true, .chunk = 16}),
                     113, 0.005),
              "rwkv7");

/// Scratch that a call used, `run(workspace)`, beside what is predicted of its shape and form.
template <class Run>
void expect_scratch(const attention_shape& s, matrix_state_form form, Run&& run, const char* what) {
  heed::workspace used;
  run(used);
  form.lanes = heed::simd::lanes<float>;
  // Each of 21 pieces begins a cache line.
  const double predicted = matrix_state_chunked(s, form).extra_memory;
  const auto bytes = static_cast<double>(used.size());
  EXPECT_GE(bytes, predicted) << what << ", D " << s.head_dim << ", n " << s.queries;
  EXPECT_LE(bytes, predicted + 21.0 * heed::cache_line)
      << what << ", D " << s.head_dim << ", n " << s.queries;
  if (s.head_dim % 16 == 0 && s.values() % 16 == 0 && s.queries % 64 == 0) {
    EXPECT_EQ(bytes, predicted) << what << ": whole cache lines";
  }
}

TEST(CostMatrixState, ScratchIsWhatTheKernelsUse) {
  struct sizes {
    index heads, state_heads, n, d, dv;
  };
  for (const sizes& z : {sizes{1, 1, 128, 64, 64}, sizes{4, 2, 128, 32, 48}, sizes{2, 2, 37, 20, 7},
                         sizes{6, 2, 11, 5, 33}, sizes{1, 1, 320, 128, 64}}) {
    const heed::tensor<float, 3> q({z.heads, z.n, z.d}), k({z.state_heads, z.n, z.d});
    const heed::tensor<float, 3> v({z.state_heads, z.n, z.dv});
    const heed::tensor<float, 2> number({z.state_heads, z.n});
    const attention_shape s{.query_heads = z.heads,
                            .kv_heads = z.state_heads,
                            .queries = z.n,
                            .keys = z.n,
                            .head_dim = z.d,
                            .value_dim = z.dv,
                            .visible = causal()};
    heed::serial_executor one;
    const auto options = [](heed::workspace& w) { return heed::recurrence_options{.scratch = &w}; };
    expect_scratch(
        s, {},
        [&](heed::workspace& w) {
          (void)heed::scalar_gated_attention(one, q, k, v, number, options(w));
        },
        "a gate a token");
    expect_scratch(
        s, {.channel_gate = true, .chunk = 16},
        [&](heed::workspace& w) { (void)heed::gated_attention(one, q, k, v, k, options(w)); },
        "a gate a channel");
    expect_scratch(
        s, {.write = state_write::delta},
        [&](heed::workspace& w) {
          (void)heed::gated_delta_attention(one, q, k, v, number, number, options(w));
        },
        "gated delta");
    expect_scratch(
        s, {.write = state_write::delta, .channel_gate = true, .chunk = 16},
        [&](heed::workspace& w) {
          (void)heed::channel_gated_delta_attention(one, q, k, v, k, number, options(w));
        },
        "delta, a gate a channel");
    expect_scratch(
        s, {.write = state_write::low_rank},
        [&](heed::workspace& w) { (void)heed::low_rank_attention(one, q, k, v, k, k, options(w)); },
        "low rank");
    expect_scratch(
        s, {.write = state_write::low_rank, .channel_gate = true, .chunk = 16},
        [&](heed::workspace& w) {
          (void)heed::diagonal_low_rank_attention(one, q, k, v, k, k, k, options(w));
        },
        "low rank, a gate a channel");
  }
}

TEST(CostRoofline, TakesTheSlowerOfTwo) {
  constexpr roofline r{100, 10};
  static_assert(r.ridge() == 10);
  static_assert(r.seconds(work{200, 5, 0}) == 2);
  static_assert(r.seconds(work{200, 50, 0}) == 5);
  static_assert(r.limited_by(work{200, 50, 0}) == bound::memory);
  static_assert(r.limited_by(work{500, 50, 0}) == bound::compute);
  // Stages in sequence do not overlap: 2 + 5, not max(4, 5.5).
  static_assert(r.seconds(std::array{work{200, 5, 0}, work{200, 50, 0}}) == 7);
  constexpr work sum = work{1, 2, 30} + work{4, 5, 6};
  static_assert(sum == work{5, 7, 30});
  static_assert(3.0 * work{1, 2, 30} == work{3, 6, 30});
}

// --- crossovers ----------------------------------------------------------------------------------

// Exact attention and linear attention do equal FLOPs at n = D (4 n n D against 4 n D D).
static_assert(crossover([](index n) { return tiled(self_attention(n, 64)).flops; },
                        [](index n) { return linear_non_causal(self_attention(n, 64)).flops; }) ==
              64);
// A causal mask halves the pairs: n (n + 1) / 2 >= n D first at 2 D - 1.
static_assert(crossover([](index n) { return tiled(self_attention(n, 64, causal())).flops; },
                        [](index n) { return linear_recurrent(self_attention(n, 64)).flops; }) ==
              127);
static_assert(!crossover([](index) { return 1.0; }, [](index) { return 2.0; }));

// A plain layer of hidden width 4 d: 16 n d^2 against 4 n^2 d.
static_assert(attention_overtakes_feed_forward(presets::gpt3_175b) == 4 * 12288);
static_assert(attention_overtakes_feed_forward(presets::gpt3_175b, true) == 8 * 12288 - 1);
// Projections are 8 n d^2 of attention: half the distance.
static_assert(attention_overtakes_feed_forward(presets::gpt3_175b, false,
                                               attention_part::with_projections) == 2 * 12288);
// Gated: 6 n d h against 4 n^2 d, n = 1.5 h.
static_assert(attention_overtakes_feed_forward(presets::llama2_7b) == 16'512);
static_assert(attention_overtakes_feed_forward(presets::llama3_8b) == 21'504);   // 5.25 d
static_assert(attention_overtakes_feed_forward(presets::llama3_70b) == 43'008);  // 5.25 d
static_assert(attention_overtakes_feed_forward(presets::llama2_7b, true) == 33'023);
static_assert(attention_overtakes_feed_forward(presets::llama3_8b, true) == 43'007);
static_assert(attention_overtakes_feed_forward(presets::llama3_70b, true) == 86'015);
static_assert(attention_overtakes_feed_forward(presets::deepseek_v3, true) == 19'443);
static_assert(attention_overtakes_feed_forward(presets::llama2_7b, false,
                                               attention_part::with_projections) == 8'320);
static_assert(attention_overtakes_feed_forward(presets::llama3_8b, false,
                                               attention_part::with_projections) == 16'384);
static_assert(attention_overtakes_feed_forward(presets::llama3_70b, false,
                                               attention_part::with_projections) == 33'792);
static_assert(attention_overtakes_feed_forward(presets::deepseek_v3, false,
                                               attention_part::with_projections) == 5'154);
// A mixture's token meets 9 experts of 2048, as wide as the dense layer of 18432, and a router.
static_assert(attention_overtakes_feed_forward(presets::deepseek_v3, false,
                                               attention_part::products, 0) == 9'677);
static_assert(attention_overtakes_feed_forward(presets::deepseek_v3) == 9'722);

TEST(CostCrossover, FeedForwardClosedFormEqualsBisection) {
  for (const model& m : {presets::gpt3_175b, presets::llama2_7b, presets::llama3_8b,
                         presets::llama3_70b, presets::deepseek_v3}) {
    for (const bool masked : {false, true}) {
      const auto attention = [&](index n) {
        attention_shape s = layer_attention(m, n);
        if (!masked) s.visible = {};
        return attention_flops(s);
      };
      const auto feed = [&](index n) {
        return 2 * static_cast<double>(n) * active_feed_forward_weights(m, m.layers - 1);
      };
      const auto n = crossover(attention, feed, index{1} << 20);
      ASSERT_TRUE(n.has_value());
      EXPECT_EQ(attention_overtakes_feed_forward(m, masked), *n);
      EXPECT_GE(attention(*n), feed(*n));
      EXPECT_LT(attention(*n - 1), feed(*n - 1));
    }
  }
}

TEST(CostBudget, LargestProblemInOneSecondAndOneGibibyte) {
  constexpr roofline core{1e11, 3e10};
  // Naive: one head's n^2 floats fill 1 GiB at n = 16,384, long before the second is over.
  constexpr affordable slow =
      largest_affordable(budget{}, core, [](index n) { return naive(self_attention(n, 64)); });
  static_assert(slow.tokens == 16'384);
  static_assert(slow.by == limit::memory);
  // Tiled: 256 n^2 <= 1e11.
  constexpr affordable exact =
      largest_affordable(budget{}, core, [](index n) { return tiled(self_attention(n, 64)); });
  static_assert(exact.tokens == 19'764);
  static_assert(exact.by == limit::time);
  static_assert(256.0 * 19'764 * 19'764 <= 1e11 && 256.0 * 19'765 * 19'765 > 1e11);
  // Linear: 4 x 64 x 64 operations a token.
  constexpr affordable fast = largest_affordable(
      budget{}, core, [](index n) { return linear_recurrent(self_attention(n, 64)); });
  static_assert(fast.tokens == static_cast<index>(1e11 / (4 * 64 * 64)));
  constexpr affordable endless =
      largest_affordable(budget{}, [](index) { return 0.0; }, [](index) { return 0.0; }, 100);
  static_assert(endless.tokens == 100 && endless.by == limit::none);
}

// --- whole models --------------------------------------------------------------------------------

// Published or downloadable parameter counts, to the last weight.
static_assert(weights(presets::gpt3_175b) == 174'604'259'328.0);
static_assert(weights(presets::llama2_7b) == 6'738'415'616.0);
static_assert(weights(presets::llama3_8b) == 8'030'261'248.0);
static_assert(weights(presets::llama3_70b) == 70'553'706'496.0);
static_assert(weights(presets::deepseek_v3) == 671'026'419'200.0);
// "37B activated for each token", the embedding row included.
static_assert(within(active_weights(presets::deepseek_v3), 37e9, 0.02));

// Cache of one token in 16 bits, all layers.
static_assert(kv_cache_bytes(presets::gpt3_175b, 1) == 4'718'592.0);
static_assert(kv_cache_bytes(presets::llama2_7b, 1) == 524'288.0);
static_assert(kv_cache_bytes(presets::llama3_8b, 1) == 131'072.0);
static_assert(kv_cache_bytes(presets::llama3_70b, 1) == 327'680.0);
static_assert(kv_cache_bytes(presets::deepseek_v3, 1) == 70'272.0, "61 x (512 + 64) x 2");
// The same model without its latent vector would hold 2 x 61 x 128 heads of 192 and 128 channels.
static_assert(61.0 * 128 * (192 + 128) * 2 / kv_cache_bytes(presets::deepseek_v3, 1) > 71);

TEST(CostModel, ForwardIsTwiceTheWeightsPlusAttention) {
  const model& m = presets::llama2_7b;
  const index n = 2048;
  const double matrices = weights(m) - 2.0 * 32'000 * 4096 - (2 * 32 + 1) * 4096.0;
  const double attention = 32 * 4.0 * 4096 * (2048.0 * 2049 / 2);
  const double logits = 2.0 * 32'000 * 4096;  // of the last token
  EXPECT_EQ(prefill(m, n).flops, 2 * n * matrices + attention + logits);
  EXPECT_GE(prefill(m, n).bytes, 2 * matrices) << "at least the 16-bit weights";
}

TEST(CostModel, DecodeReadsWeightsAndCache) {
  const model& m = presets::llama3_8b;
  const work w = decode_step(m, 8191);
  const double matrices = weights(m) - 128'256.0 * 4096 - (2 * 32 + 1) * 4096.0;
  EXPECT_EQ(active_weights(m), matrices);
  EXPECT_EQ(w.flops, 2 * matrices + 32 * 4.0 * 4096 * 8192);
  EXPECT_EQ(w.bytes, 2 * matrices + 8192 * 131'072.0 + 131'072.0);
}

TEST(CostModel, LatentDecodeTradesArithmeticForTraffic) {
  const model& m = presets::deepseek_v3;
  const attention_shape s = layer_decode(m, 4095);
  EXPECT_EQ(attention_flops(s), 2.0 * 128 * 4096 * (576 + 512));
  // 2 x 128 x (576 + 512) operations on 576 x 2 bytes a cached token.
  const double intensity = attention_flops(s) / (4096.0 * 576 * 2);
  EXPECT_NEAR(intensity, 241.8, 0.1);
  EXPECT_LT(decode_step(m, 100'000).bytes,
            active_weights(m) * 2 + 1.01 * 100'001 * kv_cache_bytes(m, 1));
}

}  // namespace
