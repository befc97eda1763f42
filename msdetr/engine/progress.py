"""Progress that suits where it is shown: a bar in a terminal or in Jupyter, occasional lines anywhere else.

A notebook run by papermill, a log file or a CI job keeps everything that is written, so there one line appears now and
then (at most one per ``interval`` seconds and per percent) instead of thousands.
``MSDETR_PROGRESS=bar|lines|off`` decides otherwise.
"""

from __future__ import annotations

import os
import sys
import time

from .. import environment
from ..streams import Forgiving


def style() -> str:
    """ "bar" for a terminal or a live notebook, "lines" for papermill, log files and CI.

    Raises ConfigError where MSDETR_PROGRESS is none of bar, lines, off.
    """
    if chosen := environment.choice("MSDETR_PROGRESS", ("bar", "lines", "off")):
        return chosen
    if _in_kernel():
        live = any(name in os.environ for name in ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG"))
        return "bar" if live else "lines"
    return "bar" if Forgiving(sys.stderr).isatty() else "lines"


def _in_kernel() -> bool:
    if "IPython" not in sys.modules:
        return False
    shell = sys.modules["IPython"].get_ipython()
    return getattr(shell, "kernel", None) is not None


class Progress:
    """Counts steps up to ``total``. ``enabled=False`` shows nothing; ``brief=True`` leaves nothing behind: no bar once
    it is done, no line if it took less than ``interval`` seconds."""

    def __init__(
        self,
        total: int,
        initial: int = 0,
        title: str = "",
        unit: str = "step",
        enabled: bool = True,
        brief: bool = False,
        interval: float = 10,
    ):
        self.total, self.count, self.title, self.unit, self.interval = total, initial, title, unit, interval
        self._style, self._brief = style() if enabled else "off", brief
        self._start, self._initial = time.monotonic(), initial
        self._last_time, self._last_count = self._start, initial
        self._stream = Forgiving(sys.stderr)
        self._bar = None
        if self._style == "bar":
            from tqdm.auto import tqdm

            where = {} if _in_kernel() else {"file": self._stream}
            self._bar = tqdm(
                total=total,
                initial=initial,
                desc=title,
                unit=unit,
                leave=not brief,
                dynamic_ncols=True,
                mininterval=0.5,
                **where,
            )

    def advance(self, steps: int = 1, text: str = "") -> None:
        """``text`` is what to say beside the count, e.g. "loss 3.21"."""
        self.count += steps
        if self._bar is not None:
            if text:
                self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(steps)
        elif self._style == "lines":
            waited = time.monotonic() - self._last_time >= self.interval
            enough = self.count - self._last_count >= self.total / 100
            if (waited and enough) or (self.count == self.total and not self._brief):
                self._line(text)

    def say(self, text: str) -> None:
        """A line of its own, e.g. an evaluation's result."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif self._style == "lines":
            self._stream.write(text + "\n")
            self._stream.flush()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _line(self, text: str) -> None:
        self._last_time, self._last_count = time.monotonic(), self.count
        elapsed = self._last_time - self._start
        done = self.count - self._initial
        remaining = self.total - self.count
        left = f", {_duration(elapsed / done * remaining)} left" if done and remaining else ""
        title = f"{self.title}: " if self.title else ""
        self.say(f"{title}{self.unit} {self.count}/{self.total} ({_duration(elapsed)}{left}) {text}".rstrip())


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
