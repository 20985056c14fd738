#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes all of heed as one header: what a front header includes, in its order, each header once.

  python3 cmake/single_header.py heed.hpp [FRONT...]      FRONT: heed/heed.hpp unless said

Eigen's headers are still needed. Include paths need not know heed's folder. Do not mix it with
heed's own headers in one program.
"""

import pathlib
import re
import sys

include = pathlib.Path(__file__).resolve().parent.parent / "include"
own = re.compile(r'^\s*#\s*include\s*[<"](heed/[^">]+)[">]')
dropped = re.compile(r"^\s*#\s*pragma\s+once\b|^// SPDX-")


def headers_below(name, seen):
    """The lines of a header behind those of the headers it includes that have not come yet.

    All of them come first, so that none ends up under a condition of this header: headers of heed
    may be included in any order.
    """
    own_lines = []
    lines = []
    for line in (include / name).read_text().splitlines():
        found = own.match(line)
        if found and found.group(1) not in seen:
            seen.add(found.group(1))
            lines += headers_below(found.group(1), seen)
        if not found and not dropped.match(line):
            own_lines.append(line)
    return lines + ["// ---- " + name + " " + "-" * max(0, 90 - len(name))] + own_lines


def main():
    target = pathlib.Path(sys.argv[1])
    fronts = sys.argv[2:] or ["heed/heed.hpp"]
    license_text = (include.parent / "LICENSE").read_text().strip().splitlines()
    lines = ["// SPDX-License-Identifier: MIT",
             "// heed in one header, written by cmake/single_header.py from " + ", ".join(fronts) + ".",
             "//"]
    lines += ["// " + line if line else "//" for line in license_text]
    lines += ["#pragma once", ""]
    seen = set()
    for front in fronts:
        if front not in seen:
            seen.add(front)
            lines += headers_below(front, seen)
    target.write_text("\n".join(lines) + "\n")
    print(f"{target}: {len(seen)} headers, {len(lines)} lines")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main()
