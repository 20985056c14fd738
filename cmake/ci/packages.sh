#!/bin/sh
# SPDX-License-Identifier: MIT
# Builds heed's packages as their users would, and a program with each: Conan, Meson, a Debian
# package, FetchContent, the single header.
#
#   sh cmake/ci/packages.sh FOLDER [NAME...]     NAME: conan meson deb fetch single; all unless said
#
# FOLDER takes what is built. Conan and Meson come from PyPI into a folder of its own. The vcpkg
# port, the Bazel module and the Spack recipe need programs that are in neither PyPI nor Debian.
set -eu
cd "$(dirname "$0")/../.."
work=${1:?a folder to build in}
shift
mkdir -p "$work"
work=$(cd "$work" && pwd)
heed=$PWD
. cmake/ci/smoke.sh
version=$(sed -n 's/^#define HEED_VERSION_[A-Z]* \([0-9]*\)$/\1/p' include/heed/core/config.hpp |
  paste -s -d .)

# tool NAME: installs a program of PyPI once; it is then $tools/bin/NAME.
tools=$work/tools
tool() {
  if [ ! -x "$tools/bin/$1" ]; then
    sh cmake/get-deps.sh python3-venv
    [ -x "$tools/bin/python" ] || python3 -m venv "$tools"
    "$tools/bin/python" -m pip install -q --disable-pip-version-check "$1==$2"
  fi
}

# Every file that says which version it packages says the one of config.hpp.
versions() {
  for file in vcpkg/ports/heed/vcpkg.json meson/packagefiles/heed/meson.build bazel/MODULE.bazel \
    spack/packages/heed/package.py; do
    grep -q "['\"]$version['\"]" "packaging/$file" || {
      echo "packaging/$file does not name version $version" >&2
      exit 1
    }
  done
  grep -q "^revision = v$version$" packaging/meson/heed.wrap
}

conan() {
  tool conan 2.34.0
  export CONAN_HOME="$work/conan"
  [ -f "$CONAN_HOME/profiles/default" ] || "$tools/bin/conan" profile detect
  # Eigen is the system's here: its Conan package is on a server that not every machine reaches.
  "$tools/bin/conan" create packaging/conan -o "heed/*:system_eigen=True" -s compiler.cppstd=20 -s build_type=Debug \
    --build=missing --no-remote \
    -c tools.cmake.cmake_layout:test_folder="$work/conan-test" \
    -c tools.cmake.cmaketoolchain:user_presets=""
}

meson() {
  tool meson 1.12.1
  rm -rf "$work/meson"
  mkdir -p "$work/meson/subprojects/heed"
  cp -r include "$work/meson/subprojects/heed"
  # What a wrap does with the sources it fetched: lays its build file over them.
  cp packaging/meson/packagefiles/heed/meson.build "$work/meson/subprojects/heed"
  cp examples/consumer/main.cpp "$work/meson"
  cat >"$work/meson/meson.build" <<'EOF'
project('consumer', 'cpp', default_options: ['cpp_std=c++20', 'buildtype=plain'])
heed_dep = dependency('heed', fallback: ['heed', 'heed_dep'])
test('consumer', executable('consumer', 'main.cpp', dependencies: heed_dep))
EOF
  "$tools/bin/meson" setup "$work/meson/build" "$work/meson"
  "$tools/bin/meson" test -C "$work/meson/build"
}

deb() {
  cmake -S . -B "$work/deb" -G Ninja -D HEED_TESTS=OFF -D HEED_BENCH=OFF -D HEED_EXAMPLES=OFF \
    -D HEED_DEMO=OFF
  cmake --build "$work/deb"
  rm -rf "$work/deb"/*.deb "$work/root"
  (cd "$work/deb" && cpack -G DEB)
  package=$(echo "$work/deb/libheed-dev_${version}"*_all.deb)
  dpkg-deb --info "$package" | grep -E '^ (Package|Version|Architecture|Depends):'
  # Unpacked beside the system and not installed into it.
  dpkg-deb --extract "$package" "$work/root"
  test -f "$work/root/usr/include/heed/heed.hpp"
  cmake -S examples/consumer -B "$work/deb-consumer" -G Ninja \
    -D CMAKE_PREFIX_PATH="$work/root/usr"
  cmake --build "$work/deb-consumer"
  "$work/deb-consumer/consumer"
}

fetch() {
  mkdir -p "$work/fetch"
  cat >"$work/fetch/CMakeLists.txt" <<EOF
cmake_minimum_required(VERSION 3.25)
project(consumer LANGUAGES CXX)
include(FetchContent)
FetchContent_Declare(heed URL $work/heed.tar)
FetchContent_MakeAvailable(heed)
add_executable(consumer $heed/examples/consumer/main.cpp)
target_link_libraries(consumer PRIVATE heed::heed)
EOF
  git archive --format=tar --prefix=heed/ -o "$work/heed.tar" HEAD
  cmake -S "$work/fetch" -B "$work/fetch/build" -G Ninja
  cmake --build "$work/fetch/build"
  "$work/fetch/build/consumer"
}

single() {
  rm -rf "$work/single"
  mkdir -p "$work/single/heed"
  python3 cmake/single_header.py "$work/single/heed.hpp"
  # The smoke program of all families names headers of heed: here each is the one header.
  for front in include/heed/*.hpp; do
    echo '#include "../heed.hpp"' >"$work/single/heed/${front##*/}"
  done
  for part in smoke_attention smoke_sparse smoke_linear smoke; do
    ${CXX:-g++} -std=c++20 -O1 -Wall -Wextra -I "$work/single" -isystem "$(eigen_headers)" \
      -c "tests/portability/$part.cpp" -o "$work/single/$part.o"
  done
  ${CXX:-g++} "$work"/single/*.o -o "$work/single/smoke" -pthread
  "$work/single/smoke"
}

versions
[ $# -gt 0 ] || set -- conan meson deb fetch single
for name; do
  started=$(date +%s)
  echo "---- $name"
  "$name"
  seconds="${seconds:-}$(printf '%5d s  %s' $(($(date +%s) - started)) "$name")
"
done
printf '%s' "$seconds"
