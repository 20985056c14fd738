#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Compiles every fenced C++ example of README.md and docs/*.md, none of which is run.

  python3 cmake/ci/doc-examples.py FOLDER [COMPILER [OPTION...]]

FOLDER takes the file that is compiled. An example with main is a program; one that begins with a type,
a template or a variable that is inline is taken at namespace scope; every other one is the body of a
function, its includes first. Names that an example does not declare are those of
tests/support/doc_names.hpp, in the namespace of its page. An error names the page and the line.
"""

import pathlib
import re
import subprocess
import sys

root = pathlib.Path(__file__).resolve().parents[2]
outside = re.compile(r"^\s*(struct|class|template|namespace|inline)\b")


def examples(page):
    """The line above it and the text of each example."""
    begin, lines = None, []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("```"):
            if begin is not None:
                yield begin, lines
                begin, lines = None, []
            elif line.startswith("```cpp"):
                begin = number
            else:
                begin, lines = None, []
        elif begin is not None:
            lines.append(line)


def wrapped(page, number, lines):
    scope = f"namespace names::{page.stem.lower()} {{"
    if outside.match("\n".join(lines)):
        return scope + f" namespace example_{number} {{", "}}"
    return scope + f" [[maybe_unused]] void example_{number}() {{", "}}"


def main():
    folder = pathlib.Path(sys.argv[1])
    command = sys.argv[2:] or ["g++"]
    folder.mkdir(parents=True, exist_ok=True)
    parts, includes, programs, count = [], set(), [], 0
    for page in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        name = page.relative_to(root)
        for line, text in examples(page):
            count += 1
            if any(re.match(r"int main\(", t) for t in text):
                programs.append(f'#line {line + 1} "{name}"\n' + "\n".join(text) + "\n")
                continue
            includes.update(t for t in text if t.startswith("#include"))
            text = ["" if t.startswith("#include") else t for t in text]
            head, tail = wrapped(page, count, text)
            parts.append("\n".join([head, f'#line {line + 1} "{name}"', *text, tail, ""]))
    first = "\n".join(['#include "tests/support/doc_names.hpp"', *sorted(includes), "", ""])
    sources = [first + "\n".join(parts), *programs]
    if count == 0:
        raise SystemExit("no example found")
    eigen = subprocess.run(["sh", "-c", ". cmake/ci/smoke.sh; eigen_headers"], cwd=root, check=True,
                           capture_output=True, text=True).stdout.strip()
    for i, source in enumerate(sources):
        file = folder / f"examples_{i}.cpp"
        file.write_text(source)
        subprocess.run([*command, "-std=c++20", "-fsyntax-only", "-I", root / "include", "-I", root,
                        "-isystem", eigen, file], check=True)
    print(f"{count} examples compile")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    try:
        main()
    except subprocess.CalledProcessError as error:
        raise SystemExit("an example does not compile") from error
