#!/bin/sh
# SPDX-License-Identifier: MIT
# Installs what building heed's own programs needs and this machine lacks. Does nothing where all is there.
#
#   sh cmake/get-deps.sh [PACKAGE...]     PACKAGE: further packages of the system, by its own names
set -eu

have() { command -v "$1" >/dev/null 2>&1; }

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif have sudo; then
    sudo "$@"
  else
    echo "get-deps: run as root, or install: $*" >&2
    exit 1
  fi
}

if have apt-get; then
  set -- g++ cmake ninja-build git ca-certificates libeigen3-dev libgtest-dev librapidcheck-dev \
    libbenchmark-dev libcli11-dev nlohmann-json3-dev \
    libutf8proc-dev gnuplot-nox "$@"
  missing=
  for package in "$@"; do
    # A package that only another one provides (gnuplot-qt, say) counts by its own name alone.
    case $(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true) in
      "install ok installed") ;;
      *) missing="$missing $package" ;;
    esac
  done
  # Programs may also come from elsewhere than the package manager.
  for pair in g++:g++ cmake:cmake ninja:ninja-build git:git gnuplot:gnuplot-nox; do
    if have "${pair%%:*}"; then
      missing=$(printf ' %s ' "$missing" | sed "s/ ${pair#*:} / /")
    fi
  done
  # shellcheck disable=SC2086 # one word a package
  set -- $missing
  if [ $# -gt 0 ]; then
    echo "get-deps: installing $*"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
  fi
elif have dnf; then
  set -- gcc-c++ cmake ninja-build git eigen3-devel gtest-devel google-benchmark-devel cli11-devel \
    json-devel utf8proc-devel gnuplot "$@" # rapidcheck is fetched by CMake
  rpm -q "$@" >/dev/null 2>&1 || as_root dnf install -y -q "$@"
elif have pacman; then
  set -- gcc cmake ninja git eigen gtest rapidcheck benchmark cli11 nlohmann-json libutf8proc gnuplot "$@"
  pacman -Q "$@" >/dev/null 2>&1 || as_root pacman -S --noconfirm --needed "$@"
elif have brew; then
  set -- cmake ninja eigen googletest rapidcheck google-benchmark cli11 nlohmann-json utf8proc gnuplot "$@"
  brew list "$@" >/dev/null 2>&1 || brew install -q "$@"
else
  echo "get-deps: no package manager known here; needed: a C++20 compiler, CMake 3.25, Ninja, Eigen 3.4" >&2
  have cmake && have ninja
fi
