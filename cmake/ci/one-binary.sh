#!/bin/sh
# SPDX-License-Identifier: MIT
# examples/targets as a user would build it: one program, its kernels compiled for several targets.
# Each target's object shows one symbol, its table; every target that runs here gives the right
# numbers, and an old processor gets the baseline's.
#
#   sh cmake/ci/one-binary.sh FOLDER PREFIX      FOLDER: to build in, PREFIX: where heed is installed
set -eu
cd "$(dirname "$0")/../.."
work=${1:?a folder to build in}/one-binary
prefix=${2:?the prefix of an installed heed}
case $(uname -m) in
  x86_64 | amd64) ;;
  *) echo "one binary: targets of x86-64 alone: not run here" && exit 0 ;;
esac
sh cmake/get-deps.sh qemu-user
for compiler in g++ clang++; do
  cmake -S examples/targets -B "$work/$compiler" -G Ninja -D CMAKE_PREFIX_PATH="$prefix" \
    -D CMAKE_CXX_COMPILER=$compiler -D CMAKE_CXX_FLAGS_RELEASE="-O1 -DNDEBUG" >/dev/null
  cmake --build "$work/$compiler"
  program=$work/$compiler/targets
  for target in baseline avx2 avx512; do
    object=$work/$compiler/targets_app_kernels_$target.o
    symbols=$(nm --defined-only --extern-only "$object" | awk '{print $3}')
    if [ "$symbols" != "heed_table_app_kernels_$target" ]; then
      printf '%s shows other symbols than its table:\n%s\n' "$object" "$symbols"
      exit 1
    fi
    case $target in
      baseline) flags=sse2 ;;
      avx2) flags=avx2 ;;
      avx512) flags=avx512vl ;;
    esac
    if grep -qw $flags /proc/cpuinfo; then
      HEED_TARGET=$target "$program"
    else
      # A target that does not run here is refused by name.
      if HEED_TARGET=$target "$program" 2>"$work/refused.txt"; then exit 1; fi
      grep "$target (not on this processor)" "$work/refused.txt"
    fi
  done
  # The processor of 2006 chooses by itself.
  qemu-x86_64 -cpu Conroe "$program" | tee "$work/old.txt"
  grep -q '^target baseline$' "$work/old.txt"
done
