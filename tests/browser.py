"""Chromium for the tests, by Playwright, and a JupyterLab for it to open.

The browser is the system's, so that nothing but a Python package is downloaded for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = (
    "no Chromium: apt-get install chromium" if CHROMIUM is None
    else "no Playwright: pip install msdetr[dev]" if find_spec("playwright") is None
    else None
)  # fmt: skip
needs_browser = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@contextlib.contextmanager
def browser_page(width: int = 1280, height: int = 900) -> Iterator[Page]:
    """A page in a headless browser of its own; closed at the end, since nothing else that waits for events can run meanwhile."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=60_000)  # others may use this computer, too
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(120_000)
            yield page
        finally:
            browser.close()


def complaints_of(page: Page, folder: Path | None = None) -> list[str]:
    """A list that grows from now on: errors, messages of the console, and requests for anything but a file that was opened, what
    it contains, and files of ``folder``."""
    found: list[str] = []

    def requested(request) -> None:
        opened = request.is_navigation_request() and request.url.startswith("file:")
        beside = folder is not None and request.url.startswith(folder.as_uri())
        if not (opened or beside or request.url.startswith("data:")):
            found.append(f"request: {request.url[:200]}")

    page.on("request", requested)
    page.on("console", lambda message: found.append(f"console: {message.text[:500]}"))
    page.on("pageerror", lambda error: found.append(f"error: {error}"))
    return found


ACCEPT = "document.querySelector('.jp-Dialog .jp-mod-accept')?.click()"  # the kernel dialog of a slow start
CONNECTED = "[...window.jupyterapp.shell.widgets('main')][0]?.sessionContext?.session?.kernel?.status === 'idle'"


def open_notebook(page: Page, address: str, path: str, seconds: float = 180) -> None:
    """Opens a notebook, a path below the server's folder, and waits for its kernel."""
    page.goto("about:blank")
    page.goto(f"{address}/doc/tree/{path}", timeout=1000 * seconds)
    page.wait_for_function("!!window.jupyterapp && !!document.querySelector('.jp-Notebook')", timeout=1000 * seconds)
    page.wait_for_function(f"{ACCEPT}, {CONNECTED}", timeout=1000 * seconds)


def run_all_cells(page: Page, seconds: float = 300) -> None:
    """Run All, to the end or to the first error, then saves the notebook."""
    commands = "window.jupyterapp.commands"
    page.evaluate(f"void {commands}.execute('notebook:run-all-cells').finally(() => window.hasRun = true)")
    page.wait_for_function("window.hasRun === true", timeout=1000 * seconds)
    page.evaluate(f"{commands}.execute('docmanager:save').then(() => true)")


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
        yield f"http://127.0.0.1:{_port(own / 'runtime')}"
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def _port(folder: Path, seconds: float = 180) -> int:
    """The port of a server, as soon as it has written it down."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for file in folder.glob("jpserver-*.json"):
            with contextlib.suppress(ValueError):  # half written
                return json.loads(file.read_text())["port"]
        time.sleep(0.25)
    raise TimeoutError(f"waited {seconds} s for JupyterLab to start")
