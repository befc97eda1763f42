"""Links of pages and notebooks, written for the repository, turned into links of the site.

A link such as ``../docs/methods.md`` in a notebook works in a checkout and on a code host. On the site, where the notebooks lie
beside the pages, it becomes a link to the page; a link to a file that is no page or picture, such as a benchmark, leads to the
repository. One that leads nowhere stays as it is, and MyST warns about it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

LINK = re.compile(r"(?P<before>\]\()(?P<target>[^()\s#]+)(?P<anchor>#[^()\s]*)?(?P<after>\))")
CODE = re.compile(r"(^ *(`{3,}|~{3,}).*?^ *\2`*$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
ELSEWHERE = re.compile(r"[a-z][a-z+.-]*:", re.IGNORECASE)
PICTURES = (".png", ".jpg", ".gif")  # Sphinx copies them from wherever they are

HOMES = {  # files of the repository that have a page of the site
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "data/README.md": "data-sets.md",
}


def home(path: str) -> str | None:
    """Where a file of the repository is on the site, as a path below docs/; None where it has no page there."""
    if path in HOMES:
        return HOMES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return path if re.fullmatch(r"notebooks/\d\d_\w+\.ipynb", path) else None


def site_links(text: str, source: str, page: str, root: Path, repository: str) -> str:
    """Markdown with its relative links as the site has them.

    source: the file that the text is from, relative to ``root``. page: where the site shows it, relative to docs/.
    repository: the address that files without a page are linked at.
    """

    def relinked(match: re.Match) -> str:
        target = match["target"]
        if ELSEWHERE.match(target):
            return match.group()
        path = os.path.normpath(os.path.join(os.path.dirname(source), target))
        if not (root / path).exists():
            return match.group()
        there = home(path) or (f"../{path}" if path.endswith(PICTURES) else None)
        if there is not None:
            address = os.path.relpath(there, os.path.dirname(page) or ".")
        else:
            address = f"{repository}/{'tree' if (root / path).is_dir() else 'blob'}/main/{path}"
        return f"{match['before']}{address}{match['anchor'] or ''}{match['after']}"

    parts = CODE.split(text)  # every third part is what the outer group of CODE matched, the next its inner group
    for i in range(0, len(parts), 3):
        parts[i] = LINK.sub(relinked, parts[i])
    return "".join(part for i, part in enumerate(parts) if i % 3 != 2)


def _read(app, docname, content):
    path = Path(app.env.doc2path(docname))
    if path.suffix == ".md":
        source = path.relative_to(app.config.repository_root).as_posix()
        root = Path(app.config.repository_root)
        content[0] = site_links(content[0], source, f"{docname}.md", root, app.config.repository_url)


def setup(app):
    app.add_config_value("repository_root", "", "env", str)
    app.add_config_value("repository_url", "", "env", str)
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
