"""The site: pages of this folder, the course's notebooks as they are committed, and the API from the docstrings.

``make docs`` builds it into build/site. Nothing is fetched: formulas are drawn by a MathJax that a Python package brings, and
the theme has its own fonts and scripts.
"""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import msdetr

_project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
project = "msdetr"
author = "The msdetr contributors"
copyright = f"{author}; Apache-2.0"
version = release = msdetr.__version__
repository_url = _project["urls"]["Repository"]
repository_root = str(ROOT)

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "site_docstrings",
    "site_pages",
    "site_reference",
    "site_links",
]
root_doc = "index"
exclude_patterns = ["_static"]

# Markdown
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # the outputs that are committed are shown
nb_merge_streams = True
nb_render_markdown_format = "gfm"

# docstrings
autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 100
suppress_warnings = ["ref.python"]  # a class that is documented under several names: any of them will do

# pages
html_theme = "furo"
html_title = f"msdetr {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "source_repository": repository_url,
    "source_branch": "main",
    "source_directory": "docs/",
    "top_of_page_buttons": [],
    "footer_icons": [],
}
pygments_style, pygments_dark_style = "friendly", "github-dark"
copybutton_prompt_text, copybutton_prompt_is_regexp = r">>> |\.\.\. |\$ ", True
mathjax_path = "mathjax/tex-chtml.js"  # put there by site_pages
