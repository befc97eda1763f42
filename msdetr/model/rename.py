"""Names by a table of patterns."""

from __future__ import annotations

import re
from collections.abc import Iterable


def rename(name: str, table: list[tuple[str, str]]) -> str | None:
    """The name that the first fitting entry (old, new) gives; None where none fits. {i} stands for a number, {*} for the
    rest of the name."""
    for old, new in table:
        pattern = re.escape(old).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{\*\}", "(?P<rest>.+)")
        if match := re.fullmatch(pattern, name):
            groups = match.groupdict()
            return new.replace("{i}", groups.get("i", "")).replace("{*}", groups.get("rest", ""))
    return None


def advice(unknown: Iterable[str]) -> str:
    """What to do about names without a counterpart that are all of a backbone and a neck; "" where others are, too."""
    if not all(name.startswith(("backbone.", "neck.")) for name in unknown):
        return ""
    return (
        ". These are of its backbone and neck, which do not convert: save the other weights as a file of their own, and start "
        "from it with init_from and init_partial"
    )
