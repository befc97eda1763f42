"""The page: one self-contained file in which a run's matching can be taken apart without Python.

The front end is plain JavaScript modules beside this file; the page and the notebook's widget use the same ones.
"""

from msdetr.viz.page.content import Detail
from msdetr.viz.page.html import page_html
from msdetr.viz.page.views import About, View, films_of, page_content
from msdetr.viz.page.widget import page_widget
from msdetr.viz.page.write import Page, write_page

__all__ = ["About", "Detail", "Page", "View", "films_of", "page_content", "page_html", "page_widget", "write_page"]
