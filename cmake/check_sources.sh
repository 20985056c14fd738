#!/bin/sh
# SPDX-License-Identifier: MIT
# Checks the rules of the house that no compiler checks; prints every breach and fails if there is one.
#
#   sh cmake/check_sources.sh [ROOT]
#
# - A header of include/heed/ includes only lower floors or its own folder.
# - A folder includes no detail header, and names nothing of detail:: that it does not define itself.
# - Instructions of a processor appear in simd/ alone.
# - Headers are at most 350 lines, begin with the SPDX line and a sentence, and have #pragma once.
# - No header names anything near, far or small: headers of Windows make macros of them.
set -eu
cd "${1:-.}"

breaches=$(
  find include -name '*.hpp' | LC_ALL=C sort | while read -r file; do
    awk -v file="$file" '
      function say(text) { printf "%s:%d: %s\n", file, FNR, text }
      # The longest folder on record that holds the path: "sparse/lsh" before "sparse".
      function folder_of(path,   name) {
        name = path
        while (sub(/\/[^\/]*$/, "", name)) if (name in floor) return name
        name = path
        sub(/[\/.].*/, "", name)
        return name
      }
      BEGIN {
        count = split("dispatch 0 core 0 tensor 1 simd 1 parallel 2 score 2 rotary 2 cost 2 " \
                      "kernel 3 kernel/tiled 4 kernel/backward 5 kernel/chunk 5 kernel/split_kv 5 kernel/top_k 6 " \
                      "cache 7 cache/quantised 8 cache/paged 9 cache/file 10 api 8 attention 9 attention/backward 10 linear 9 linear/kernelised 10 linear/kernelised/backward 12 linear/matrix_state 10 linear/matrix_state/backward 11 " \
                      "linear/scan 10 linear/scan/backward 11 linear/convolution 11 sparse 10 sparse/select 10 " \
                      "sparse/pattern 11 sparse/gather 12 sparse/lsh 13 sparse/routing 13 sparse/nsa 13 " \
                      "draw 14", word, " ")
        for (i = 1; i < count; i += 2) floor[word[i]] = word[i + 1]
        path = file
        sub(/^include\/heed\//, "", path)
        front = path !~ /\//                # heed/linear.hpp: the front header of its folder
        home = folder_of(path)
        if (home != "heed" && !(home in floor)) say("folder " home " is on no floor")
      }
      FNR == 1 && $0 != "// SPDX-License-Identifier: MIT" { say("first line is not the SPDX line") }
      FNR == 2 && $0 !~ /^\/\/ [^ ]/ { say("second line does not say what the header is for") }
      /^#pragma once$/ { once = 1 }
      /^ *# *include *[<"]heed[\/.]/ {
        target = $0
        sub(/^ *# *include *[<"]heed\//, "", target)
        sub(/[">].*/, "", target)
        target = folder_of(target)
        if (home == "heed") {
          # The umbrella includes every folder, and nothing that needs another library.
          if (target == "draw") say("heed.hpp includes an optional header")
        } else if (!(target in floor)) {
          say("includes " target ", which is on no floor")
        } else if (front) {
          if (target != home && index(target, home "/") != 1 && target != "kernel") say("a front header includes another folder: " target)
        } else if (target != home && floor[target] >= floor[home]) {
          say(home " (floor " floor[home] ") includes " target " (floor " floor[target] ")")
        }
        if ($0 ~ /\/detail\//) say("includes a detail header")
      }
      /^ *# *include *[<"](immintrin|x86intrin|xmmintrin|emmintrin|smmintrin|nmmintrin|arm_neon|arm_sve)/ ||
      /(^|[^A-Za-z0-9_])(_mm(256|512)?_[a-z]|__m(128|256|512)|__builtin_ia32_|v(ld|st)1q_)/ {
        if (home != "simd" && path != "core/eigen.hpp") say("an instruction of one processor outside simd/")
      }
      {
        code = $0
        sub(/\/\/.*/, "", code)
        gsub(/"[^"]*"/, "", code)
        if (code ~ /(^|[^A-Za-z0-9_])(near|far|small)([^A-Za-z0-9_]|$)/) say("a name that is a macro on Windows")
      }
      END {
        if (!once) say("no #pragma once")
        if (FNR > 350) say("more than 350 lines: is it one idea?")
      }
    ' "$file"
  done
  # Every folder's detail:: is one namespace to the compiler: here, what a folder takes out of it
  # must be a word of that folder's own headers.
  find include -name '*.hpp' | LC_ALL=C sort | xargs awk '
    FNR == 1 {
      home = FILENAME
      sub(/^include\/heed\//, "", home)
      sub(/[\/.].*/, "", home)
    }
    {
      line = $0
      sub(/\/\/.*/, "", line)
      while (match(line, /(^|[^A-Za-z0-9_])detail::[A-Za-z_][A-Za-z0-9_]*/)) {
        name = substr(line, RSTART, RLENGTH)
        sub(/.*detail::/, "", name)
        if (!((home, name) in used)) used[home, name] = FILENAME ":" FNR
        line = substr(line, 1, RSTART - 1) " " substr(line, RSTART + RLENGTH)
      }
      count = split(line, words, /[^A-Za-z0-9_]+/)
      for (i = 1; i <= count; ++i) own[home, words[i]] = 1
    }
    END {
      for (key in used) {
        if (key in own) continue
        split(key, part, SUBSEP)
        print used[key] ": takes detail::" part[2] " of another folder"
      }
    }
  '
  # Other sources: the SPDX line.
  find tests bench examples cmake .ci CMakeLists.txt -type f \
    \( -name '*.cpp' -o -name '*.hpp' -o -name '*.sh' -o -name '*.cmake' -o -name CMakeLists.txt \
    -o -path '.ci/*' \) 2>/dev/null | LC_ALL=C sort | while read -r file; do
    head -n 2 "$file" | grep -q 'SPDX-License-Identifier: MIT$' ||
      printf '%s:1: no SPDX line at the top\n' "$file"
  done
)

if [ -n "$breaches" ]; then
  printf '%s\n' "$breaches"
  exit 1
fi
echo "house rules: $(find include -name '*.hpp' | wc -l) headers keep them"
