"""A lock between processes: a file that one of them holds until it ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path

from .errors import EngineError

PATIENCE_SECONDS = 2  # for a process that was killed and is still being taken down
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class LockError(EngineError):
    """A lock that cannot be had; the message names its file."""


class InUse(LockError):
    """Another process holds the lock; ``owner`` says which."""

    def __init__(self, path: Path, owner: str):
        super().__init__(f"{path}: in use by {owner}")
        self.owner = owner


class FileLock:
    """Holds the file at ``path`` from its construction to ``close``. A forked child does not hold it with its parent.

    Raises InUse after ``patience`` seconds, and LockError where the file cannot be made or opened, or the file system
    has no locks.
    """

    def __init__(self, path: Path, patience: float = PATIENCE_SECONDS):
        self.path = path
        self._file: int | None = None
        try:
            self._wait(time.monotonic() + patience)
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        except OSError as problem:
            self.close()
            raise _explained(path, problem) from problem
        _held.add(self)

    def _wait(self, deadline: float) -> None:
        """Gets hold of the file. Raises InUse, OSError."""
        while True:
            # whoever may write to the folder may hold it: the umask decides, as for all that a run writes
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(self._file, 200, 0).decode(errors="replace").strip() or "another process"
                self.close()
                if time.monotonic() > deadline:
                    raise InUse(self.path, owner) from None
                time.sleep(0.05)
                continue
            if self.is_held():
                return
            self.close()  # the file was replaced in between: what was locked is another one

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


def _explained(path: Path, problem: OSError) -> LockError:
    if problem.errno in _NO_LOCKS:
        remedy = "this file system has no locks, or they are switched off; choose a folder on another drive"
    elif problem.errno in (errno.EACCES, errno.EPERM):
        remedy = "it may not be opened; have its owner allow writing to it, or choose another folder"
    else:
        remedy = "make room, or choose another folder"
    return LockError(f"{path}: cannot be locked: {problem.strerror or problem}; {remedy}")


_held: set[FileLock] = set()


def _let_go() -> None:
    for lock in tuple(_held):
        lock.close()  # the parent's own descriptor keeps it locked


os.register_at_fork(after_in_child=_let_go)
