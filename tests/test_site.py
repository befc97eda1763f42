"""The site under docs/: complete, its links lead somewhere, and it needs no network, neither to be built nor to be read."""

import ast
import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
import zlib
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import browser_page, needs_browser

import msdetr

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "data/README.md")] + PAGES
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
DIRECTIVE = re.compile(r"^```\{(\S+)\} ?(\S*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)


def directives(page, name):
    """(argument, content) of a page's directives of a kind."""
    return [(argument, content) for kind, argument, content in DIRECTIVE.findall(page.read_text()) if kind == name]


def without_code(text):
    return re.sub(r"^ *(`{3,}).*?^ *\1|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)


# ---------------------------------------------------------------- the sources


def test_every_page_and_notebook_is_in_the_table_of_contents():
    entries = set()
    for page in PAGES:
        for _, content in directives(page, "toctree"):
            for entry in content.split("\n\n")[-1].split():
                entries.add((page.parent / entry).relative_to(DOCS).as_posix())
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in PAGES}
    assert entries - {"notebooks/*"} == pages - {"index"}
    assert "notebooks/*" in entries and NOTEBOOKS


def test_every_public_module_is_in_the_api_reference():
    """``{api} MODULE`` shows a module and all inside it that have an ``__all__``, name by name: checked below, on the site."""
    shown = [argument for page in PAGES for argument, _ in directives(page, "api")]
    parts = {module for module in shown if module != "msdetr"}
    for module, _ in public_names():
        assert module in shown or any(module.startswith(f"{part}.") for part in parts), (
            f"{module} is on no page of docs/api"
        )


def public_names():
    """(module, names) of every ``__all__`` of the package."""
    for path in sorted((ROOT / "msdetr").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
                yield name, list(msdetr.__all__) if name == "msdetr" else ast.literal_eval(node.value)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_sections_taken_from_other_files_are_there(page):
    for name, options in directives(page, "repository-file"):
        wanted = re.search(r":section: (.*)", options)
        assert wanted is None or wanted[1] in HEADING.findall((ROOT / name).read_text())


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^()\s]+)\)", without_code(path.read_text())):
        if urlsplit(target).scheme:
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / unquote(name)).resolve() if name else path
        assert linked.exists(), f"{target} leads nowhere"
        if anchor:
            titles = [
                re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
                for title in HEADING.findall(linked.read_text())
            ]
            assert anchor in titles, f"{target}: there is no such heading"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_in_colab_and_binder(path, tmp_path):
    """By the address in pyproject.toml: where the repository moves, the notebooks' links move with it."""
    cells = json.loads(path.read_text())["cells"]
    head, place = "".join(cells[0]["source"]), REPOSITORY.removeprefix("https://github.com/")
    missing = "the title's badges and the first code cell are those of the other notebooks, with this one's name"
    assert f"(https://colab.research.google.com/github/{place}/blob/main/notebooks/{path.name})" in head, missing
    assert f"(https://mybinder.org/v2/gh/{place}/main?labpath=notebooks%2F{path.name})" in head, missing
    install = next(cell for cell in cells if cell["cell_type"] == "code")
    assert install["metadata"].get("tags") == ["install"] and f"git+{REPOSITORY}" in "".join(install["source"]), missing
    assert f'repository-code: "{REPOSITORY}"' in (ROOT / "CITATION.cff").read_text()
    (tmp_path / "install.py").write_text("".join(install["source"]))
    runpy.run_path(
        str(tmp_path / "install.py")
    )  # nothing happens where the package is there: get_ipython is no name here


def test_the_first_method_of_the_tutorial_works_as_written(tmp_path, capsys):
    from msdetr.config import unregister_section

    text = (DOCS / "first-method.md").read_text()
    pieces = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "toy.py").write_text("\n".join(pieces))
    try:
        runpy.run_path(str(tmp_path / "toy.py"))
    finally:
        unregister_section("toy")
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    [shown] = re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert [line[0] for line in printed] == [line.split()[0] for line in shown.splitlines()]
    assert printed[-1] == ["pairs", "in", "each", "layer:", "6"]


def test_docstrings_become_lists_code_and_parameters():
    pytest.importorskip("sphinx", reason="no Sphinx: pip install msdetr[docs]")
    sys.path.insert(0, str(DOCS))
    try:
        from site_docstrings import restructured
    finally:
        sys.path.remove(str(DOCS))
    docstring = """Counts |A|.

k: how many.   low, high: of the range,
    both included. Raises InputError for none.

    count(3)

    count(4)

one    a thing
two    another,
       longer thing"""
    assert restructured(docstring.splitlines(), {"k", "low", "high"}) == [
        r"Counts \|A\|.",
        "",
        ":param k: how many.",
        ":param low, high: of the range, both included.",
        "",
        "Raises InputError for none.",
        "",
        "::",
        "",
        "    count(3)",
        "",
        "    count(4)",
        "",
        "- one a thing",
        "- two another, longer thing",
        "",
    ]


# ---------------------------------------------------------------- the built site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site that MSDETR_SITE names, or a fresh one; a warning is an error."""
    for name in ("sphinx", "myst_nb", "furo", "sphinx_copybutton", "sphinx_design", "sphinx-mathjax-offline"):
        pytest.importorskip(name, reason=f"no {name}: pip install msdetr[docs]")
    if "MSDETR_SITE" in os.environ:
        return ROOT / os.environ["MSDETR_SITE"]
    built = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(built / "trees")]
    done = subprocess.run([*command, str(DOCS), str(built / "html")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return built / "html"


class Page(HTMLParser):
    """What a page links to, what it loads, and the places in it that can be linked to."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], {""}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag in ("script", "img", "iframe", "source") and values.get("src"):
            self.loads.append(values["src"])
        if tag == "link" and values.get("rel") in ("stylesheet", "preload", "icon") and values.get("href"):
            self.loads.append(values["href"])


@cache
def page(path):
    return Page(path.read_text())


@pytest.mark.slow
def test_every_link_and_anchor_of_the_site_exists_and_nothing_is_loaded_from_elsewhere(site):
    broken = []
    for path in site.rglob("*.html"):
        for target in page(path).links + page(path).loads:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                broken += (
                    [f"{path.name} loads {target}"] if target in page(path).loads and parts.scheme != "data" else []
                )
                continue
            linked = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            checked = (
                parts.fragment and linked.suffix == ".html" and "_modules" not in linked.parts
            )  # source code as a page
            there = linked.is_file() and (not checked or unquote(parts.fragment) in page(linked).anchors)
            broken += [] if there else [f"{path.name}: {target}"]
    assert broken == []


@pytest.mark.slow
def test_every_public_name_is_in_the_built_api_reference(site):
    _, _, listed = (site / "objects.inv").read_bytes().partition(b"zlib.\n")
    known = {
        line.split()[0] for line in zlib.decompress(listed).decode().splitlines() if line.split()[1].startswith("py:")
    }
    wanted = {f"{module}.{name}" for module, names in public_names() for name in names}
    assert wanted - known == set()


@pytest.mark.slow
@needs_browser
def test_formulas_are_drawn_the_search_finds_and_nothing_is_wider_than_a_phone(site):
    with browser_page() as page:
        page.goto(f"file://{site}/notebooks/01_deformable_attention.html")
        page.wait_for_function("document.querySelectorAll('mjx-container svg, mjx-container mjx-math').length > 3")
        page.goto(f"file://{site}/search.html?q=hungarian")
        page.wait_for_function("document.querySelectorAll('#search-results li a').length > 3")
        page.set_viewport_size({"width": 390, "height": 800})
        for name in ("index", "results", "settings", "api/matching", *(f"notebooks/{path.stem}" for path in NOTEBOOKS)):
            page.goto(f"file://{site}/{name}.html")
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, f"{name} is wider than a phone"
