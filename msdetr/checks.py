"""Checks of arguments that several modules share."""

from __future__ import annotations

import math
import operator
import os
from pathlib import Path
from typing import Any

from .errors import InputError


def count(value: Any, name: str, least: int = 1) -> int:
    """``value`` as a plain whole number. Raises InputError naming it where it is something else, or below ``least``."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise InputError(f"{name}: must be a whole number, at least {least}; got {value!r}")
    return number


def fraction(value: Any, name: str) -> float:
    """``value`` as a float in [0, 1]. Raises InputError naming it where it is something else, or NaN."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, (bool, str)) or not 0 <= number <= 1:
        raise InputError(f"{name}: must be a number between 0 and 1; got {value!r}")
    return number


def machine_memory() -> float:
    """Bytes of memory that this process may use at most: the machine's or its container's; infinite where unknown."""
    try:
        limits = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    except (AttributeError, OSError, ValueError):
        limits = [math.inf]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(float(Path(file).read_text()))  # "max" is no number
        except (OSError, ValueError):
            continue
    return min(limits)
