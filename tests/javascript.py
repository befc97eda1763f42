"""Runs functions of the page's JavaScript on JSON values: in node where there is one, else in a browser."""

import json
import shutil
import subprocess
from pathlib import Path

from browser import CHROMIUM, Browser

from msdetr.viz.page.modules import joined

NODE = shutil.which("node")
AVAILABLE = NODE is not None or CHROMIUM is not None


def answer(folder: Path, entry: str, function: str, value, browser: bool = False):
    """What ``function``, the text of a JavaScript function that may use all that the module ``entry`` and its imports define,
    returns for a JSON value. browser: in Chromium even where there is node."""
    if NODE and not browser:
        (folder / "value.json").write_text(json.dumps(value))
        script = f'import {{ readFileSync }} from "node:fs";\nconst value = JSON.parse(readFileSync({json.dumps(str(folder / "value.json"))}));\n'
        (folder / "main.mjs").write_text(
            f"{joined(entry)}\n{script}console.log(JSON.stringify(({function})(value)));\n"
        )
        done = subprocess.run([NODE, folder / "main.mjs"], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
    text = json.dumps(value).replace("<", "\\u003c")
    (folder / "main.html").write_text(
        f'<meta charset="utf-8"><script type="application/json" id="value">{text}</script>'
        f"<script type=module>{joined(entry)}\nglobalThis.answer = () => JSON.stringify(({function})"
        '(JSON.parse(document.getElementById("value").textContent)));</script>'
    )
    own = Browser(folder / "profile")
    try:
        own.send("Page.navigate", url=(folder / "main.html").as_uri())
        own.wait_for("!!globalThis.answer")
        return json.loads(own.evaluate("answer()"))
    finally:
        own.close()
