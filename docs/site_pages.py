"""Pages made from files of the repository: the notebooks, sections of the README, and MathJax beside them.

    ```{repository-file} README.md
    :section: Speed
    ```

shows the part of a Markdown file below a heading, or all of it but the title. A pattern, ``benchmarks/results/*/results.md``, stands for
all files that fit, each below its title.
"""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

from docutils.parsers.rst import directives
from site_links import site_links
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective
from sphinx.util.fileutil import copy_asset

BADGE = re.compile(r"(?P<next>(?<=\))\n)?\[!\[(?P<text>[^\]]*)\]\(https?://[^)]*\)\]\((?P<target>[^)]*)\)")
HEADING = re.compile(r"^(#+) +(.*)$")
FENCE = re.compile(r" *(```|~~~)")


def section(text: str, title: str | None) -> str:
    """The lines below the heading ``title``, up to the next heading of its level; without a title all below the first heading,
    or all where there is none.

    Headings inside are moved up, so that the first level is ``##``. Raises ExtensionError where there is no such heading.
    """
    found, level, fenced = None, 0, False
    for line in text.splitlines():
        fenced ^= bool(FENCE.match(line))
        heading = None if fenced else HEADING.match(line)
        if found is not None and heading and len(heading[1]) <= level:
            break
        if found is not None:
            found.append(f"#{line[level:]}" if heading else line)
        elif heading and title in (None, heading[2]):
            found, level = [], len(heading[1])
    if found is None and title is None:
        return text
    if found is None:
        raise ExtensionError(f"there is no heading {title!r}")
    return "\n".join(found)


class RepositoryFile(SphinxDirective):
    """A Markdown file of the repository, or one of its sections, as part of a page."""

    required_arguments = 1
    option_spec = {"section": directives.unchanged}  # noqa: RUF012 (docutils' way)

    def run(self):
        root, pattern = Path(self.config.repository_root), self.arguments[0]
        if "*" not in pattern:
            return self.parse_text_to_nodes(self.part(root, pattern), allow_section_headings=True)
        parts = []
        for path in sorted(root.glob(pattern)):
            title = re.search(r"^# +(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            parts += [
                f"## {title[1] if title else path.stem}",
                "",
                self.part(root, path.relative_to(root).as_posix()),
                "",
            ]
        return self.parse_text_to_nodes("\n".join(parts), allow_section_headings=True)

    def part(self, root: Path, name: str) -> str:
        """What is shown of a file, its links those of the site."""
        self.env.note_dependency(str(root / name))
        text = section((root / name).read_text(encoding="utf-8"), self.options.get("section"))
        page = Path(self.env.doc2path(self.env.docname)).relative_to(self.env.srcdir).as_posix()
        return site_links(text, name, page, root, self.config.repository_url)


def _plain_badge(match: re.Match) -> str:
    """A badge, whose picture is elsewhere, as a link in words."""
    return f"{' · ' if match['next'] else ''}[{match['text']}]({match['target']})"


def copy_notebooks(app, config):
    """The course into the site's sources, changed files only: with links of the site, badges as plain links."""
    root = Path(config.repository_root)
    target = Path(app.srcdir) / "notebooks"
    target.mkdir(exist_ok=True)
    wanted = {path.name: path for path in (root / "notebooks").glob("[0-9][0-9]_*.ipynb")}
    for name, path in wanted.items():
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                text = BADGE.sub(_plain_badge, "".join(cell["source"]))
                cell["source"] = site_links(text, f"notebooks/{name}", f"notebooks/{name}", root, config.repository_url)
        text, copied = json.dumps(notebook), target / name
        if not copied.exists() or copied.read_text(encoding="utf-8") != text:
            copied.write_text(text, encoding="utf-8")
    for path in target.glob("*.ipynb"):
        if path.name not in wanted:
            path.unlink()


def copy_mathjax(app, exception):
    """MathJax's one script for TeX formulas, and its fonts."""
    if exception is None and app.builder.format == "html":
        package = importlib.import_module("sphinx-mathjax-offline")
        source, target = Path(package.__file__).parent / "static" / "mathjax", Path(app.outdir) / "_static" / "mathjax"
        copy_asset(source / "tex-chtml.js", target)
        copy_asset(source / "output/chtml/fonts/woff-v2", target / "output/chtml/fonts/woff-v2")


def setup(app):
    app.add_directive("repository-file", RepositoryFile)
    app.connect("config-inited", copy_notebooks)
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
