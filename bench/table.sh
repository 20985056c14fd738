#!/bin/sh
# SPDX-License-Identifier: MIT
# Runs heed_bench and prints its rates as a table: sh bench/table.sh [heed_bench] [options of heed_bench]
#
# The tables of docs/performance.md are this program's output.
set -eu
program=${1:-build/native/bench/heed_bench}
[ $# -eq 0 ] || shift
"$program" --benchmark_format=json "$@" 2>/dev/null | awk '
  function value(line) {
    sub(/^[^:]*: */, "", line)
    gsub(/[",]/, "", line)
    return line
  }
  function flush_row() {
    if (name == "") return
    rate = "peak" in c ? sprintf("%.0f | %.0f %% of the peak", c["GFLOPS"], 100 * c["peak"]) : \
           "bandwidth" in c ? sprintf("%.1f GB/s | %.0f %% of the read bandwidth", c["GBps"], 100 * c["bandwidth"]) : "|"
    printf "| %s | %s%s |\n", name, rate, ("shared" in c && c["shared"] > 0 ? " (shared)" : "")
    name = ""
    split("", c)
  }
  BEGIN { print "| benchmark | GFLOP/s or GB/s | of what the machine gave |"; print "|---|---|---|" }
  /"name":/ && /\// { flush_row(); line = $0; sub(/^[^:]*: *"/, "", line); sub(/",?$/, "", line); name = line }
  /"(GFLOPS|peak|GBps|bandwidth|shared)":/ { key = $1; gsub(/[":]/, "", key); c[key] = value($0) + 0 }
  END { flush_row() }'
