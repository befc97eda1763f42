"""Text output that never stops the work: a terminal that has gone, a closed pipe, an encoding without the letter."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
from collections.abc import Iterator
from typing import Any, TextIO

LOST = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EAGAIN)  # somebody still waits for what was written


class Forgiving:
    """A text stream whose ``write`` and ``flush`` never raise: what cannot be encoded is escaped, what cannot be written
    is lost. ``stream`` may be None, as ``sys.stderr`` is in a process that was started without one.

    A pipe or terminal that takes no more at once is waited for. error: the first one because of which text was lost.
    """

    def __init__(self, stream: TextIO | None):
        self._stream = stream
        self.error: Exception | None = None

    @property
    def broke(self) -> bool:
        """Whether text was lost on its way, e.g. to a full disk; a reader who has gone, or never was, lacks nothing."""
        return isinstance(self.error, OSError) and self.error.errno in LOST

    def write(self, text: str) -> int:
        try:
            try:
                self._write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding or "ascii"
                self._write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError, AttributeError) as error:
            self._give_up(error)
        return len(text)

    def _write(self, text: str) -> None:
        if self._blocks():
            self._stream.write(text)
            return
        self.flush()
        data = text.encode(self._stream.encoding, self._stream.errors)
        while data:
            try:  # not as text: that does not say how much of it was written before there was no more room
                written = self._stream.buffer.write(data)
            except BlockingIOError as error:
                written = error.characters_written
            data = data[written or 0 :]
            if data:
                self._wait()
        if self._stream.line_buffering:
            self.flush()

    def _blocks(self) -> bool:
        """Whether a write waits by itself until there is room."""
        try:
            return os.get_blocking(self._stream.fileno())
        except (OSError, ValueError, AttributeError):
            return True  # no file at all: there is always room

    def flush(self) -> None:
        try:
            while True:
                try:
                    return self._stream.flush()
                except BlockingIOError:
                    self._wait()
        except (OSError, ValueError, AttributeError) as error:
            self._give_up(error)

    def _wait(self) -> None:
        """Until there is room again."""
        select.select([], [self._stream.fileno()], [])

    def _give_up(self, error: Exception) -> None:
        """Sends what the stream still holds nowhere, so that the interpreter does not fail over it as it ends."""
        self.error = self.error or error
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except (OSError, ValueError, AttributeError):
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def is_unread() -> bool:
    """Whether who was reading the standard output has gone, as ``head`` has after ten lines."""
    return isinstance(getattr(sys.stdout, "error", None), BrokenPipeError)


@contextlib.contextmanager
def forgiving_output() -> Iterator[Forgiving]:
    """While the block lasts, nothing that is printed can fail. Yields what takes the place of ``sys.stdout``."""
    kept = sys.stdout, sys.stderr
    output = Forgiving(sys.stdout)
    sys.stdout, sys.stderr = output, Forgiving(sys.stderr)
    try:
        yield output
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = kept
