"""What the commands print and write."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import ConfigError
from ..files import make_folder, write_atomically


def show_metrics(metrics: dict[str, float | None]) -> None:
    print("  ".join(f"{name} {number(value)}" for name, value in metrics.items()))


def number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def write(path: Path, text: str) -> None:
    make_folder(path.parent)
    write_atomically(path, text)


def require_folder(path: Path | None, option: str) -> None:
    """Makes a folder to write into. Raises ConfigError where that is impossible, before anything is computed for it."""
    if path is None:
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{option}: {path} cannot be written ({reason}); give another folder") from error


@contextlib.contextmanager
def new_folder(path: Path, option: str) -> Iterator[None]:
    """``require_folder``, for what is written into it: a folder that was not there before and is left empty by an error is
    removed."""
    was_there = path.exists()
    require_folder(path, option)
    try:
        yield
    except BaseException:
        if not was_there:
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()
        raise


def require_file(path: Path | None, option: str) -> None:
    """Makes sure that a file can be written. Raises ConfigError where it cannot, before anything is computed for it."""
    if path is None:
        return
    if path.is_dir():
        raise ConfigError(f"{option}: {path} is a folder; give the name of a file in it")
    opened = path.absolute().is_relative_to("/dev/fd") or str(path) in ("/dev/stdout", "/dev/stderr")
    if opened and path.is_file():
        raise ConfigError(f"{option}: {path} is {path.resolve()}, to which the output is redirected; name another file")
    if not path.exists() or path.is_file():  # else it is a device or a pipe, which is written where it is
        require_folder(path.parent, option)
    if path.exists() and not os.access(path, os.W_OK):
        raise ConfigError(f"{option}: {path} exists and cannot be written; give another name")


def first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"
