"""SIGTERM and Ctrl-C: finish the step, save, then stop."""

from __future__ import annotations

import os
import signal
import threading
from typing import Self

GRACE_SECONDS = 20  # for finishing a step and saving it, when other ranks may be gone


class StopRequest:
    """While the ``with`` block lasts, SIGTERM and the first Ctrl-C are remembered in ``signal`` instead of acted upon.

    A second Ctrl-C interrupts at once. ``watchdog=True`` (ranks of a distributed run) ends the process with 143 if it
    is still there some seconds after SIGTERM: a rank that waits for a dead one never gets to look at ``signal``.
    Outside the main thread, where Python allows no handlers, nothing is changed.
    """

    def __init__(self, watchdog: bool = False):
        self.signal: int | None = None
        self._watchdog = watchdog
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
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
            signal.signal(number, handler)
        self._previous.clear()

    def _remember(self, number: int, frame) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    @staticmethod
    def _watch(pipe: int) -> None:
        while received := os.read(pipe, 1):
            if received[0] == signal.SIGTERM:
                timer = threading.Timer(GRACE_SECONDS, os._exit, (128 + signal.SIGTERM,))
                timer.daemon = True
                timer.start()
        os.close(pipe)


def leave_signals_to_parent(worker: int) -> None:
    """For data workers: the process that trains decides when to stop, and ends its workers itself."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
