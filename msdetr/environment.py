"""Reads environment variables: a value that cannot be meant is a ConfigError that names the variable.

A variable that is empty counts as not set.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

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
    return _within(name, default, low, high, float, "a number")


def whole(name: str, default: int, low: int, high: int) -> int:
    """A whole number from low to high. Raises ConfigError for anything else."""
    return _within(name, default, low, high, int, "a whole number")


def _within(name: str, default: Any, low: float, high: float, kind: type, what: str) -> Any:
    value = text(name)
    try:
        found = default if value is None else kind(value)
    except ValueError:
        found = math.nan  # is in no range
    if not low <= found <= high:
        raise ConfigError(f"{name} is {value!r}; it must be {what} from {low:g} to {high:g}")
    return found
