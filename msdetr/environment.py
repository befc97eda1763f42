"""Reads environment variables: a value that cannot be meant is a ConfigError that names the variable.

A variable that is empty counts as not set.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from .errors import ConfigError


def text(name: str) -> str | None:
    """The value, None where the variable is not set or empty."""
    return os.environ.get(name) or None


def choice(name: str, choices: Sequence[str]) -> str | None:
    """One of ``choices``, None where it is not set. Raises ConfigError for anything else."""
    value = text(name)
    if value is not None and value not in choices:
        raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")
    return value


def number(name: str, default: float, low: float, high: float) -> float:
    """A number from low to high. Raises ConfigError for anything else."""
    value = text(name)
    try:
        found = default if value is None else float(value)
    except ValueError:
        found = math.nan
    if not low <= found <= high:
        raise ConfigError(f"{name} is {value!r}; it must be a number from {low:g} to {high:g}")
    return found


def whole(name: str, default: int, low: int, high: int) -> int:
    """A whole number from low to high. Raises ConfigError for anything else."""
    value = text(name)
    try:
        found = default if value is None else int(value)
    except ValueError:
        found = low - 1
    if not low <= found <= high:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number from {low} to {high}")
    return found
