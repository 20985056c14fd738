# SPDX-License-Identifier: MIT
# What the scripts of this folder share: sourced, not run, from heed's own folder.
#
#   compile COMPILER OPTION...    C++20, warnings on, headers of heed and Eigen; prints the command
#
# EIGEN names the folder of Eigen's headers, EIGEN_AS the option that includes it, STANDARD the
# language, OPTIMISATION the level. A compiler cache is used where there is one.
compile() {
  compiler=$1
  shift
  set -- "$compiler" "-std=${STANDARD:-c++20}" "${OPTIMISATION:--O1}" -Wall -Wextra -I include \
    "${EIGEN_AS:--isystem}" "${EIGEN:-$(eigen_headers)}" "$@"
  echo "\$ $*"
  if command -v ccache >/dev/null; then ccache "$@"; else "$@"; fi
}

# Address and undefined-behaviour sanitizers of clang that compile in a third of the time: calls of the
# checks in place of their text, and of undefined behaviour not what two thirds of the time go to,
# which is what the address sanitizer sees at the access, and alignment, which the one place that makes
# pointers of other types asserts.
sanitizers="-fsanitize=address,undefined -fno-sanitize-recover=all \
-fno-sanitize=alignment,null,object-size,pointer-overflow,function,vptr \
-mllvm -asan-instrumentation-with-call-threshold=0 -Wno-unused-command-line-argument"

# The system's Eigen.
eigen_headers() {
  for folder in /usr/include/eigen3 /usr/local/include/eigen3 /opt/homebrew/include/eigen3; do
    if [ -d "$folder" ]; then
      echo "$folder"
      return
    fi
  done
  pkg-config --variable=includedir eigen3
}
