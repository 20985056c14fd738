#!/bin/sh
# SPDX-License-Identifier: MIT
# Builds and runs tests/portability/smoke.cpp for other compilers, libraries, processors, systems.
#
#   sh cmake/ci/portability.sh FOLDER [NAME...]     NAME of the list at the end; all unless said
#
# FOLDER takes what is built, a folder a name, and Eigen 5. Needs Debian or one of its kin, and
# installs what a name needs. Seconds of each are printed at the end.
set -eu
cd "$(dirname "$0")/../.."
work=${1:?a folder to build in}
shift
mkdir -p "$work"
work=$(cd "$work" && pwd)
. cmake/ci/smoke.sh

# smoke COMPILER OPTION...: the program $out, as many files at a time as there are processors, the
# longest first. Where it matters what a compiler takes, not what it makes of it, without optimisation.
smoke() {
  printf '%s\n' smoke_attention smoke_linear smoke_sparse smoke |
    EIGEN=${EIGEN:-} STANDARD=${STANDARD:-} OPTIMISATION=${OPTIMISATION:-} xargs -P "$(nproc)" -I FILE sh -c '
      . cmake/ci/smoke.sh
      out=$1
      shift
      compile "$@" -c tests/portability/FILE.cpp -o "$out.FILE.o"
    ' sh "$out" "$@"
  compiler=$1
  shift
  # Libraries last: -latomic is taken for what stands before it.
  "$compiler" "$out".*.o "$@" -o "$out" -pthread ${LIBRARIES:-}
}

eigen_5() {
  folder=$work/eigen-5-headers
  if [ ! -d "$folder/Eigen" ]; then
    # No release of Eigen 5 is in Debian; the source archive of a package of PyPI carries 5.0.1.
    sh cmake/get-deps.sh python3-pip python3-venv >&2
    mkdir -p "$work/download"
    python3 -m pip download -q --no-deps --no-binary ml_dtypes --dest "$work/download" \
      ml_dtypes==0.6.0 >&2
    rm -rf "$folder" "$work/download/source"
    mkdir "$work/download/source"
    tar xzf "$work"/download/ml_dtypes-*.tar.gz -C "$work/download/source" --strip-components=1
    mv "$work/download/source/third_party/eigen" "$folder"
  fi
  echo "$folder"
}

native=-march=native
run() {
  case $1 in
    eigen-5)
      folder=$(eigen_5)
      EIGEN=$folder OPTIMISATION=-O0 smoke g++ $native
      "$out"
      # And through CMake: heed built beside it, installed, found again.
      cmake -S "$folder" -B "$out.eigen" -G Ninja -D BUILD_TESTING=OFF -D EIGEN_BUILD_TESTING=OFF \
        -D EIGEN_BUILD_BLAS=OFF -D EIGEN_BUILD_LAPACK=OFF -D EIGEN_BUILD_DOC=OFF \
        -D EIGEN_BUILD_DEMOS=OFF -D CMAKE_EXPORT_NO_PACKAGE_REGISTRY=ON \
        -D CMAKE_EXPORT_PACKAGE_REGISTRY=OFF -D CMAKE_INSTALL_PREFIX="$out.prefix" >/dev/null
      cmake --install "$out.eigen" >/dev/null
      cmake -S . -B "$out.heed" -G Ninja -D CMAKE_PREFIX_PATH="$out.prefix" -D HEED_TESTS=OFF \
        -D HEED_BENCH=OFF -D HEED_EXAMPLES=OFF -D HEED_DEMO=OFF \
        -D CMAKE_INSTALL_PREFIX="$out.prefix" >/dev/null
      cmake --install "$out.heed" >/dev/null
      cmake -S examples/consumer -B "$out.consumer" -G Ninja -D CMAKE_PREFIX_PATH="$out.prefix" \
        >/dev/null
      grep "^Eigen3_DIR:.*=$out.prefix/" "$out.consumer/CMakeCache.txt"
      # What CMake before 3.23 and Meson read.
      grep 'INTERFACE_INCLUDE_DIRECTORIES "${_IMPORT_PREFIX}/include"' \
        "$out.prefix/share/cmake/heed/heedTargets.cmake"
      ;;
    clang)
      smoke clang++ $native -O2
      "$out"
      ;;
    sanitizers)
      # shellcheck disable=SC2086 # one word an option
      smoke clang++ $native $sanitizers
      "$out"
      ;;
    g++-11)
      sh cmake/get-deps.sh g++-11
      OPTIMISATION=-O0 smoke g++-11 $native
      "$out"
      ;;
    clang-libc++)
      # The one standard library here that has std::mdspan.
      sh cmake/get-deps.sh clang-19 libc++-19-dev libc++abi-19-dev
      STANDARD=c++23 OPTIMISATION=-O0 smoke clang++-19 $native -stdlib=libc++
      "$out" | tee "$out.txt"
      grep -q '^std::mdspan' "$out.txt"
      ;;
    no-exceptions)
      OPTIMISATION=-O0 smoke g++ $native -fno-exceptions -fno-rtti
      "$out"
      ;;
    no-packets)
      smoke g++ $native -D EIGEN_DONT_VECTORIZE
      "$out"
      # The same by another word; only that it compiles.
      compile g++ $native -D EIGEN_MAX_ALIGN_BYTES=0 -fsyntax-only tests/portability/smoke_sparse.cpp
      ;;
    no-extensions)
      # The way of compilers that lack g++'s vectors and attributes, by one that has them.
      OPTIMISATION=-O0 smoke g++ $native -D HEED_NO_EXTENSIONS
      "$out"
      ;;
    bits-32)
      # Of one version: the package without one removes every cross compiler.
      sh cmake/get-deps.sh "g++-$(g++ -dumpversion | cut -d. -f1)-multilib"
      # The package without a version would link <asm>, too.
      smoke g++ -m32 -msse2 -mfpmath=sse -idirafter /usr/include/x86_64-linux-gnu
      "$out"
      ;;
    aarch64)
      sh cmake/get-deps.sh g++-aarch64-linux-gnu qemu-user
      smoke aarch64-linux-gnu-g++ -static
      qemu-aarch64 "$out"
      ;;
    aarch64-bf16)
      sh cmake/get-deps.sh g++-aarch64-linux-gnu qemu-user
      smoke aarch64-linux-gnu-g++ -static -march=armv8.6-a+bf16+fp16
      qemu-aarch64 -cpu max "$out"
      ;;
    riscv64)
      sh cmake/get-deps.sh g++-riscv64-linux-gnu qemu-user
      LIBRARIES=-latomic smoke riscv64-linux-gnu-g++ -static
      qemu-riscv64 "$out"
      ;;
    windows)
      sh cmake/get-deps.sh g++-mingw-w64-x86-64-posix wine64
      smoke x86_64-w64-mingw32-g++-posix -static -march=x86-64
      wine=$(command -v wine64 || command -v wine || echo /usr/lib/wine/wine64)
      WINEDEBUG=-all WINEPREFIX=$work/wine "$wine" "$out.exe"
      ;;
    warnings)
      # A user's own code, who takes warnings for errors and Eigen for code of his own.
      for march in native x86-64-v4; do
        STANDARD=c++20 OPTIMISATION=-O3 EIGEN_AS=-I compile g++ -march=$march -Wpedantic -Wshadow \
          -Werror -c tests/portability/user.cpp -o "$out.$march.o"
      done
      # An older language: a sentence in place of thousands of lines.
      if STANDARD=c++17 compile g++ -fsyntax-only tests/portability/user.cpp 2>"$out.txt"; then
        echo "C++17 compiles, and must not"
        return 1
      fi
      grep -q 'heed is written in C++20' "$out.txt"
      test "$(grep -c 'error:' "$out.txt")" -le 2
      ;;
    macros)
      # What <windows.h> defines before anybody else.
      compile g++ -D 'min(a,b)=(((a)<(b))?(a):(b))' -D 'max(a,b)=(((a)>(b))?(a):(b))' -D near= \
        -D far= -D small=char -fsyntax-only tests/portability/macros.cpp
      ;;
    *)
      echo "portability: nothing is named $1" >&2
      return 1
      ;;
  esac
}

[ $# -gt 0 ] || set -- macros warnings clang sanitizers no-exceptions no-packets no-extensions eigen-5 \
  g++-11 clang-libc++ bits-32 aarch64 aarch64-bf16 riscv64 windows
times=
for name; do
  echo "---- $name"
  start=$(date +%s)
  out=$work/$name
  run "$name"
  times="$times$(printf '%5d s  %s' $(($(date +%s) - start)) "$name")
"
done
printf '%s' "$times"
