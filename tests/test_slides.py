"""The course as slides: what is on them, and that nothing is fetched."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from browser import browser_page, complaints_of, needs_browser

from msdetr import course
from msdetr.cli import main
from msdetr.errors import ConfigError, NotebookError

nbformat = pytest.importorskip("nbformat", reason="no nbformat: pip install msdetr[slides]")
pytest.importorskip("nbconvert", reason="no nbconvert: pip install msdetr[slides]")
pytest.importorskip("sphinx_revealjs", reason="no sphinx-revealjs: pip install msdetr[slides]")

from msdetr.course import slides

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def book(*cells):
    """A notebook of (text, settings): markdown where it begins with # or *, else code."""
    made = nbformat.v4.new_notebook()
    for number, (text, metadata, *outputs) in enumerate(cells):
        new = nbformat.v4.new_markdown_cell if text[:1] in "#*<" else nbformat.v4.new_code_cell
        made.cells.append(
            new(text, metadata=metadata, id=f"cell-{number}", **({"outputs": outputs} if outputs else {}))
        )
    return made


def picture():
    return nbformat.v4.new_output("display_data", data={"image/png": PIXEL})


def said(text):
    return nbformat.v4.new_output("stream", text=text)


def test_a_cell_stands_where_it_says_or_where_it_fits():
    cells = book(
        ("# 01 · Title", {}),
        ("import torch\nfrom math import pi", {}),
        ("## Section", {}),
        ("value = 3", {}),
        ("print(3)", {}, said("3")),
        ("figure", {}, picture()),
        ("* few words after the figure", {}),
        ("*\n" * 40, {}),
        ("os.chdir(project_root())", {}, said("setup")),
        ("assert value == 3\nprint('ok')", {}, said("ok")),
        ("<details><summary>Hint</summary></details>", {}),
        ("## Exercises", {"tags": ["exercise"], "slideshow": {"slide_type": "skip"}}),
        ("* wanted here", {"slideshow": {"slide_type": "slide"}}),
        ("print(4)", {"slideshow": {"slide_type": "skip"}}, said("4")),
    ).cells
    wanted = "slide skip slide skip - - - subslide skip skip skip skip slide skip"
    assert slides.slide_types(cells) == wanted.split()


def test_what_fills_a_slide_is_below_its_section_and_few_words_are_not_alone():
    lines, figure = "print(1)\n" * 20, nbformat.v4.new_output("display_data", data={"image/png": PIXEL})
    cells = book(
        ("## Section", {}), (lines, {}, said("1\n" * 12)), ("*" + " words" * 200, {}), ("draw()", {}, figure)
    ).cells
    assert slides.slide_types(cells) == ["slide", "-", "subslide", "subslide"]
    hidden = ("import os", {})
    leading = ("## Section", {}), (lines, {}, said("1\n")), ("*And so:*:", {}), hidden, (lines, {}, said("1\n"))
    assert slides.slide_types(book(*leading).cells) == ["slide", "-", "subslide", "skip", "-"]
    titled = ("## Section", {}), (lines, {}, said("1\n")), ("### And so\n\nit goes on", {}), (lines, {}, said("1\n"))
    assert slides.slide_types(book(*titled).cells) == ["slide", "-", "subslide", "-"]
    between = ("draw()", {}, figure), ("* the next figure", {}), ("draw()", {}, figure)
    assert slides.slide_types(book(("## Section", {}), *between).cells) == ["slide", "-", "subslide", "-"]


def test_tables_stand_without_code_and_links_lead_to_slides(tmp_path):
    path = tmp_path / "mine.ipynb"
    table = nbformat.v4.new_output("execute_result", data={"text/markdown": "| a |\n|---|\n| 7.5 |"}, execution_count=1)
    nbformat.write(
        book(
            ("# Mine\n\nNext: [02](02_architecture_variants.ipynb)", {}),
            ("make_a_table()", {}, table),
            ("## Exercises\n\n### 1.1\n\nleft out with its cell", {"slideshow": {"slide_type": "skip"}}),
        ),
        path,
    )
    page = slides.slides(path)
    assert "make_a_table" not in page and "7.5" in page and "left out with its cell" not in page
    assert 'href="02_architecture_variants.html"' in page and ".ipynb" not in page


def test_a_figure_stands_without_the_code_that_drew_it_and_text_with_it(tmp_path):
    path = tmp_path / "mine.ipynb"
    nbformat.write(
        book(
            ("# Mine\n\n[![Open](https://a.b/c.svg)](https://a.b)", {}),
            ("draw_a_figure()", {}, picture()),
            ("print('words')", {}, said("words")),
        ),
        path,
    )
    page = slides.slides(path)
    assert "draw_a_figure" not in page and PIXEL[:20] in page and "words" in page and "a.b" not in page


def test_the_command_makes_pages_that_fetch_nothing(tmp_path, capsys, monkeypatch):
    """From another folder: pages refer to files beside them, all of which are there."""
    names = ("02_architecture_variants", "10_exercises")
    for name in names:
        copied = tmp_path / "course" / "notebooks" / f"{name}.ipynb"
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(course.root() / "notebooks" / copied.name, copied)
    for module in (course, slides):
        monkeypatch.setattr(module, "root", lambda: tmp_path / "course")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["msdetr", "course", "mine", "--slides"])
    assert not main()
    assert "slides of 2 notebooks; open mine/slides/index.html" in capsys.readouterr().out
    folder = tmp_path / "mine" / "slides"
    assert not [style for style in folder.rglob("*.css") if "url(http" in style.read_text()]
    for page in (folder / f"{name}.html" for name in names):
        text = page.read_text()
        loaded = re.findall(r"<(?:script|link|img)\b[^>]*?\b(?:src|href)=\"(?!data:)([^\"]+)\"", text)
        assert loaded and all((folder / address).is_file() for address in loaded), loaded
        assert "@import url(http" not in text and "unpkg" not in text and "cdnjs" not in text
        assert "exercises import check\n" not in text
        assert page.name in (folder / "index.html").read_text()


@pytest.mark.slow
@needs_browser
def test_slides_in_a_browser_without_network(tmp_path):
    slides.build(tmp_path / "slides")
    with browser_page(1200, 800) as page:
        complaints = complaints_of(page, tmp_path)
        page.goto(f"file://{tmp_path}/slides/04_mixed_supervision.html")
        page.wait_for_function("typeof Reveal !== 'undefined' && Reveal.isReady()")
        page.wait_for_function("document.querySelectorAll('mjx-container').length >= 5")
        assert page.evaluate("Reveal.getTotalSlides()") > 10
        page.keyboard.press("ArrowRight")
        assert page.evaluate("Reveal.getIndices().h") == 1
        assert complaints == []


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(slides.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"sphinx_revealjs: pip install 'msdetr\[slides\]'"):
            slides.build(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("no notebook")
    with pytest.raises(NotebookError, match="file: this is no notebook"):
        slides.slides(Path(tmp_path / "file"))
    with pytest.raises(ConfigError, match="cannot be written"):
        slides.build(tmp_path / "file")
