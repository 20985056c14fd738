#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Builds the documentation's site: README, the pages of docs/, the reference, and every example.

  python3 cmake/site.py FOLDER        FOLDER/site is the site; FOLDER takes the generator, too

The generator is MkDocs with its Material theme, from PyPI. Sources that a page links to become pages
of the site. A link to what is not there fails the build. The search needs a server:

  python3 -m http.server --directory FOLDER/site
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import venv

root = pathlib.Path(__file__).resolve().parent.parent
generator = ["mkdocs==1.6.1", "mkdocs-material==9.8.2"]
link = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
languages = {".hpp": "cpp", ".cpp": "cpp", ".cmake": "cmake", ".txt": "cmake", ".sh": "sh", ".py": "python"}

configuration = """
site_name: heed
site_description: Attention on CPUs, header-only C++20 on Eigen
docs_dir: {pages}
site_dir: {site}
use_directory_urls: false
strict: true
validation: {{nav: {{omitted_files: ignore}}, links: {{not_found: warn, anchors: warn, unrecognized_links: warn, absolute_links: warn}}}}
theme:
  name: material
  font: false
  features: [navigation.sections, navigation.top, search.highlight, content.code.copy]
  palette:
    - {{media: "(prefers-color-scheme: light)", scheme: default, primary: indigo,
        toggle: {{icon: material/weather-night, name: Dark}}}}
    - {{media: "(prefers-color-scheme: dark)", scheme: slate, primary: indigo,
        toggle: {{icon: material/weather-sunny, name: Light}}}}
plugins: [search]
markdown_extensions: [tables, attr_list, pymdownx.superfences, pymdownx.highlight, {{toc: {{permalink: true}}}}]
nav:
{nav}
"""


def target_of(source, href):
    """The file or folder of the repository that a link of `source` names."""
    return (source.parent / href).resolve()


def page_of(path):
    """Where a file of the repository is in the site, from its root."""
    inside = path.relative_to(root)
    if inside == pathlib.Path("README.md"):
        return pathlib.Path("index.md")
    if inside.parts[0] == "docs":
        return inside.relative_to("docs")
    if inside.suffix == ".md":
        return inside
    return pathlib.Path("source") / (str(inside) + ".md")


def up_to(start, goal):
    """A relative link from one page to another."""
    return pathlib.PurePosixPath(*[".."] * (len(start.parts) - 1), *goal.parts).as_posix()


class Site:
    def __init__(self, pages):
        self.pages = pages
        self.done = set()

    def write(self, path):
        """The page of a file, and of the sources it links to."""
        if path in self.done:
            return
        self.done.add(path)
        page = page_of(path)
        target = self.pages / page
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            names = sorted(p for p in path.iterdir() if p.is_file())
            for name in names:
                self.write(name)
            lines = [f"- [{n.name}]({up_to(page, page_of(n))})" for n in names]
            target.write_text("\n".join([f"# {path.relative_to(root)}", ""] + lines) + "\n")
        elif path.suffix == ".md":
            target.write_text(self.rewritten(path, page))
        elif path.suffix in (".svg", ".png"):
            shutil.copy(path, self.pages / path.relative_to(root / "docs"))
        else:
            text = path.read_text()
            language = languages.get(path.suffix, "text")
            target.write_text(f"# {path.relative_to(root)}\n\n````{language}\n{text}````\n")

    def rewritten(self, path, page):
        def follow(found):
            goal = target_of(path, found.group(2))
            if not goal.exists() or not goal.is_relative_to(root):
                return found.group(0)  # the generator says what is wrong
            if goal.suffix in (".svg", ".png"):
                self.write(goal)
                href = up_to(page, goal.relative_to(root / "docs"))
            else:
                self.write(goal)
                href = up_to(page, page_of(goal))
            return found.group(1) + href + (found.group(3) or "") + found.group(4)

        parts = re.split(r"(?ms)(^```.*?^```$)", path.read_text())
        # Code is left as it is: every second part is a block of it.
        return "".join(p if i % 2 else outside_code_spans(p, follow) for i, p in enumerate(parts))


def outside_code_spans(text, follow):
    parts = re.split(r"(`[^`\n]*`)", text)
    if any(link.search(p) for p in parts[::2]):
        return "".join(p if i % 2 else link.sub(follow, p) for i, p in enumerate(parts))
    # Links whose words are code, as [`name`](page): the link is outside of the span.
    return link.sub(follow, text)


def title_of(path):
    return re.search(r"^# (.*)", path.read_text(), re.M).group(1).strip("`")


def navigation(guides, reference, examples):
    lines = ["  - Start: index.md", "  - Guides:"]
    lines += [f'      - "{title_of(p)}": {page_of(p)}' for p in guides]
    lines += ["  - Reference:"]
    lines += [f'      - "{title_of(p)}": {page_of(p)}' for p in reference]
    lines += ["  - Examples:"]
    lines += [f'      - "{p.name}": {page_of(p)}' for p in examples]
    return "\n".join(lines + ["  - Changes: CHANGELOG.md"])


def main():
    work = pathlib.Path(sys.argv[1]).resolve()
    work.mkdir(parents=True, exist_ok=True)
    pages = work / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    tools = work / "tools" / "bin"
    if not (tools / "mkdocs").exists():
        venv.create(work / "tools", with_pip=True)
        subprocess.run([tools / "python", "-m", "pip", "install", "-q",
                        "--disable-pip-version-check", *generator], check=True)

    guides = sorted((root / "docs").glob("*.md"))
    reference = sorted((root / "docs" / "reference").glob("*.md"), key=lambda p: (p.name != "README.md", p))
    examples = sorted((root / "examples").glob("*.[ch]pp"))
    site = Site(pages)
    for path in [root / "README.md", root / "CHANGELOG.md", *guides, *reference, *examples]:
        site.write(path)
    settings = work / "mkdocs.yml"
    settings.write_text(configuration.format(pages=pages, site=work / "site",
                                             nav=navigation(guides, reference, examples)))
    built = subprocess.run([tools / "mkdocs", "build", "--strict", "-f", settings],
                           env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    if built.returncode != 0:
        raise SystemExit("the site was not built")
    print(f"{work / 'site' / 'index.html'}: {len(list((work / 'site').rglob('*.html')))} pages")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main()
