"""The page in a notebook: JupyterLab, Notebook, VS Code and Colab, through anywidget."""

from __future__ import annotations

import functools
from typing import Any

from msdetr.errors import InputError
from msdetr.viz.page.html import embedded_json
from msdetr.viz.page.modules import joined, source


def page_widget(content: dict[str, Any]):
    """The page as a widget (needs anywidget).

    Its ``chosen`` is what is on the screen, by name: image (its place in the content), layer, step, object, query, mode, and the
    settings of matching that were changed; assigning to it changes the screen. Raises InputError where anywidget is missing.
    """
    return _kind()(content=embedded_json(content))


@functools.cache
def _kind():
    try:
        import anywidget
        import traitlets
    except ImportError as error:
        raise InputError("the page in a notebook needs anywidget: pip install anywidget") from error

    class PageWidget(anywidget.AnyWidget):
        _esm = joined()
        _css = source("page.css")
        content = traitlets.Unicode("").tag(sync=True)
        chosen = traitlets.Dict({}).tag(sync=True)

    return PageWidget
