// SPDX-License-Identifier: MIT
// What the machine can do at this moment: peak of fused multiply-adds, and bandwidth of reading.
//
// A rate means little without the peak of the same core at the same moment: clocks float by a few
// per cent, and a shared machine slows down for seconds at a time. Both probes take some ten
// milliseconds, so that they can be printed right beside each measurement.
//
//   fma_peak<T>()             FLOP/s of independent multiply-adds in registers, one core
//   read_probe::bandwidth(n)  bytes/s of n threads reading a buffer that no cache holds
#pragma once

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstddef>
#include <ctime>
#include <thread>
#include <utility>
#include <vector>

#include "heed/core.hpp"
#include "heed/parallel/executor.hpp"
#include "heed/simd.hpp"

namespace probes {

using heed::index;
using clock = std::chrono::steady_clock;

[[nodiscard]] inline double seconds_since(clock::time_point start) {
  return std::chrono::duration<double>(clock::now() - start).count();
}

namespace detail {

/// Independent chains of multiply-adds. Two units of latency four need eight in flight; half of the
/// registers at least stay free for the operands.
inline constexpr index chains = heed::simd::vector_registers >= 32 ? 16 : 12;

/// What is written here before the clock is read has been computed before the clock is read.
template <class T>
inline thread_local volatile T sink{};

/// Enough of a result to keep the computation of the whole packet alive.
template <class T, class P>
T first_lane(const P& x) {
  T lanes[heed::simd::lanes<T>];
  heed::simd::store(lanes, x);
  return lanes[0];
}

/// `rounds` times `chains` multiply-adds, nothing else: every operand lives in a register. The
/// chains converge to 1, so that no number overflows or becomes denormal.
template <class T, std::size_t... Chain>
HEED_NOINLINE T multiply_adds(index rounds, T factor, T addend, std::index_sequence<Chain...>) {
  namespace simd = heed::simd;
  using packet = simd::packet<T>;
  const packet a = simd::broadcast(factor);
  const packet b = simd::broadcast(addend);
  packet chain[] = {simd::broadcast(T(1) + T(Chain) / T(1024))...};
  for (index r = 0; r < rounds; ++r) {
    ((chain[Chain] = simd::fmadd(chain[Chain], a, b)), ...);
  }
  packet total = simd::zero<T>();
  ((total = simd::add(total, chain[Chain])), ...);
  return first_lane<T>(total);
}

}  // namespace detail

/// FLOP/s of one core: the best of short runs, for `budget` seconds. Where the target has no fused
/// multiply-add it is what a multiplication and an addition give.
template <class T>
[[nodiscard]] double fma_peak(double budget = 0.01) {
  constexpr index rounds = 50'000;
  constexpr auto chains = std::make_index_sequence<static_cast<std::size_t>(detail::chains)>{};
  constexpr double flops = 2.0 * static_cast<double>(rounds * detail::chains) *
                           static_cast<double>(heed::simd::lanes<T>);
  volatile T factor = T(0.5);
  volatile T addend = T(0.5);
  double best = 0;
  const clock::time_point begin = clock::now();
  do {
    const clock::time_point start = clock::now();
    detail::sink<T> = detail::multiply_adds<T>(rounds, factor, addend, chains);
    best = std::max(best, flops / seconds_since(start));
  } while (seconds_since(begin) < budget);
  return best;
}

/// FLOP/s of `threads` threads of an executor at the same time, from the moment that all have
/// started to the end of the last: half of it is missing when two must share a core.
template <class T, heed::executor E>
[[nodiscard]] double fma_peak(E& exec, index threads) {
  if (threads <= 1) return fma_peak<T>();
  constexpr index rounds = 500'000;
  constexpr auto chains = std::make_index_sequence<static_cast<std::size_t>(detail::chains)>{};
  const double flops = 2.0 * static_cast<double>(rounds * detail::chains * threads) *
                       static_cast<double>(heed::simd::lanes<T>);
  volatile T factor = T(0.5);
  volatile T addend = T(0.5);
  double best = 0;
  for (int repeat = 0; repeat < 10; ++repeat) {
    std::atomic<index> arrived{0};
    std::vector<clock::time_point> starts(static_cast<std::size_t>(threads));
    std::vector<clock::time_point> ends(starts.size());
    exec.run(threads, [&](index worker) {
      arrived.fetch_add(1);
      while (arrived.load() < threads) std::this_thread::yield();
      const auto w = static_cast<std::size_t>(worker);
      starts[w] = clock::now();
      detail::sink<T> = detail::multiply_adds<T>(rounds, factor, addend, chains);
      ends[w] = clock::now();
    });
    const std::chrono::duration<double> together = *std::max_element(ends.begin(), ends.end()) -
                                                   *std::min_element(starts.begin(), starts.end());
    best = std::max(best, flops / together.count());
  }
  return best;
}

/// The better of the peaks before and after a measurement, and whether the machine kept its pace
/// between them: a run between two probes that differ by much does not count.
struct peak_pair {
  double before = 0;
  double after = 0;
  [[nodiscard]] double best() const { return std::max(before, after); }
  [[nodiscard]] double worst() const { return std::min(before, after); }
};

namespace detail {

/// Sums four streams of `count` floats each, `count` a multiple of 64. Four streams keep more
/// requests in flight than one: what a single core can draw.
inline float sum_streams(const float* data, index count) {
  namespace simd = heed::simd;
  using packet = simd::packet<float>;
  constexpr index width = simd::lanes<float>;
  constexpr index line = static_cast<index>(heed::cache_line / sizeof(float));
  constexpr index ahead = 512;  // floats: 32 lines
  packet sums[4][2];
  for (auto& pair : sums) pair[0] = pair[1] = simd::zero<float>();
  for (index i = 0; i < count; i += 2 * line) {
    for (index s = 0; s < 4; ++s) {
      const float* p = data + s * count + i;
      simd::prefetch(p + ahead);
      simd::prefetch(p + ahead + line);
      for (index j = 0; j < 2 * line; j += 2 * width) {
        sums[s][0] = simd::add(sums[s][0], simd::load(p + j));
        sums[s][1] = simd::add(sums[s][1], simd::load(p + j + width));
      }
    }
  }
  packet total = simd::zero<float>();
  for (const auto& pair : sums) total = simd::add(total, simd::add(pair[0], pair[1]));
  return first_lane<float>(total);
}

}  // namespace detail

/// A buffer much larger than the caches, touched once: make one and keep it.
class read_probe {
 public:
  explicit read_probe(std::size_t bytes = std::size_t{512} << 20)
      : size_(static_cast<index>(bytes / sizeof(float))), data_(new_floats(bytes)) {
    std::fill(data_, data_ + size_, 1.0F);
  }
  read_probe(const read_probe&) = delete;
  read_probe& operator=(const read_probe&) = delete;
  ~read_probe() { ::operator delete(data_, std::align_val_t{4096}); }

  /// Bytes per second, the best of `passes` passes over the buffer. A pass takes longer than a
  /// scheduler's slice: that of one thread is timed without what other processes took.
  [[nodiscard]] double bandwidth(index threads = 1, int passes = 2) const {
    const index share = size_ / threads / 4 / 64 * 64;  // floats of one of a thread's four streams
    const double bytes = static_cast<double>(share * 4 * threads) * sizeof(float);
    double best = 0;
    for (int pass = 0; pass < passes; ++pass) {
      std::vector<std::thread> helpers;
      std::barrier gate(static_cast<std::ptrdiff_t>(threads));
      const auto read = [&](index t) {
        detail::sink<float> = detail::sum_streams(data_ + t * share * 4, share);
      };
      for (index t = 1; t < threads; ++t) {
        helpers.emplace_back([&, t] {
          gate.arrive_and_wait();
          read(t);
          gate.arrive_and_wait();
        });
      }
      gate.arrive_and_wait();
      const std::clock_t processor = std::clock();
      const clock::time_point start = clock::now();
      read(0);
      gate.arrive_and_wait();
      double seconds = seconds_since(start);
      if (threads == 1) {
        seconds = std::min(seconds, static_cast<double>(std::clock() - processor) /
                                        static_cast<double>(CLOCKS_PER_SEC));
      }
      best = std::max(best, bytes / seconds);
      for (std::thread& h : helpers) h.join();
    }
    return best;
  }

 private:
  static float* new_floats(std::size_t bytes) {
    return static_cast<float*>(::operator new(bytes, std::align_val_t{4096}));
  }

  index size_;
  float* data_;
};

}  // namespace probes
