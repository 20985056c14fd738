// SPDX-License-Identifier: MIT
// What once was slow or inexact by surprise: denormal weights, states that fade, modifiers that hold
// a table by value, one long sequence among short ones, patterns built from a mask, and the error
// over n.
//
//   heed_bench --benchmark_filter=traps                  compare rows of one name but for the case
//   heed_bench --benchmark_filter=traps/error            counters out, lse: relative errors
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "bench/families.hpp"
#include "bench/harness.hpp"
#include "heed/attention.hpp"
#include "heed/linear.hpp"
#include "heed/score.hpp"
#include "heed/sparse.hpp"

namespace bench {

namespace {

using tensor3 = heed::tensor<float, 3>;

template <class Run>
void add(const std::string& name, double flops, const Run& run) {
  benchmark::RegisterBenchmark(("traps/" + name).c_str(), [=](benchmark::State& state) {
    run(state, flops);
  })->Unit(benchmark::kMicrosecond);
}

struct head {
  tensor3 q, k, v, out;
  heed::workspace scratch;
  head(index queries, index keys, index dim)
      : q(random_tensor<float, 3>({1, queries, dim}, 1)),
        k(random_tensor<float, 3>({1, keys, dim}, 2)),
        v(random_tensor<float, 3>({1, keys, dim}, 3)),
        out({1, queries, dim}) {}

  template <class... M>
  void measure(benchmark::State& state, double flops, const heed::attention_options& given,
               const M&... modifiers) {
    heed::attention_options o = given;
    o.scratch = &scratch;
    measure_flops<float>(state, 1, flops, scratch,
                         [&] { heed::attention_into(pool_of(1), out, q, k, v, o, modifiers...); });
  }
};

[[nodiscard]] double dense_flops(index queries, index keys, index dim) {
  return 4.0 * static_cast<double>(queries) * static_cast<double>(keys) * static_cast<double>(dim);
}

/// Scores of standard deviation `spread`: from about 15 on weights are below the least normal.
void denormal_weights() {
  for (const int spread : {1, 5, 15, 30}) {
    add("denormals/spread:" + std::to_string(spread), dense_flops(512, 2048, 64),
        [=](benchmark::State& state, double flops) {
          head x(512, 2048, 64);
          x.measure(state, flops, {.scale = spread / 8.0});
        });
  }
}

/// Recurrences of gate -0.1 over tokens of keys and values that are 0 but for the first 64, as
/// padding is: the state passes below the least normal number some 900 tokens later.
void fading_states() {
  const index n = 8192, dim = 64;
  const double flops = 4.0 * double(n) * double(dim) * double(dim);
  for (const bool padded : {false, true}) {
    const auto row = [=](const char* method, const auto& call) {
      add(std::string("fading/") + method + "/padded:" + (padded ? "1" : "0"), flops,
          [=](benchmark::State& state, double all) {
            head x(n, n, dim);
            for (tensor3* t : {&x.k, &x.v}) {
              if (padded) std::fill_n(t->data() + 64 * dim, t->size() - 64 * dim, 0.0F);
            }
            measure_flops<float>(state, 1, all, x.scratch, [&] { call(x); });
          });
    };
    heed::tensor<float, 2> of_token({1, n});
    std::fill_n(of_token.data(), of_token.size(), -0.1F);
    tensor3 of_channel({1, n, dim});
    std::fill_n(of_channel.data(), of_channel.size(), -0.1F);
    row("scalar_gated", [=](head& x) {
      heed::scalar_gated_attention_into(pool_of(1), x.out, x.q, x.k, x.v, of_token,
                                        heed::recurrence_options{.scratch = &x.scratch});
    });
    row("gated", [=](head& x) {
      heed::gated_attention_into(pool_of(1), x.out, x.q, x.k, x.v, of_channel,
                                 heed::recurrence_options{.scratch = &x.scratch});
    });
    row("hgrn", [=](head& x) {
      heed::hgrn_into(pool_of(1), x.out, x.v, of_channel,
                      heed::scan_options{.scratch = &x.scratch});
    });
  }
}

/// 64K floats in the modifier's own closure, or outside it.
void capturing_lambdas() {
  for (const bool by_value : {false, true}) {
    add(std::string("table/by_value:") + (by_value ? "1" : "0"), dense_flops(512, 2048, 64),
        [=](benchmark::State& state, double flops) {
          head x(512, 2048, 64);
          const std::vector<float> table(65536, 0.5F);
          const auto from = [](const std::vector<float>& t, heed::position p) {
            return t[static_cast<std::size_t>((p.query - p.key) & 65535)];
          };
          if (by_value) {
            x.measure(state, flops, {},
                      [table, from](float s, heed::position p) { return s + from(table, p); });
          } else {
            x.measure(state, flops, {},
                      [&table, from](float s, heed::position p) { return s + from(table, p); });
          }
        });
  }
}

/// One query a sequence: 255 of 16 keys, one of 65,536, both. Together they should cost the sum.
void one_long_sequence() {
  for (const char* which : {"short", "long", "both"}) {
    std::vector<index> lengths;
    if (which[0] != 'l') lengths.assign(255, 16);
    if (which[0] != 's') lengths.push_back(65536);
    std::vector<index> queries{0}, keys{0};
    for (const index n : lengths) {
      queries.push_back(queries.back() + 1);
      keys.push_back(keys.back() + n);
    }
    add(std::string("one_long/") + which, dense_flops(1, keys.back(), 64),
        [=](benchmark::State& state, double flops) {
          head x(queries.back(), keys.back(), 64);
          measure_flops<float>(state, 1, flops, x.scratch, [&] {
            heed::ragged_attention_into(pool_of(1), x.out, x.q, x.k, x.v, queries, keys,
                                        {.scratch = &x.scratch});
          });
        });
  }
}

/// A mask that keeps about a sixth of all pairs, in whole and in partial blocks of 64.
struct scattered {
  static constexpr heed::stage when = heed::stage::mask;
  bool operator()(const heed::position& p) const noexcept {
    const auto block = static_cast<std::uint64_t>(p.query / 64 * 977 + p.key / 64 * 131);
    return block % 5 == 0 && (p.query + p.key) % 8 != 0;
  }
};
void pattern_of_a_mask() {
  constexpr index n = 2048;
  for (const char* how : {"dense", "mask", "pattern"}) {
    add(std::string("pattern/") + how, dense_flops(n, n, 64),
        [=](benchmark::State& state, double flops) {
          head x(n, n, 64);
          heed::serial_executor serial;
          const heed::block_pattern p(
              serial, {.queries = n, .keys = n, .query_block = 64, .key_block = 64}, scattered{});
          if (how[0] == 'd') x.measure(state, flops, {});
          if (how[0] == 'm') x.measure(state, flops, {}, scattered{});
          if (how[0] == 'p') x.measure(state, flops, {}, heed::blocks(p, scattered{}));
        });
  }
}

/// The first row of attention in double, one pass for the maximum and one for the sums.
struct exact_row {
  std::vector<double> out;
  double lse = 0;
  exact_row(const head& x, index row, double scale) : out(static_cast<std::size_t>(x.v.extent(2))) {
    std::vector<double> s(static_cast<std::size_t>(x.k.extent(1)));
    double most = -std::numeric_limits<double>::infinity(), sum = 0;
    for (index j = 0; j < x.k.extent(1); ++j) {
      double dot = 0;
      for (index c = 0; c < x.q.extent(2); ++c) dot += double(x.q(0, row, c)) * x.k(0, j, c);
      s[static_cast<std::size_t>(j)] = scale * dot;
      most = std::max(most, scale * dot);
    }
    for (index j = 0; j < x.k.extent(1); ++j) {
      const double w = std::exp(s[static_cast<std::size_t>(j)] - most);
      sum += w;
      for (std::size_t c = 0; c < out.size(); ++c) out[c] += w * x.v(0, j, index(c));
    }
    for (double& o : out) o /= sum;
    lse = most + std::log(sum);
  }
};

/// Relative errors of the output and log-sum-exp: `sink` has one key at score 0 and the others 12
/// below, values in [0.5, 1]; `random` has scores of unit spread.
void errors_over_n() {
  for (const char* data : {"sink", "random"}) {
    for (const index rows : {index{1}, index{64}}) {
      for (index n = 1024; n <= index{1} << 20; n *= 4) {
        add("error/" + std::string(data) + "/rows:" + std::to_string(rows) +
                "/n:" + std::to_string(n),
            dense_flops(rows, n, 16), [=](benchmark::State& state, double flops) {
              head x(rows, n, 16);
              if (data[0] == 's') {
                std::fill_n(x.q.data(), x.q.size(), 1.0F);
                std::fill_n(x.k.data(), x.k.size(), -0.75F);  // 16 of them: -12
                std::fill_n(x.k.data(), 16, 0.0F);
              }
              for (index i = 0; i < x.v.size(); ++i) {
                x.v.data()[i] = 0.5F + 0.25F * std::min(2.0F, std::abs(x.v.data()[i]));
              }
              const double scale = data[0] == 's' ? 1 : 0.25;
              x.measure(state, flops, {.scale = scale});
              const auto got =
                  heed::attention_with_lse(pool_of(1), x.q, x.k, x.v, {.scale = scale});
              const exact_row want(x, 0, scale);
              double out = 0;
              for (std::size_t c = 0; c < want.out.size(); ++c) {
                out = std::max(out, std::abs(got.output(0, 0, index(c)) - want.out[c]) /
                                        std::abs(want.out[c]));
              }
              state.counters["out"] = out;
              state.counters["lse"] =
                  std::abs(got.log_sum_exp(0, 0) - want.lse) / std::max(1.0, std::abs(want.lse));
            });
      }
    }
  }
}

}  // namespace

void register_traps() {
  denormal_weights();
  fading_states();
  capturing_lambdas();
  one_long_sequence();
  pattern_of_a_mask();
  errors_over_n();
}

}  // namespace bench
