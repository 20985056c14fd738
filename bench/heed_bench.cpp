// SPDX-License-Identifier: MIT
// heed_bench: rates of every method next to the peak and the bandwidth of the same moment.
//
//   heed_bench --benchmark_filter=forward/tiled --benchmark_out=rates.json
//   heed_bench --shape b4,h24,kv24,n3333,d72,bf16,causal --method attention   a shape of one's own
//
// Names are family/method/dtype/d:D/n:N/causal:C/threads:T. One head unless the method says
// otherwise. Counters:
//   seconds    the median call
//   GFLOPS     operations on visible pairs (4 pairs d, backward 10), median call
//   peak       GFLOPS in the multiply-add peak measured right beside
//   GBps       bytes that must be read and written, median call
//   bandwidth  GBps in the read bandwidth measured right beside
//   floor      what the exponentials and multiply-adds of a scan take at the rates measured right
//              beside, in the time of the median call
//   workspace  bytes of scratch
//   tokens     a second: calls, in decode
//   shared     1 where other processes had part of the processor throughout: the rates are of
//              processor time, caches were shared too; measure again
// Google Benchmark's own time columns include calls beside slow probes; the counters do not.
#include <benchmark/benchmark.h>

#include <string>
#include <vector>

#include "bench/families.hpp"
#include "bench/shape.hpp"

int main(int argc, char** argv) {
  if (bench::asks_for_shape(argc, argv)) return bench::run_shape(argc, argv);
  // A fifth of a second a benchmark is two segments between probes; the default would be slower.
  std::vector<char*> arguments(argv, argv + argc);
  std::string shorter = "--benchmark_min_time=0.2";
  arguments.insert(arguments.begin() + 1, shorter.data());
  int count = static_cast<int>(arguments.size());
  arguments.push_back(nullptr);
  benchmark::Initialize(&count, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) return 1;
  bench::register_forward();
  bench::register_backward();
  bench::register_linear_backward();
  bench::register_narrow();
  bench::register_modified();
  bench::register_traps();
  bench::register_decode();
  bench::register_caches();
  bench::register_linear();
  bench::register_sparse();
  bench::register_selection();
  bench::register_native_sparse();
  bench::register_recurrence();
  bench::register_sorted();
  bench::register_length();
  bench::register_scan();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
