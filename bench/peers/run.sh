#!/bin/sh
# SPDX-License-Identifier: MIT
# Measures heed beside other programs that compute the same, on this machine.
#
#   sh bench/peers/run.sh FOLDER [PEER...]      PEER: torch onnxruntime; both unless said
#
# FOLDER takes the peers, from PyPI in an environment of their own: PyTorch is there with what it
# needs for GPUs, 5 GB, of which nothing is used here. heed_bench and heed_embed are those of
# build/native: cmake --preset native && cmake --build build/native --target heed_bench heed_embed
#
# HEED_BENCH, HEED_EMBED name other programs. The tables go to standard output.
set -eu
cd "$(dirname "$0")/../.."
folder=${1:?a folder for the peers}
shift
[ $# -gt 0 ] || set -- torch onnxruntime
python=$folder/peers/bin/python
[ -x "$python" ] || python3 -m venv "$folder/peers"
needed=numpy
for peer; do
  case $peer in
    torch) needed="$needed torch" ;;
    onnxruntime) needed="$needed onnxruntime onnx" ;;
    *) echo "no peer $peer: torch, onnxruntime" >&2; exit 2 ;;
  esac
done
# shellcheck disable=SC2086 # one word a package
"$python" -m pip install --quiet --disable-pip-version-check $needed
sh cmake/get-model.sh

sed -n 's/^model name[^:]*: */Processor: /p' /proc/cpuinfo 2>/dev/null | head -n 1
"$python" bench/peers/attention.py --heed "${HEED_BENCH:-build/native/bench/heed_bench}" "$@"
"$python" bench/peers/sentences.py --heed "${HEED_EMBED:-build/native/examples/heed_embed}" "$@"
