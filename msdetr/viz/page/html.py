"""The page as one file that needs nothing else: no network, no kernel, no other file."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from typing import Any

from msdetr.viz.page.modules import joined, source

START = """
const content = JSON.parse(document.getElementById("content").textContent);
globalThis.page = mount(document.getElementById("page"), content);
"""


def page_html(content: dict[str, Any], title: str) -> str:
    """The file. Only its own script runs, and no address but that of an embedded picture is ever asked for: the browser is told so
    (Content-Security-Policy), and what comes from the data is text in a block that is not run."""
    script, style = f"\n{joined()}{START}", f"\n{source('page.css')}"
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{html.escape(title)}</title>
<style>{style}</style>
</head>
<body>
<noscript>This page needs JavaScript. It asks nothing of the network.</noscript>
<div id="page"></div>
<script type="application/json" id="content">{embedded_json(content)}</script>
<script type="module">{script}</script>
</body>
</html>
"""


def embedded_json(content: dict[str, Any]) -> str:
    """JSON that stays inside its script element whatever the names in it are: no character that ends or opens one."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
