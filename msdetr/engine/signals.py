"""SIGTERM, SIGHUP and Ctrl-C: finish the step, save, then stop."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Self

from ..errors import Terminated

GRACE_SECONDS = 20  # for finishing a step and saving it, when other ranks may be gone
TERMINATING = (signal.SIGTERM, signal.SIGHUP)


class StopRequested(BaseException):
    """A signal arrived in the middle of a wait (see ``StopRequest.interrupting``)."""


class StopRequest:
    """While the ``with`` block lasts, SIGTERM, SIGHUP and the first Ctrl-C are remembered in ``signal`` instead of acted upon.

    A second Ctrl-C interrupts at once. SIGHUP stays ignored where it was ignored before (nohup). ``watchdog=True`` (ranks of
    a distributed run) ends the process with 143 if it is still there some seconds after SIGTERM: a rank that waits for a
    dead one never gets to look at ``signal``. Outside the main thread, where Python allows no handlers, nothing is changed.
    """

    def __init__(self, watchdog: bool = False):
        self.signal: int | None = None
        self._interrupting = self._cancelled = False
        self._watchdog = watchdog
        self._previous: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal came, or ``cancel`` was called."""
        return self._cancelled or self.signal is not None

    def cancel(self) -> None:
        """Asks for a stop from within, as after a failure."""
        self._cancelled = True

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (*TERMINATING, signal.SIGINT):
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._previous[number] = signal.signal(number, self._remember)
            if self._watchdog:
                self._pipe = os.pipe()
                os.set_blocking(self._pipe[1], False)
                # the wake-up byte is written by the C handler, also while the main thread waits in a collective
                self._previous_fd = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
                threading.Thread(target=self._watch, args=(self._pipe[0],), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        if self._previous and self._watchdog:
            signal.set_wakeup_fd(self._previous_fd)
            os.close(self._pipe[1])
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """While the block lasts, a signal raises StopRequested at once: for waits that may never end."""
        self._interrupting = True
        try:
            if self.requested:
                raise StopRequested
            yield
        finally:
            self._interrupting = False

    def exit(self, message: str) -> BaseException:
        """What to raise once all is saved: KeyboardInterrupt after Ctrl-C, Terminated (exit 143) otherwise."""
        return KeyboardInterrupt(message) if self.signal == signal.SIGINT else Terminated(message)

    def _remember(self, number: int, frame) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        if self._interrupting:
            raise StopRequested

    @staticmethod
    def _watch(pipe: int) -> None:
        while received := os.read(pipe, 1):
            if received[0] in TERMINATING:
                timer = threading.Timer(GRACE_SECONDS, os._exit, (128 + signal.SIGTERM,))
                timer.daemon = True
                timer.start()
        os.close(pipe)
