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
