#!/bin/sh
# SPDX-License-Identifier: MIT
# Fits time = c n^e, least squares of log over log, to rows of heed_bench that differ in n alone, and prints a table:
#
#   sh bench/exponent.sh [heed_bench] [options of heed_bench]     runs it; all of length/ and sparse/ unless told otherwise
#   sh bench/exponent.sh rates.json                               reads what --benchmark_out wrote
#
# Rows of one length alone have no exponent and are left out. A * marks rates that other processes had a part in.
set -eu
program=${1:-build/native/bench/heed_bench}
[ $# -eq 0 ] || shift
case $program in
  *.json) cat "$program" ;;
  *)
    [ $# -ne 0 ] || set -- '--benchmark_filter=^(length|sparse)/'
    "$program" --benchmark_format=json "$@" 2>/dev/null
    ;;
esac | awk '
  function value(line) {
    sub(/^[^:]*: */, "", line)
    gsub(/[",]/, "", line)
    return line
  }
  function time_text(s) {
    if (s < 1e-3) return sprintf("%.3g us", s * 1e6)
    if (s < 1) return sprintf("%.3g ms", s * 1e3)
    return sprintf("%.3g s", s)
  }
  function count_text(n) {
    return n >= 1048576 ? n / 1048576 "M" : n >= 1024 ? n / 1024 "K" : n ""
  }
  function flush_row(  n, key, x, y) {
    if (name == "") return
    if (name !~ /\/n:[0-9]+/ || seconds <= 0) { name = ""; return }
    n = name
    sub(/.*\/n:/, "", n)
    sub(/\/.*/, "", n)
    n += 0
    key = name
    sub(/\/n:[0-9]+/, "", key)
    if (!(key in rows)) { order[++keys] = key; least[key] = most[key] = n }
    if (n <= least[key]) { least[key] = n; first[key] = seconds; first_space[key] = space }
    if (n >= most[key]) { most[key] = n; last[key] = seconds; last_space[key] = space }
    x = log(n)
    y = log(seconds)
    ++rows[key]
    sx[key] += x; sy[key] += y; sxx[key] += x * x; sxy[key] += x * y
    if (shared) star[key] = " *"
    name = ""
  }
  /"name":/ && /\// { flush_row(); name = value($0); seconds = space = shared = 0; sub(/^ */, "", name); sub(/,$/, "", name) }
  /"seconds":/ { seconds = value($0) + 0 }
  /"workspace":/ { space = value($0) + 0 }
  /"shared":/ { shared = value($0) + 0 }
  END {
    flush_row()
    print "| rows | n | exponent | time | scratch, KiB |"
    print "|---|---|---|---|---|"
    for (i = 1; i <= keys; ++i) {
      key = order[i]
      spread = rows[key] * sxx[key] - sx[key] * sx[key]
      if (rows[key] < 2 || spread <= 0) continue
      printf "| %s | %s to %s | %.3f%s | %s to %s | %.0f to %.0f |\n", key, count_text(least[key]), count_text(most[key]), \
        (rows[key] * sxy[key] - sx[key] * sy[key]) / spread, star[key], time_text(first[key]), time_text(last[key]), \
        first_space[key] / 1024, last_space[key] / 1024
    }
  }'
