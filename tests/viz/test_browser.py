"""The page as a widget in a real browser: JupyterLab in headless Chromium."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from browser import browser_page, jupyter_lab, needs_browser, open_notebook

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


@pytest.mark.slow
@needs_browser
def test_a_slider_moved_in_jupyterlab_changes_picture_and_words(tmp_path):
    from playwright.sync_api import expect

    pytest.importorskip("jupyterlab")
    pytest.importorskip("anywidget")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SCENE)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "sliders.ipynb")
    with jupyter_lab(tmp_path) as address, browser_page(1300, 1100) as page:
        open_notebook(page, address, "sliders.ipynb")
        page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
        shown = page.locator(".jp-OutputArea .msdetr")
        caption, boxes = shown.locator(".caption"), shown.locator(".boxes .query")
        expect(caption).to_contain_text("2 one-to-one, ", timeout=180_000)
        expect(caption).not_to_contain_text(re.compile(r"\b0 one-to-many"))
        assert shown.locator(".matching input[type=range]").count() == 3  # τ, k, α
        before, looked = boxes.count(), shown.screenshot()
        shown.locator("input[data-name=threshold]").fill("1")  # nothing scores above it
        expect(caption).to_contain_text(re.compile(r"\b0 one-to-many"))
        assert boxes.count() < before and shown.screenshot() != looked
        run = "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute"
        ask = (
            "print('kernel:', page.chosen['threshold'])"  # again and again: what was chosen takes a moment to get there
        )
        told = "(m) => m.content.text && (window.told = (window.told ?? '') + m.content.text)"
        page.wait_for_function(
            f"({run}({{code: {ask!r}}}).onIOPub = {told}, !!window.told?.includes('kernel: 1'))", polling=250
        )
        page.evaluate(f"void {run}({{code: 'page.chosen = {{\\'object\\': 1, \\'k\\': 2}}'}})")
        shown.locator('tr[data-object="1"][aria-current=true]').wait_for()
        expect(caption).to_contain_text(re.compile(r"\b4 one-to-many"))
        if keep := os.environ.get("MSDETR_SCREENSHOTS"):
            page.screenshot(path=Path(keep, "sliders.png"))
