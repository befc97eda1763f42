"""Checks of arguments that several modules share."""

from __future__ import annotations

import operator
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
