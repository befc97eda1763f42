"""A headless Chromium driven over its debugging protocol, and a JupyterLab for it to open."""

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One page. ``evaluate`` runs JavaScript in it and returns its value; ``events`` are what the browser reported meanwhile."""

    def __init__(self, folder: Path, width: int = 1300, height: int = 1100):
        import websocket

        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
                   "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip
        self.process = subprocess.Popen(
            [CHROMIUM, *options, "--remote-debugging-port=0", "--remote-allow-origins=*",
             f"--user-data-dir={folder}", f"--window-size={width},{height}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        port = _wait(lambda: (folder / "DevToolsActivePort").read_text().splitlines()[0], 90, "Chromium to start")
        pages = json.loads(urllib.request.urlopen(f"http://127.0.0.1:{port}/json").read())
        self.socket = websocket.create_connection(
            next(p for p in pages if p["type"] == "page")["webSocketDebuggerUrl"], timeout=60
        )
        self.numbers, self.events = itertools.count(1), []
        self.send("Emulation.setFocusEmulationEnabled", enabled=True)  # JupyterLab's commands go to what has the focus

    def send(self, method: str, **parameters):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self.events.append(answer)

    def evaluate(self, script: str):
        result = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, script: str, seconds: float = 60):
        """The value of a script as soon as it is true."""
        return _wait(lambda: self.evaluate(script), seconds, script)

    def press(self, key: str, times: int = 1):
        """A key by its name: "ArrowRight", "Escape", or the letter that it writes."""
        code = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Escape": 27, "Enter": 13}.get(
            key, 0
        )
        written = {"text": key} if len(key) == 1 else {}
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **written)

    def click(self, x: float, y: float):
        """A click of the mouse at a point of the window."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def watch(self):
        """From now on ``events`` has errors, messages of the console, and requests."""
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.send(f"{domain}.enable")

    def complaints(self) -> list[str]:
        """Errors and messages of the console since ``watch``, and requests for anything but the page and what it contains."""
        self.evaluate("0")
        found = []
        for event in self.events:
            method, given = event.get("method"), event.get("params", {})
            if method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
                found.append(f"{method}: {json.dumps(given)[:500]}")
            elif method == "Network.requestWillBeSent" and not given["request"]["url"].startswith(("file:", "data:")):
                found.append(f"request: {given['request']['url'][:200]}")
        return found

    def screenshot(self, path: Path):
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)


ACCEPT = "document.querySelector('.jp-Dialog .jp-mod-accept')?.click()"  # the kernel dialog of a slow start
CONNECTED = "[...window.jupyterapp.shell.widgets('main')][0]?.sessionContext?.session?.kernel?.status === 'idle'"


def open_notebook(browser: Browser, address: str, path: str, seconds: float = 180) -> None:
    """Opens a notebook, a path below the server's folder, and waits for its kernel."""
    browser.send("Page.navigate", url="about:blank")
    browser.send("Page.navigate", url=f"{address}/doc/tree/{path}")
    browser.wait_for("!!window.jupyterapp && !!document.querySelector('.jp-Notebook')", seconds)
    browser.wait_for(f"{ACCEPT}, {CONNECTED}", seconds)


def run_all_cells(browser: Browser, seconds: float = 300) -> None:
    """Run All, to the end or to the first error, then saves the notebook."""
    commands = "window.jupyterapp.commands"
    browser.evaluate(f"void {commands}.execute('notebook:run-all-cells').finally(() => window.hasRun = true)")
    browser.wait_for("window.hasRun === true", seconds)
    browser.evaluate(f"void {commands}.execute('docmanager:save').finally(() => window.isSaved = true)")
    browser.wait_for("window.isSaved === true", 30)


@contextlib.contextmanager
def jupyter_lab(folder: Path, own: Path | None = None):
    """A JupyterLab server on ``folder``; yields its address. own: where the server keeps its log and files."""
    own = folder if own is None else own
    log = open(own / "jupyter.log", "w")  # noqa: SIM115 (open as long as the server)
    options = [
        "--ServerApp.token=",
        "--ServerApp.password=",
        "--ServerApp.disable_check_xsrf=True",
        "--ServerApp.port=0",
    ]
    environment = os.environ | {
        "JUPYTER_RUNTIME_DIR": str(own / "runtime"), "JUPYTER_CONFIG_DIR": str(own / "config"), "OMP_NUM_THREADS": "1"
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--LabApp.expose_app_in_browser=True",
         f"--ServerApp.root_dir={folder}", *options],
        stdout=log, stderr=log, env=environment,
    )  # fmt: skip
    try:
        files = lambda: next((own / "runtime").glob("jpserver-*.json"))
        port = _wait(lambda: json.loads(files().read_text())["port"], 180, "JupyterLab to start")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def _wait(question, seconds: float, what: str):
    end, last = time.monotonic() + seconds, None
    while time.monotonic() < end:
        try:
            if answer := question():
                return answer
        except (OSError, StopIteration, IndexError, ValueError, KeyError, AssertionError) as error:
            last = error
        time.sleep(0.25)
    raise TimeoutError(f"waited {seconds} s for {what}; last error: {last}")
