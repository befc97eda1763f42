"""A lock between processes: a file that one of them holds until it ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path

from ..errors import EngineError

PATIENCE_SECONDS = 2  # for a process that was killed and is still being taken down


class InUse(EngineError):
    """Another process holds the lock; ``owner`` says which."""

    def __init__(self, path: Path, owner: str):
        super().__init__(f"{path}: in use by {owner}")
        self.owner = owner


class FileLock:
    """Holds the file at ``path`` from its construction to ``close``. A forked child does not hold it with its parent.

    Raises InUse, and OSError where the file cannot be made or the file system has no locks.
    """

    def __init__(self, path: Path, patience: float = PATIENCE_SECONDS):
        self.path = path
        deadline = time.monotonic() + patience
        while True:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(self._file, 200, 0).decode(errors="replace").strip() or "another process"
                os.close(self._file)
                if time.monotonic() > deadline:
                    raise InUse(path, owner) from None
                time.sleep(0.05)
                continue
            except OSError:
                os.close(self._file)
                raise
            if self.is_held():
                break
            os.close(self._file)  # the file was replaced in between: what was locked is another one
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        _held.add(self)

    def is_held(self) -> bool:
        """Whether the file at ``path`` still is the one that this process locked."""
        if self._file is None:
            return False
        try:
            there, here = os.stat(self.path), os.fstat(self._file)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def close(self) -> None:
        """Gives the lock back."""
        _held.discard(self)
        if self._file is not None:
            os.close(self._file)
            self._file = None


_held: set[FileLock] = set()


def _let_go() -> None:
    for lock in tuple(_held):
        lock.close()  # the parent's own descriptor keeps it locked


os.register_at_fork(after_in_child=_let_go)
