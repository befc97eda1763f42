"""The page as a widget in a real browser: JupyterLab in headless Chromium."""

import io
import os
import shutil

import nbformat
import numpy as np
import pytest
from browser import CHROMIUM, Browser, jupyter_lab, open_notebook
from PIL import Image

SCENE = """
import numpy as np
from msdetr.analysis.specimen import Specimen
from msdetr.viz.explorer import Explorer
rng = np.random.default_rng(0)
objects = np.array([[0.3, 0.3, 0.3, 0.3], [0.7, 0.6, 0.3, 0.4]])
boxes = np.clip(np.repeat(objects, 5, 0) + rng.normal(0, 0.04, (10, 4)), 0.05, 0.95)
specimen = Specimen.from_arrays(
    boxes, rng.uniform(0.1, 0.9, (10, 2)), objects, [0, 1], class_names=["<i>cat</i>", "$dog"], name="toy")
explorer = Explorer.of_specimens([specimen])
page = explorer.show()
page
"""
CAPTION = "document.querySelector('.jp-OutputArea .msdetr .caption')?.innerText"
BOXES = "document.querySelectorAll('.jp-OutputArea .msdetr .boxes .query').length"
SLIDERS = "document.querySelectorAll('.jp-OutputArea .msdetr .matching input[type=range]').length"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_a_slider_moved_in_jupyterlab_changes_picture_and_words(tmp_path):
    pytest.importorskip("jupyterlab")
    pytest.importorskip("anywidget")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SCENE)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "sliders.ipynb")
    with jupyter_lab(tmp_path) as address:
        browser = Browser(tmp_path / "profile")
        try:
            open_notebook(browser, address, "sliders.ipynb")
            browser.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
            words = browser.wait_for(CAPTION, 180)
            assert "2 one-to-one, " in words and " 0 one-to-many" not in words
            assert browser.evaluate(SLIDERS) == 3  # τ, k, α
            before = browser.evaluate(BOXES)
            browser.evaluate("document.querySelector('.jp-OutputArea .msdetr input[data-name=threshold]').focus()")
            browser.press("ArrowRight", times=60)  # τ from 0.40 to 1.00: nothing scores above it
            browser.wait_for(f"{CAPTION}.includes(' 0 one-to-many')", 60)
            assert browser.evaluate(BOXES) < before
            run = "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute"
            ask = "print('kernel:', page.chosen['threshold'])"  # again and again: what was chosen takes a moment to get there
            told = "(m) => m.content.text && (window.told = (window.told ?? '') + m.content.text)"
            browser.wait_for(f"({run}({{code: {ask!r}}}).onIOPub = {told}, !!window.told?.includes('kernel: 1'))", 60)
            browser.evaluate(f"void {run}({{code: 'page.chosen = {{\\'object\\': 1, \\'k\\': 2}}'}})")
            browser.wait_for("document.querySelector('.msdetr tr[data-object=\"1\"][aria-selected=true]') !== null", 30)
            browser.wait_for(f"{CAPTION}.includes(' 4 one-to-many')", 30)
        finally:
            path = tmp_path / "sliders.png"
            browser.screenshot(path)
            browser.close()
            if keep := os.environ.get("MSDETR_SCREENSHOTS"):
                os.makedirs(keep, exist_ok=True)
                shutil.copy(path, keep)
    shown = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))
    assert shown.std() > 10, "the page is not blank"
