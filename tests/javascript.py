"""Runs functions of the page's JavaScript on JSON values: in node where there is one, else in a browser."""

import json
import shutil
import subprocess
from pathlib import Path

from browser import MISSING, browser_page

from msdetr.viz.page.modules import joined

NODE = shutil.which("node")
AVAILABLE = NODE is not None or MISSING is None


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
    with browser_page() as page:
        page.add_script_tag(content=f"{joined(entry)}\nglobalThis.answer = {function};", type="module")
        page.wait_for_function("!!globalThis.answer")
        return json.loads(page.evaluate("(text) => JSON.stringify(answer(JSON.parse(text)))", json.dumps(value)))
