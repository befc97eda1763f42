"""Published systems of the family: one module each, whose ``cases(folder)`` gives the name and the check of every case."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

from comparison import Case

Cases = Callable[[Path], Iterator[tuple[str, Callable[[Case], None]]]]


def systems() -> dict[str, Cases]:
    """The checks of every system by the name of its folder."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: import_module(f"{__name__}.{name}").cases for name in names}
