// SPDX-License-Identifier: MIT
// What every benchmark of heed_bench shares: names, data, and rates beside the machine's own.
//
// A run is cut into segments of a tenth of a second between two probes. A segment counts when both
// of its probes reach 95 % of the best one of the run: then the machine kept its pace throughout.
// Calls during which the process waited for the processor do not count either. Rates are medians of
// the calls that count; fractions divide by the better probe of the median call's own segment.
// Where nothing counts, all calls do, by their processor time; a counter `shared` then says so.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <ctime>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bench/probes.hpp"
#include "heed/parallel.hpp"
#include "heed/tensor.hpp"

namespace bench {

using heed::index;

template <class T>
inline constexpr const char* scalar_name = "?";
template <>
inline constexpr const char* scalar_name<float> = "f32";
template <>
inline constexpr const char* scalar_name<double> = "f64";
template <>
inline constexpr const char* scalar_name<heed::half> = "f16";
template <>
inline constexpr const char* scalar_name<heed::bfloat16> = "bf16";

struct shape {
  index head_dim = 64;
  index n = 2048;
  bool causal = false;
  index threads = 1;
};

/// family/method/dtype/d:D/n:N/causal:C/threads:T
template <class T>
[[nodiscard]] std::string name_of(const std::string& family, const std::string& method,
                                  const shape& s) {
  return family + "/" + method + "/" + scalar_name<T> + "/d:" + std::to_string(s.head_dim) +
         "/n:" + std::to_string(s.n) + "/causal:" + (s.causal ? "1" : "0") +
         "/threads:" + std::to_string(s.threads);
}

/// One pool for each number of threads, kept.
[[nodiscard]] inline heed::thread_pool& pool_of(index threads) {
  static std::map<index, std::unique_ptr<heed::thread_pool>> pools;
  auto& pool = pools[threads];
  if (!pool) pool = std::make_unique<heed::thread_pool>(threads);
  return *pool;
}

/// Numbers of unit scale.
template <class T, int R>
void fill(heed::tensor<T, R>& t, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> unit;
  for (index i = 0; i < t.size(); ++i) t.data()[i] = static_cast<T>(unit(generator));
}

template <class T, int R>
[[nodiscard]] heed::tensor<T, R> random_tensor(const std::array<index, std::size_t{R}>& extents,
                                               unsigned seed) {
  heed::tensor<T, R> t(extents);
  fill(t, seed);
  return t;
}

/// The data of the benchmark that runs: made by its first call, kept for its later ones (Google
/// Benchmark calls it several times, with more iterations each), given back when another one
/// starts.
inline std::shared_ptr<void>& held_data() {
  static std::shared_ptr<void> data;
  return data;
}
template <class Data, class Make>
[[nodiscard]] Data& data_of(const std::string& name, const Make& make) {
  static std::string owner;
  if (held_data() == nullptr || owner != name) {
    held_data().reset();
    held_data() = std::make_shared<Data>(make());
    owner = name;
  }
  return *static_cast<Data*>(held_data().get());
}

/// What a probe found: FLOP/s or bytes/s.
using probe = std::function<double()>;

[[nodiscard]] inline double bandwidth_of(index threads) {
  static const probes::read_probe reader;
  return reader.bandwidth(threads);
}

/// Medians over the calls that count.
struct measured {
  bool shared = false;  ///< no call had the processor to itself
  double seconds = 0;
  double probe = 0;  ///< work / (seconds x fraction): the machine's rate beside the median call
};

/// Runs `call` in the benchmark's loop, probing between segments.
template <class Call>
[[nodiscard]] measured run_segments(benchmark::State& state, const probe& take, const Call& call) {
  struct timed {
    double seconds;
    double processor;
  };
  struct segment {
    probes::peak_pair peak;
    std::vector<timed> calls;
  };
  std::vector<segment> segments(1);
  segments.back().peak.before = take();
  call();  // first touch of the workspace, and warm caches
  probes::clock::time_point opened = probes::clock::now();
  for ([[maybe_unused]] auto _ : state) {
    if (probes::seconds_since(opened) > 0.1 && !segments.back().calls.empty()) {
      state.PauseTiming();
      const double between = take();
      segments.back().peak.after = between;
      segments.push_back({{between, 0}, {}});
      opened = probes::clock::now();
      state.ResumeTiming();
    }
    const std::clock_t processor = std::clock();
    const probes::clock::time_point start = probes::clock::now();
    call();
    const double seconds = probes::seconds_since(start);
    segments.back().calls.push_back({seconds, static_cast<double>(std::clock() - processor) /
                                                  static_cast<double>(CLOCKS_PER_SEC)});
  }
  segments.back().peak.after = take();

  double best = 0;
  for (const segment& s : segments) best = std::max(best, s.peak.best());
  struct criterion {
    double pace;   // of the slower probe, in the best
    double alone;  // processor time in elapsed time; calls shorter than a slice are not judged
  };
  std::vector<std::pair<double, double>> calls;  // seconds, the segment's probe
  bool shared = false;
  for (const criterion& c : {criterion{0.95, 0.97}, criterion{0, 0.97}, criterion{0, 0}}) {
    for (const segment& s : segments) {
      if (s.peak.worst() < c.pace * best) continue;
      for (const timed& t : s.calls) {
        if (t.seconds < 1e-3 || t.processor >= c.alone * t.seconds) {
          calls.emplace_back(c.alone == 0 ? t.processor : t.seconds, s.peak.best());
        }
      }
    }
    shared = c.alone == 0;
    if (!calls.empty()) break;
  }
  const auto middle = calls.begin() + static_cast<std::ptrdiff_t>(calls.size() / 2);
  // By the fraction reached, so that time and probe are those of one call.
  std::nth_element(calls.begin(), middle, calls.end(), [](const auto& a, const auto& b) {
    return a.first * a.second < b.first * b.second;
  });
  return {shared, middle->first, middle->second};
}

/// A benchmark bound by arithmetic: counters seconds, GFLOPS, peak, workspace.
template <class A, class Call>
void measure_flops(benchmark::State& state, index threads, double flops,
                   const heed::workspace& scratch, const Call& call) {
  const measured m =
      run_segments(state, [=] { return probes::fma_peak<A>(pool_of(threads), threads); }, call);
  state.counters["seconds"] = m.seconds;
  state.counters["GFLOPS"] = flops / m.seconds * 1e-9;
  state.counters["peak"] = flops / m.seconds / m.probe;
  state.counters["workspace"] = static_cast<double>(scratch.size());
  if (m.shared) state.counters["shared"] = 1;
}

/// A benchmark bound by memory: counters GBps, bandwidth, workspace, and calls (tokens) a second.
template <class Call>
void measure_bytes(benchmark::State& state, index threads, double bytes,
                   const heed::workspace& scratch, const Call& call) {
  const measured m = run_segments(state, [=] { return bandwidth_of(threads); }, call);
  state.counters["GBps"] = bytes / m.seconds * 1e-9;
  state.counters["bandwidth"] = bytes / m.seconds / m.probe;
  state.counters["tokens"] = 1 / m.seconds;
  state.counters["workspace"] = static_cast<double>(scratch.size());
  if (m.shared) state.counters["shared"] = 1;
}

}  // namespace bench
