#!/bin/sh
# SPDX-License-Identifier: MIT
# Two targets in one program: right in both link orders, on this processor and on an old one, and no
# symbol of heed is in both objects.
#
#   sh cmake/ci/mixed-targets.sh FOLDER      FOLDER: for the objects and programs
set -eu
cd "$(dirname "$0")/../.."
work=${1:?a folder to build in}/mixed-targets
mkdir -p "$work"
sh cmake/get-deps.sh qemu-user
. cmake/ci/smoke.sh

case $(uname -m) in
  x86_64 | amd64) ;;
  *) echo "mixed targets: for x86-64 alone: not run here" && exit 0 ;;
esac
part=tests/portability/target_part.cpp
compile g++ -march=x86-64 -D HEED_PART=narrow -c "$part" -o "$work/narrow.o"
compile g++ -march=x86-64-v3 -D HEED_PART=wide -c "$part" -o "$work/wide.o"
compile g++ -c tests/portability/target_main.cpp -o "$work/main.o"
g++ "$work/main.o" "$work/narrow.o" "$work/wide.o" -o "$work/narrow_first" -pthread
g++ "$work/main.o" "$work/wide.o" "$work/narrow.o" -o "$work/wide_first" -pthread

symbols() { nm -C --defined-only "$1" | sed -n 's/^[0-9a-f]* [VWu] //p' | grep 'heed::' | sort; }
symbols "$work/narrow.o" >"$work/narrow.txt"
symbols "$work/wide.o" >"$work/wide.txt"
test -s "$work/narrow.txt" && test -s "$work/wide.txt"
shared=$(comm -12 "$work/narrow.txt" "$work/wide.txt")
echo "weak symbols of heed: $(wc -l <"$work/narrow.txt") narrow, $(wc -l <"$work/wide.txt") wide"
if [ -n "$shared" ]; then
  printf 'both objects define:\n%s\n' "$shared"
  exit 1
fi
for order in narrow_first wide_first; do
  if grep -qw avx2 /proc/cpuinfo; then "$work/$order"; else echo "no AVX2 here: wide is not called"; fi
done
# The processor of 2006: what the narrow part calls must be its own.
qemu-x86_64 -cpu Conroe "$work/narrow_first" narrow
