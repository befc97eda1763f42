"""Slides from the course's notebooks: nbconvert's reveal slides, with everything they need beside them, so that a lecture hall
without a network will do.

A cell says by its metadata (``slideshow.slide_type``, as in JupyterLab's right sidebar) where it stands; ``slide_type`` decides for a
cell that says nothing. reveal.js and MathJax are those of two Python packages, see the extra ``slides``.
"""

from __future__ import annotations

import base64
import html
import importlib.util
import io
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import ConfigError, NotebookError
from . import root

HEIGHT = 27  # lines of text that one slide takes
WIDTH = 105  # characters of a line
FEW = 5  # lines: too few for a slide of their own, so that its neighbor is rather drawn a little smaller
LINE = 28  # pixels
PICTURE = 900, 620  # pixels: a figure is at least as wide if it is no higher
LEFT_OUT = {"install", "parameters", "injected-parameters"}
BADGE = re.compile(r"\[!\[[^\]]*\]\(http[^)]*\)\]\([^)]*\)\s*")  # a picture from elsewhere that leads elsewhere

FETCHED = re.compile(r"@import url\(https?:[^)]*\);\n?")

TEMPLATE = """
{%- extends 'index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}
<script>MathJax = {tex: {inlineMath: [['$', '$'], ['\\\\(', '\\\\)']], processEscapes: true}, options: {enableMenu: false}}</script>
<script src="assets/mathjax/tex-chtml.js"></script>
{%- endblock -%}
{%- block html_head_css -%}
<style>
:root { --jp-cell-prompt-width: 0px; --jp-code-font-size: 17px; }
.jp-InputPrompt, .jp-OutputPrompt { display: none; }
.reveal { --r-main-font: "Source Sans 3", "Segoe UI", "Helvetica Neue", Arial, "Liberation Sans", sans-serif; --r-heading-font: var(--r-main-font); }
.reveal .slides { text-align: left; }
.reveal .slide-number { right: auto; left: 8px; }  /* the arrows are on the right */
.reveal .slides section { height: 100%; overflow-y: auto; padding: 0; }
.reveal h1 { font-size: 1.6em; text-transform: none; } .reveal h2 { font-size: 1.35em; text-transform: none; }
.reveal h3 { font-size: 1.1em; text-transform: none; }
.reveal .jp-RenderedImage img { display: block; margin: 0 auto; min-width: 900px; max-width: 100%; max-height: 620px; object-fit: contain; }
.reveal .jp-RenderedHTMLCommon table { margin-left: 0; font-size: 0.9em; }
.reveal .jp-RenderedHTMLCommon pre { width: 100%; font-size: 17px; line-height: 1.35; box-shadow: none; }
.reveal .jp-OutputArea-output pre { word-break: normal; overflow-wrap: anywhere; }
.reveal details summary { display: none; }
</style>
{%- endblock -%}
{%- block footer_js -%}
<script src="assets/reveal/dist/reveal.js"></script>
<script src="assets/reveal/plugin/notes/notes.js"></script>
<script>
function fit(event) {  // a slide that is too long becomes smaller, down to a little over half
  const slide = Reveal.getCurrentSlide();
  slide.style.zoom = 1;
  const content = [...slide.children].reduce((height, child) => height + child.offsetHeight, 0);
  slide.style.zoom = Math.max(0.55, Math.min(1, 740 / content));
}
Reveal.initialize({controls: true, progress: true, hash: true, slideNumber: 'c/t', center: false, transition: 'none',
                   width: 1180, height: 760, margin: 0.03, plugins: [RevealNotes]}).then(() => {
  Reveal.on('slidechanged', fit);
  MathJax.startup.promise.then(fit);
});
</script>
{%- endblock -%}
"""


def build(target: str | Path) -> list[Path]:
    """Slides of every notebook of the course as HTML files in a folder, made where it is missing, beside ``index.html``, which
    lists them, and ``assets``, which they need. The files of the notebooks, in order.

    Raises ConfigError, before anything is written, where a package is missing, or the folder cannot be written.
    """
    target = Path(target)
    sources = {
        "reveal": _folder("sphinx_revealjs", "_static/revealjs"),
        "mathjax": _folder("sphinx-mathjax-offline", "static/mathjax"),
    }
    notebooks = sorted((root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    try:
        _copy_assets(sources, target / "assets")
        made = [_write(target / f"{path.stem}.html", slides(path)) for path in notebooks]
        _write(target / "index.html", _index(notebooks))
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written ({error.strerror}); give another folder") from error
    return made


def slides(notebook: str | Path) -> str:
    """The slides of one notebook, as HTML that looks for ``assets`` beside it, and for the slides of other notebooks.

    A figure or a table stands without the code that drew it. Raises ConfigError where nbconvert is missing, and NotebookError for a file
    that is no notebook.
    """
    if importlib.util.find_spec("nbconvert") is None:
        raise ConfigError("slides need nbconvert: pip install 'msdetr[slides]'")
    import nbformat
    from jinja2 import DictLoader
    from nbconvert import SlidesExporter

    try:
        book = nbformat.read(Path(notebook), as_version=4)
    except (ValueError, nbformat.ValidationError) as error:
        raise NotebookError(f"{notebook}: this is no notebook ({error})") from error
    book.cells = list(_split(book.cells))
    for cell, kind in zip(book.cells, slide_types(book.cells), strict=True):
        cell.metadata["slideshow"] = {"slide_type": kind}
        if _speaks_for_itself(cell):
            cell.metadata["transient"] = {"remove_source": True}
    exporter = SlidesExporter(
        extra_loaders=[DictLoader({"slides.html.j2": TEMPLATE})],
        template_file="slides.html.j2",
        reveal_url_prefix="assets/reveal",
        log=_quiet(),
    )
    return exporter.from_notebook_node(book, resources={"metadata": {"name": Path(notebook).stem}})[0]


def slide_types(cells: list[Any]) -> list[str]:
    """Of each cell: "slide", "subslide", "-" (goes on), or "skip"; what its metadata says, else what fits.

    A heading begins a slide. What does not fit, and long text after a figure, goes below the slide of its section; text that
    has a heading, ends with a colon, or stands between two figures, goes with what follows. Setup, checks and hints are left out.
    """
    return list(_types(cells))


def _types(cells: list[Any]) -> Iterator[str]:
    filled, after_picture = 0.0, False
    for number, cell in enumerate(cells):
        kind = cell.metadata.get("slideshow", {}).get("slide_type") or None
        height, text = _height(cell), cell.cell_type == "markdown"
        if _is_skipped(cell):
            kind = "skip"
        if kind is None:
            heading = text and cell.source.lstrip().startswith(("# ", "## "))
            follows = next((other for other in cells[number + 1 :] if not _is_skipped(other)), None)
            leads_on = text and (
                cell.source.startswith("###") or cell.source.endswith(":") or (after_picture and _has_picture(follows))
            )
            few = not leads_on and (filled <= FEW or height <= FEW)
            limit = HEIGHT * (1.3 if few else 1.1 if _has_picture(follows if leads_on else cell) else 1)
            apart = filled + height + (_height(follows) if leads_on else 0) > limit
            apart = apart or (after_picture and text and height > FEW)
            kind = "slide" if heading else "subslide" if apart and filled else "-"
        if kind != "skip":
            filled = height if kind in ("slide", "subslide") else filled + height
            after_picture = _has_picture(cell)
        yield kind


def _split(cells: list[Any]) -> Iterator[Any]:
    """Text with a heading or a check in the middle as two cells, the second of which begins there; without badges, and progress.
    Links to other notebooks lead to their slides."""
    for cell in cells:
        cell.source = BADGE.sub("", cell.source)
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"(?<=\]\()(\d\d_\w+)\.ipynb(?=[)#])", r"\1.html", cell.source)
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        parts = re.split(r"\n(?=##+ |\*\*Check)", cell.source) if cell.cell_type == "markdown" else [cell.source]
        for number, part in enumerate(parts):
            whole = not number or _is_skipped(cell)  # a cell that is left out is left out with all its parts
            kept = {name: value for name, value in cell.metadata.items() if name != "slideshow" or whole}
            yield (
                cell
                if len(parts) == 1
                else type(cell)(cell | {"id": f"{cell.id}-{number}", "source": part.strip(), "metadata": kept})
            )


def _is_skipped(cell: Any) -> bool:
    kind = cell.metadata.get("slideshow", {}).get("slide_type")
    return kind == "skip" or (not kind and _is_left_out(cell))


def _is_left_out(cell: Any) -> bool:
    if LEFT_OUT & set(cell.metadata.get("tags", [])) or not cell.source.strip():
        return True
    if cell.cell_type != "code":
        hint = cell.source.startswith("<details>")
        return hint or cell.source.startswith("**Check") and len(cell.source) < 3 * WIDTH
    lines = [line for line in cell.source.splitlines() if line.strip()]
    setup = (
        all(line.startswith(("import ", "from ", "%", " ", ")")) for line in lines) or "project_root())" in cell.source
    )
    said = _said(cell)
    check = "assert " in cell.source and (not said or said.startswith("ok"))
    return not _speaks_for_itself(cell) and (setup or check or (not cell.outputs and "def " not in cell.source))


def _has_picture(cell: Any | None) -> bool:
    return cell is not None and any(
        name.startswith("image/") for output in cell.get("outputs", []) for name in output.get("data", {})
    )


def _speaks_for_itself(cell: Any) -> bool:
    """Whether it shows a picture or a table, so that nobody misses its code."""
    return _has_picture(cell) or any("text/markdown" in output.get("data", {}) for output in cell.get("outputs", []))


def _said(cell: Any) -> str:
    return "".join(output.get("text", "") for output in cell.get("outputs", []))


def _height(cell: Any | None) -> float:
    """Lines that a cell takes on a slide, roughly."""
    if cell is None:
        return 0.0
    texts = [] if _speaks_for_itself(cell) else [cell.source]
    lines = 0.0
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        pictures = [value for name, value in data.items() if name in ("image/png", "image/jpeg")]
        lines += sum(map(_picture_height, pictures[:1]))
        words = output.get("text", "") or data.get("text/markdown", "") or data.get("text/plain", "")
        texts += [] if pictures else [words]
    return lines + sum(
        0.6 + sum(1 + len(line) // WIDTH for line in text.splitlines() if line.strip()) for text in texts if text
    )


def _picture_height(encoded: str) -> float:
    width, height = Image.open(io.BytesIO(base64.b64decode(encoded))).size
    return min(height * max(1, PICTURE[0] / width), PICTURE[1]) / LINE


def _quiet() -> logging.Logger:
    """nbconvert would say of every figure that it has no alternative text."""
    logger = logging.getLogger(__name__)
    logger.setLevel(logging.ERROR)
    return logger


def _folder(package: str, path: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(f"slides need the package {package}: pip install 'msdetr[slides]'")
    return Path(spec.origin).parent / path


def _copy_assets(sources: dict[str, Path], target: Path) -> None:
    for name, files in {
        "reveal": ("dist", "plugin/notes"),
        "mathjax": ("tex-chtml.js", "output/chtml/fonts/woff-v2"),
    }.items():
        for file in files:
            source, copied = sources[name] / file, target / name / file
            copied.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(
                    source, copied, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.map", "*.eot", "*.ttf")
                )
            else:
                shutil.copyfile(source, copied)
    for style in target.rglob("*.css"):  # themes of reveal.js ask the network for fonts
        style.write_text(FETCHED.sub("", style.read_text(encoding="utf-8")), encoding="utf-8")


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _index(notebooks: list[Path]) -> str:
    import nbformat

    titles = [nbformat.read(path, as_version=4).cells[0].source.splitlines()[0].lstrip("# ") for path in notebooks]
    items = "\n".join(
        f'<li><a href="{p.stem}.html">{html.escape(t)}</a></li>' for p, t in zip(notebooks, titles, strict=True)
    )
    style = (
        "body { font: 20px/1.6 sans-serif; margin: 3em auto; max-width: 40em; } ul { list-style: none; padding: 0; }"
    )
    keys = (
        "Arrow keys turn pages, Esc shows all of them, S opens the speaker's view; ?print-pdf after an address prints."
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>MS-DETR: the course as slides</title>'
        f"<style>{style}</style></head>\n<body><h1>MS-DETR: the course as slides</h1>\n<ul>\n{items}\n</ul>\n<p>{keys}</p></body></html>\n"
    )
