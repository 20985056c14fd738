#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Compiles every header alone, with warnings as errors.

    python3 cmake/ci/headers.py FOLDER     FOLDER takes the precompiled header

A header that reaches core/eigen.hpp through its own includes is compiled after a precompiled
core/eigen.hpp, which takes most of the time and must come before anything of heed anyway: every header
on the way there is in the list too. The others have nothing before them.
"""

import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
INCLUDE = ROOT / "include"
EIGEN = "heed/core/eigen.hpp"
# heed's own warnings, as CMakeLists.txt has them.
WARNINGS = re.search(r"add_compile_options\((-Wall[^)]*)\)", (ROOT / "CMakeLists.txt").read_text())[1].split()
FLAGS = ["-std=c++20", *WARNINGS, "-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Werror", "-Winvalid-pch",
         "-I", str(INCLUDE)]


def eigen_folder():
    command = ["sh", "-c", ". cmake/ci/smoke.sh; eigen_headers"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def reaching_eigen(headers):
    """Names of the headers from which core/eigen.hpp is reached."""
    includes = {name: re.findall(r'^#include ["<](heed/[^">]+)[">]', (INCLUDE / name).read_text(), re.M)
                for name in headers}
    reach = {EIGEN}
    while True:
        more = {name for name in headers if name not in reach and reach.intersection(includes[name])}
        if not more:
            return reach
        reach |= more


def main():
    work = pathlib.Path(sys.argv[1])
    work.mkdir(parents=True, exist_ok=True)
    compiler = [os.environ.get("CXX", "g++"), *FLAGS, "-isystem", eigen_folder()]
    headers = sorted(str(path.relative_to(INCLUDE)) for path in INCLUDE.rglob("*.hpp"))
    first = work / "first.hpp"
    first.write_text(f"#include <{EIGEN}>\n")
    subprocess.run([*compiler, "-x", "c++-header", first, "-o", f"{first}.gch"], check=True)
    reach = reaching_eigen(headers) - {EIGEN}

    def compile_alone(name):
        before = ["-include", str(first)] if name in reach else []
        return subprocess.run([*compiler, *before, "-x", "c++", "-fsyntax-only", "-"], text=True,
                              input=f"#include <{name}>\n", capture_output=True)

    failed = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, result in zip(headers, pool.map(compile_alone, headers)):
            if result.returncode != 0:
                failed += 1
                print(f"---- {name} does not compile alone\n{result.stderr}", file=sys.stderr)
    print(f"{len(headers)} headers, {len(reach)} of them after {EIGEN}: {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
