import sys

import pytest

from msdetr.engine import progress as module
from msdetr.engine.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then(monkeypatch, capsys, clock):
    monkeypatch.setenv("MSDETR_PROGRESS", "lines")
    progress = Progress(10_000, title="run", interval=10)
    for _ in range(10_000):
        clock[0] += 0.1
        progress.advance(1, "loss 1.5")
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert 50 < len(lines) <= 100
    assert lines[0] == "run: step 101/10000 (0:10, 16:30 left) loss 1.5"  # 0.1 s a hundred times is a little under 10
    assert lines[-1].startswith("run: step 10000/10000 (16:40)")


def test_brief_progress_leaves_no_line_if_it_was_quick(monkeypatch, capsys, clock):
    monkeypatch.setenv("MSDETR_PROGRESS", "lines")
    progress = Progress(5, brief=True)
    for _ in range(5):
        progress.advance()
    assert capsys.readouterr().err == ""


def test_off_and_disabled_say_nothing(monkeypatch, capsys):
    for setting, enabled in (("off", True), ("lines", False)):
        monkeypatch.setenv("MSDETR_PROGRESS", setting)
        progress = Progress(2, enabled=enabled)
        progress.advance(2)
        progress.say("result")
        progress.close()
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setenv("MSDETR_PROGRESS", "bar")
    progress = Progress(3, title="run")
    progress.advance(3, "loss 2")
    progress.say("AP 0.5")
    progress.close()
    written = capsys.readouterr().err
    assert "run" in written and "3/3" in written and "AP 0.5" in written


def test_the_style_follows_the_surroundings(monkeypatch):
    monkeypatch.delenv("MSDETR_PROGRESS", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(module, "_in_kernel", lambda: False)
    assert module.style() == "bar"
    monkeypatch.setattr(module, "_in_kernel", lambda: True)
    for name in ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    assert module.style() == "lines"  # papermill
    monkeypatch.setenv("JPY_SESSION_NAME", "notebook.ipynb")
    assert module.style() == "bar"
